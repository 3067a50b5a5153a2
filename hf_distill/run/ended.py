"""How a process of a run has ended, as the others are told, and the error that ends them for it."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass

from hf_distill.errors import UserError
from hf_distill.formatting import readable_lines
from hf_distill.signals import status

# Characters of what a process said at most.
MOST = 1000


@dataclass(frozen=True)
class Ended:
    """How a process of the run has ended.

    Attributes:
        rank: Which one.
        status: Its exit status.
        text: What it said, in words.
        signal: The signal that asked it to stop; 0 if none did.
    """

    rank: int
    status: int
    text: str = ""
    signal: int = 0


class Lost(Exception):
    """Another process of the run has ended or stalled.

    Args:
        line: What happened, and how to go on; empty if another process on this machine says it.
        status: The exit status.

    Attributes:
        status: As given.
    """

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status

    def say(self) -> None:
        """Print the line."""
        if str(self):
            print(readable_lines(f"\n{self}"), file=sys.stderr, flush=True)


def ended_by(rank: int, error: BaseException | None) -> Ended:
    """Return how a process ends.

    Args:
        rank: Its rank.
        error: The error that ends it; None if it has done all.
    """
    if error is None:
        return Ended(rank, 0)
    if isinstance(error, UserError):
        return Ended(rank, 2, f"has stopped: {error}"[:MOST])
    if isinstance(error, KeyboardInterrupt):
        number = int(getattr(error, "signal", signal.SIGINT))
        return Ended(rank, status(number), f"was told to stop ({signal.Signals(number).name})", number)
    text = " ".join(str(error).split())[: MOST // 2]
    return Ended(rank, 1, f"has failed with {type(error).__name__}{f': {text}' if text else ''}".rstrip("."))
