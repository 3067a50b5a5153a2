"""The log file of a run: all that it prints, line by line with the time, for runs that nobody watches."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from hf_distill._version import __version__
from hf_distill.errors import Stopped, UserError
from hf_distill.files.ownership import LOG
from hf_distill.formatting import readable, readable_lines

# Seconds between two states of a progress bar that is drawn in place.
OFTEN = 15.0
# Colours, and movements of the cursor.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LogFile:
    """Collects lines until it knows the file into which it writes them.

    It never ends a run: if the file cannot be written, as on a full disk, the log stops.
    """

    def __init__(self) -> None:
        self._lines: list[str] = [f"{_now()} ---- hf_distill {__version__}, process {os.getpid()} ----\n"]
        self._file: TextIO | None = None
        self._last = 0.0

    def into(self, directory: Path) -> None:
        """Write what was collected and all that follows to the end of the log file in a directory."""
        self.close()
        with suppress(OSError):
            # Never through a link that somebody else has put there.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(directory / LOG, flags, 0o666)
            self._file = os.fdopen(handle, "a", encoding="utf-8", errors="replace")
        self._write("")

    def add(self, line: str) -> None:
        """Add a line, without its colours, and without the secrets that another library may have printed."""
        if text := readable(_CONTROL.sub("", line).rstrip()):
            self._write(f"{_now()} {text}\n")

    def add_state(self, line: str) -> None:
        """Add a state of a line that is drawn again and again, but not too often."""
        if time.monotonic() - self._last >= OFTEN:
            self._last = time.monotonic()
            self.add(line)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _write(self, text: str) -> None:
        self._lines.append(text)
        if self._file is None:
            return
        try:
            self._file.writelines(self._lines)
            self._file.flush()
        except OSError:
            self.close()
        self._lines.clear()


class CopiedStream:
    """A stream whose lines also go into a log file.

    Args:
        stream: Standard output or error.
        log: The log file.
    """

    def __init__(self, stream: Any, log: LogFile) -> None:
        self._stream = stream
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        """Write a text; its whole lines go into the log, and now and then a line that is drawn in place."""
        written = int(self._stream.write(text) or 0)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log.add(line.rpartition("\r")[2])
        if "\r" in self._rest:
            self._rest = self._rest.rpartition("\r")[2]
            self._log.add_state(self._rest)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# The log of this process while there is one.
_CURRENT: list[LogFile] = []


@contextmanager
def logging_output(*, enabled: bool) -> Iterator[LogFile]:
    """Context manager: copy what is printed within it, and an error that leaves it, into a log file.

    Within another such block, it is the log of that one: the last line of the command is in the log of its run.

    Args:
        enabled: Whether this process writes the log.
    """
    if _CURRENT:
        yield _CURRENT[0]
        return
    log = LogFile()
    before = sys.stdout, sys.stderr
    handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
    if enabled:
        copied: Any = tuple(CopiedStream(stream, log) for stream in before)
        sys.stdout, sys.stderr = copied
        handlers = [(one, one.stream) for one in _handlers() if one.stream in before]
        for handler, stream in handlers:
            handler.setStream(copied[before.index(stream)])
    _CURRENT.append(log)
    try:
        yield log
    except BaseException as error:
        for line in _lines_of(error):
            log.add(line)
        raise
    finally:
        _CURRENT.clear()
        if enabled:
            sys.stdout, sys.stderr = before
            for handler, stream in handlers:
                handler.setStream(stream)
        log.close()


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Yield the handlers that print; those that libraries made when they were imported hold the stream of that time."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and hasattr(handler, "stream"):
                yield handler


def _lines_of(error: BaseException) -> list[str]:
    if isinstance(error, UserError):
        return [*error.mistakes]
    if isinstance(error, KeyboardInterrupt):
        return [f"stopped by signal {error.signal}" if isinstance(error, Stopped) else "interrupted"]
    return readable_lines("".join(traceback.format_exception(error))).splitlines()


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"
