"""What is in deploy/: each file is what its reader accepts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relayd.service import DRAIN_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "relayd"
    program.touch(0o755)
    unit = tmp_path / "relayd.service"
    unit.write_text((DEPLOY / "relayd.service").read_text().replace("/opt/relayd/bin/relayd", str(program)))
    assert str(program) in unit.read_text()
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr, verified.stdout) == (0, "", "")


def test_systemd_waits_longer_than_a_drain() -> None:
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "relayd.service").read_text(), re.MULTILINE)
    assert int(seconds) > 30 > DRAIN_SECONDS


def test_the_image_is_locked_and_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in text
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["relayd"]
    assert not re.search(r"index-url|pypi|https://", text)
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert all("/" not in image for image in images)


def test_the_image_copies_what_is_there() -> None:
    root = DEPLOY.parent
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        for name in names.split():
            assert (root / name).exists(), name
