"""One run at a time in a directory: a lock that the kernel releases when its process ends, however it ends."""

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

from hf_distill.errors import UserError
from hf_distill.parallel import asked_once

if LOCKS := os.name == "posix":  # nothing is locked elsewhere
    import fcntl

logger = logging.getLogger(__name__)

# Underscored, so that `Trainer.push_to_hub` leaves it out. The file stays: removed, two runs could lock two of them.
FILE = "_lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_POLL_SECONDS = 1.0


class Lock:
    """The lock of a directory. A context manager that releases it.

    On NFS the kernel turns it into a lock of the server, which holds between machines and ends with the lease of a
    machine that is gone (about a minute and a half). Where a file system has no locks, a warning says so.

    Args:
        folder: The directory; made, with its parents, when it is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._handle: int | None = None

    def take(self) -> bool:
        """Lock the directory if nobody else has; return whether it is ours now."""
        if not LOCKS or self._handle is not None:
            return True
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
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
        """Who holds the lock, `process 12 on host, since ...`; None where it is free. Writes nothing."""
        if not LOCKS or self._handle is not None or not self.file.is_file():
            return None
        try:
            handle = os.open(self.file, os.O_RDWR)
        except OSError:  # not ours to write, which is told when it is claimed
            return None
        try:
            if _flock(handle, self.file):
                return None
            return os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        finally:
            os.close(handle)

    def take_or_refuse(self) -> None:
        """Lock the directory.

        Raises:
            UserError: Another run has it.
        """
        if not self.take():
            raise UserError(
                f"{self.file.parent} is in use by another run ({self.holder or 'which has just ended'}). Wait until it "
                "has ended, or choose another directory.",
                key="output_dir",
            )

    def wait(self, say: Callable[[str], None], what: str) -> None:
        """Lock the directory, after whoever else has it; all processes of a run call this, the first one locks.

        Args:
            say: Tells the user that, and for whom, it waits.
            what: What the other run does there, for the line.
        """
        told = False
        while not asked_once(self.take):  # again and again: the wait may be longer than a barrier's time limit
            if not told:
                say(f"waiting: another run {what} in {self.file.parent} ({self.holder or 'it has just ended'})")
            told = True
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the directory free."""
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


def _let_go() -> None:
    for lock in [*_HELD]:
        lock.release()


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()
# A process that reads data is forked, may outlive this one by seconds, and would hold the lock for as long.
if LOCKS:
    os.register_at_fork(after_in_child=_let_go)


def _flock(handle: int, file: Path) -> bool:
    """Lock an open file; return whether nobody else has."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        logger.warning("%s cannot be locked (%s): nothing keeps two runs apart there", file, error.strerror)
    return True
