"""Whether code from outside (`module:Class`, metric scripts, code of models) may run now: not while `--check` looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_reading = False


@contextmanager
def only_reading() -> Iterator[None]:
    """Context manager: no code from outside this package and its libraries runs, not even to be imported."""
    global _reading
    before, _reading = _reading, True
    try:
        yield
    finally:
        _reading = before


def may_run() -> bool:
    """Return whether code from outside may run."""
    return not _reading


class OnlyRead(Exception):
    """A recipe has no mistake, as far as it can be read without running its code from outside.

    Args:
        code: What would run, and from which file.

    Attributes:
        lines: What there is to say, line by line.
    """

    def __init__(self, code: Iterable[str]) -> None:
        self.lines = [
            *(f"code        {one}" for one in code),
            "not checked all that depends on this code: --check does not run it, and a run looks at everything first",
        ]
        super().__init__("\n".join(self.lines))
