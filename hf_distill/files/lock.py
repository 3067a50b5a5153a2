"""Lock a directory for one run at a time; the kernel releases the lock when the process ends, even if killed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType

from hf_distill import parallel
from hf_distill.errors import UserError

if LOCKS := os.name == "posix":  # on Windows there is no `fcntl`, and nothing is locked
    import fcntl

logger = logging.getLogger(__name__)

# `Trainer.push_to_hub` leaves out names with an underscore. The file is never removed: a run that waits for the lock
# holds the old file open, and the next one would lock a new file.
FILE = "_lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_POLL_SECONDS = 1.0


class Lock:
    """The lock of a directory. As a context manager it releases the lock at the end.

    On NFS the server holds the lock, so it works between machines; if a machine dies, the server releases it after
    about 90 seconds. A file system without locks causes a warning.

    Args:
        folder: The directory; created, with its parents, when it is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._handle: int | None = None

    def take(self) -> bool:
        """Lock the directory if it is free; return whether this process now holds the lock."""
        if not LOCKS or self._handle is not None:
            return True
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # No link: the file that it points to would be overwritten.
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(f"{self.file} is a symbolic link. Remove it.") from error
        if not _flock(handle, self.file):
            os.close(handle)
            return False
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode(), 0)
        self._handle = handle
        _HELD.add(self)
        return True

    @property
    def holder(self) -> str | None:
        """Who holds the lock, as `process 12 on host, since ...`; None if it is free. Writes nothing.

        Several processes may ask at once: each locks the file for a moment, so as to share it.
        """
        if not LOCKS or self._handle is not None or not self.file.is_file():
            return None
        try:
            handle = os.open(self.file, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # no right to write, or a link; `take` reports that
            return None
        try:
            if _flock(handle, self.file, fcntl.LOCK_SH):
                return None
            return os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        finally:
            os.close(handle)

    def take_or_refuse(self) -> None:
        """Lock the directory.

        Raises:
            UserError: Another run holds the lock.
        """
        if not self.take():
            raise UserError(
                f"{self.file.parent} is in use by another run ({self.holder or 'which has just ended'}). Wait until it "
                "has ended, or choose another directory.",
                key="output_dir",
            )

    def wait(self, say: Callable[[str], None], what: str) -> None:
        """Wait until the directory is free, and lock it. All processes of a run call this; the first one locks.

        Args:
            say: Prints a line for the user when the wait begins.
            what: What the other run does there, for that line.
        """
        told = False
        # One short question at a time: a barrier would reach its time limit.
        while not parallel.asked_once(self.take):
            if not told:
                say(f"waiting: another run {what} in {self.file.parent} ({self.holder or 'it has just ended'})")
            told = True
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Release the lock."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def has_locks(folder: Path) -> bool:
    """Return whether the file system of a folder has locks; also True where nothing is ever locked (Windows).

    Writes nothing: the folder itself is locked for a moment, shared with others.
    """
    if not LOCKS:
        return True
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    finally:
        os.close(handle)
    return True


def _let_go() -> None:
    for lock in [*_HELD]:
        lock.release()


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()
# Forked data workers inherit the lock and may live seconds longer than this process: they release it at once.
if LOCKS:
    os.register_at_fork(after_in_child=_let_go)


def _flock(handle: int, file: Path, kind: int | None = None) -> bool:
    """Lock an open file; return False if another process holds the lock.

    Args:
        handle: The open file.
        file: Its path.
        kind: `LOCK_EX`, the default, or `LOCK_SH`.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if kind is None else kind) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        logger.warning("%s cannot be locked (%s): do not start two runs there at once", file, error.strerror)
    return True
