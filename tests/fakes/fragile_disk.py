"""A file system of its own whose power a test can cut: what was not synced by then is gone.

An ext4 (or xfs) in a sparse file on a loop device. `cut` shuts it down as it stands, without writing its log; `restore`
mounts it again, which replays the log as a start after a power cut does. Knows nothing of mail. Needs root and loop
devices. What it cannot show: a drive that loses the cache it was told to flush, because what the file system handed
to the loop device stays there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("losetup", "mount", "umount")
MAKE = {"ext4": ("-q", "-F", "-m", "0"), "xfs": ("-q", "-f")}

SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN, which xfs calls XFS_IOC_GOINGDOWN."""

NO_LOG_FLUSH = 2
"""The log stays as it is on the disk, as in a power cut."""

BUSY_SECONDS = 10.0
"""How long somebody else may be looking at what is to be unmounted."""


class DiskUnavailableError(Exception):
    """Why this machine cannot have such a disk."""


class FragileDisk:
    """`with FragileDisk(directory) as disk:` a file system mounted at `disk.path`; afterwards nothing of it is left.

    Every process that used the disk has to be gone before `restore` and before the end. size: octets, of which only
    what is written takes room in `directory`.
    """

    def __init__(self, directory: Path, *, kind: str = "ext4", size: int = 1 << 30) -> None:
        self.path = directory / "disk"
        self.kind = kind
        self._image = directory / "disk.img"
        self._size = size
        self._device = ""
        self._mounted = False

    def __enter__(self) -> Self:
        """DiskUnavailableError where such a disk cannot be had; then nothing is left of the attempt."""
        if reason := missing(self.kind):
            raise DiskUnavailableError(reason)
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self._remove()
            raise DiskUnavailableError(f"{error.cmd[0]} failed: {error.stderr.strip()}") from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def cut(self) -> None:
        """The power goes: nothing reaches the disk any more, and who still tries gets EIO. Takes milliseconds."""
        root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(root, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(root)

    def restore(self) -> None:
        """The power is back: the file system as its log says it was."""
        self._unmount(time.monotonic() + BUSY_SECONDS)
        self._mount()

    def _make(self) -> None:
        self.path.mkdir()
        with self._image.open("xb") as image:
            image.truncate(self._size)
        _run(f"mkfs.{self.kind}", *MAKE[self.kind], str(self._image))
        self._device = _run("losetup", "--find", "--show", str(self._image))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-t", self.kind, self._device, str(self.path))
        self._mounted = True

    def _unmount(self, deadline: float) -> None:
        while self._mounted:
            try:
                _run("umount", str(self.path))
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                self._mounted = False

    def _remove(self) -> None:
        """Whatever there is of it, even with a process left on it: the mount goes with its last open file."""
        try:
            self._unmount(time.monotonic() + BUSY_SECONDS)
        except subprocess.CalledProcessError:
            _run("umount", "--lazy", str(self.path))
            raise
        finally:
            # The device goes with the mount if that is still there.
            if self._device:
                _run("losetup", "--detach", self._device)
            self._image.unlink(missing_ok=True)


def missing(kind: str = "ext4") -> str:
    """What such a disk needs and this machine lacks; empty when nothing is known to be missing."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices: /dev/loop-control is missing"
    absent = [name for name in (*PROGRAMS, f"mkfs.{kind}") if _program(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=PATH)


def _run(name: str, *arguments: str) -> str:
    """Its output; CalledProcessError with what it said."""
    command = [_program(name) or name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
