"""Keep a run going when nobody reads its output any more, as in `hf-distill ... | head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Unread:
    """A stream that discards its output once its reader has gone, instead of raising `BrokenPipeError`.

    Args:
        stream: Standard output or error; None if the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write a text; discard it if the reader has gone."""
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Write the buffered output; discard it if the reader has gone."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        """Redirect the descriptor to the null device: buffered output, and output of libraries, is discarded too."""
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def reader_may_go() -> Iterator[None]:
    """Context manager: within it, the readers of standard output and error may go away."""
    before = sys.stdout, sys.stderr
    streams: Any = tuple(map(Unread, before))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
