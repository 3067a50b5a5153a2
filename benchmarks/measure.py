"""Time and memory of one piece of work in this process."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """What a block of code took.

    Attributes:
        seconds: Of the processor, user and system, of all threads. Unlike wall time it does not count waiting for
            other processes.
        peak_mib: Highest resident memory within the block, less that at its start; None where the system does not say.
    """

    seconds: float = 0.0
    peak_mib: float | None = None


@contextmanager
def measuring() -> Iterator[Cost]:
    """Measure a block."""
    gc.collect()
    _give_back()
    cost = Cost()
    resets = _reset_peak()
    resident = _status("VmRSS") if resets else None
    before = time.process_time()
    yield cost
    cost.seconds = time.process_time() - before
    if resident is not None:
        cost.peak_mib = max(0.0, _status("VmHWM") - resident) / 1024


def _give_back() -> None:
    """Have the C library return what it holds free, or memory of before would be taken for none (glibc only)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_peak() -> bool:
    """Set the highest resident memory back to the present one (Linux only)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _status(name: str) -> float:
    """Return a figure of the kernel about this process, KiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return float(line.split()[1])


@dataclass
class Outcome:
    """What a variant says of itself.

    Attributes:
        cost: For one unit of work (a loss, a step, an epoch).
        checks: Numbers that all variants of the same group must agree on.
        per: The unit of work.
        compiling: Seconds by the clock that code took to make before, which is no part of the cost; None if none was.
        parts: Seconds of the cost that went into some part of the work, by its name.
        counts: How often something was done, by its name.
    """

    cost: Cost
    checks: dict[str, float] = field(default_factory=dict)
    per: str = "step"
    compiling: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Attributes:
        run: Does it once, and measures.
        group: Variants of the same group compute the same thing, and are checked for it; None for what computes
            nothing that could be compared.
        tolerance: Relative, of what is compared.
        needs: A module without which the variant is left out, and a word on it.
        title: What it is, in a table.
    """

    run: Callable[..., Outcome]
    title: str
    group: str | None = None
    tolerance: float = 1e-4
    needs: str | None = None
