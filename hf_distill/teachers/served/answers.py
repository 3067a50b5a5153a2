"""Answers that were paid for: stored as they come, and found by what was asked."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from hf_distill.errors import UserError, first_line

# Folder inside the cache of `datasets`, so that HF_HOME and HF_DATASETS_CACHE apply to it too.
FOLDER = "hf_distill-answers"
FILE = "answers.sqlite3"
# Seconds to wait for another process that writes.
_WAIT = 60.0
# How many keys are looked up at once.
_KEYS = 500

Value = TypeVar("Value")


class Answers:
    """A file of answers by key, that several runs and processes may use at once.

    Each answer is in the file before the next one is waited for: a run that is killed loses what was under way.

    Args:
        path: Directory of the file; None for a folder in the cache of `datasets`.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._connection: tuple[int, sqlite3.Connection] | None = None

    @property
    def file(self) -> Path:
        """The file."""
        if self._path is not None:
            return Path(self._path).expanduser() / FILE
        from datasets import config

        return Path(config.HF_DATASETS_CACHE) / FOLDER / FILE

    def find(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the answers that are stored, by key."""
        wanted = list(keys)

        def look(file: sqlite3.Connection) -> dict[bytes, bytes]:
            return dict(
                found for start in range(0, len(wanted), _KEYS) for found in _some(file, wanted[start:][:_KEYS])
            )

        return self._do(look)

    def add(self, key: bytes, value: bytes) -> None:
        """Store an answer."""

        def write(file: sqlite3.Connection) -> None:
            with file:
                file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, value))

        self._do(write)

    def _do(self, work: Callable[[sqlite3.Connection], Value]) -> Value:
        try:
            return work(self._open())
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"answers of the server cannot be stored in {self.file} ({first_line(error)}). Name another directory, "
                "make room, or remove the file if it is damaged.",
                key="path",
            ) from error

    def _open(self) -> sqlite3.Connection:
        # A connection must not be used by a forked process.
        if self._connection is None or self._connection[0] != os.getpid():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            found = sqlite3.connect(self.file, timeout=_WAIT)
            found.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB)")
            self._connection = os.getpid(), found
        return self._connection[1]


def _some(file: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    marks = ", ".join("?" * len(keys))
    yield from file.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", keys)
