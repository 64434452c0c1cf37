"""Keeping a second process out of a folder, on file systems with and without locks.

Where ``flock`` works, the kernel drops a lock with its process. Where it does not (Lustre without ``-o flock``, NFS
without its lock service), a file that says "locked" would outlive a kill. There, the owner touches the file every
second, and one that stays untouched while somebody waits for it is left over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT = 1.0  # seconds between two touches
LEFT_OVER = 10.0  # seconds without one, by the clock of the one who waits
PATIENCE = 1.0  # seconds to wait for a lock that somebody may hold for a moment
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class LockedError(Exception):
    """Another process has the lock."""


class Lock:
    """File lock that one process can hold; acquired on construction.

    Args:
        path: path of the file. It is left there where ``flock`` works, and means nothing by itself.

    Raises:
        LockedError: another process has it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not _flock(self._handle):
                self._take_by_touching()
        except BaseException:
            os.close(self._handle)
            raise

    def _take_by_touching(self) -> None:
        owned = self.path.with_name(f"{self.path.name}.owner")
        if owned.exists() and _is_touched(owned, LEFT_OVER):
            raise LockedError(f"{owned} is touched every second")
        owned.unlink(missing_ok=True)  # the file of a process that is gone
        try:
            os.close(os.open(owned, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError as error:
            raise LockedError(f"{owned} was made at the same moment") from error
        self._owned = owned
        threading.Thread(target=self._touch, name="lmms_eval_emi-lock", daemon=True).start()

    def _touch(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):
                self._owned.touch()

    def release(self) -> None:
        """Release the lock."""
        if hasattr(self, "_owned"):
            self._stop.set()
            with contextlib.suppress(OSError):
                self._owned.unlink()
        os.close(self._handle)


def _flock(handle: int) -> bool:
    """Lock an open file; ``False`` where the file system has no locks."""
    if fcntl is None:
        return False
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise LockedError("it is locked") from error
            time.sleep(PATIENCE / 10)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False


def _is_touched(path: Path, seconds: float) -> bool:
    """Return whether the time stamp of a file changes within some seconds."""
    try:
        first = path.stat().st_mtime_ns
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(BEAT / 4)
            if path.stat().st_mtime_ns != first:
                return True
    except FileNotFoundError:  # its owner has just let go
        pass
    return False


def is_locked(path: Path) -> bool:
    """Return whether a process has the lock of a file. Asking leaves everything unchanged, and keeps nobody out."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # not there, or somebody else's
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(handle)
    owned = path.with_name(f"{path.name}.owner")
    return owned.exists() and _is_touched(owned, 3 * BEAT)
