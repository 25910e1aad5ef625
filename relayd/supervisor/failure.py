"""Why a start failed: one line for standard error and an exit code of sysexits, whichever process it was.

Called by `relayd serve`, and by a worker, which leaves the line to its supervisor.
"""

from __future__ import annotations

import errno
import os

from relayd import tls
from relayd.spool.store import FormatError, StoreError, StoreLockedError


class WorkerFailedError(Exception):
    """A worker could not start: the text is its reason, `code` the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


STARTING = (OSError, StoreError, tls.TlsError, WorkerFailedError)
"""What a start may raise."""


def reason(error: Exception) -> tuple[str, int]:
    """One line and an exit code; 75 (EX_TEMPFAIL) where trying again may help."""
    text = str(error) or type(error).__name__
    match error:
        case WorkerFailedError():
            return text, error.code
        case StoreLockedError():
            return text, os.EX_TEMPFAIL
        case FormatError() | tls.TlsError():
            return text, os.EX_CONFIG
        case OSError():
            return text, _ERRNOS.get(_number(error), os.EX_IOERR)
    return text, os.EX_IOERR


def _number(error: OSError) -> int:
    """Its errno, or that of what it was made from."""
    if error.errno is None and isinstance(error.__context__, OSError):
        return _number(error.__context__)
    return error.errno or 0


_ERRNOS = {
    errno.EADDRINUSE: os.EX_TEMPFAIL,
    errno.EADDRNOTAVAIL: os.EX_CONFIG,
    errno.EACCES: os.EX_NOPERM,
    errno.EPERM: os.EX_NOPERM,
    errno.EROFS: os.EX_CANTCREAT,
    errno.ENOENT: os.EX_CANTCREAT,
    errno.ENOTDIR: os.EX_CANTCREAT,
    errno.ENOSPC: os.EX_CANTCREAT,
}
