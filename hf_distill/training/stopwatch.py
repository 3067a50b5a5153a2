"""Time spent on a device, without making the host wait for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_EVENTS = 1000


class Stopwatch:
    """Adds up the seconds between `start()` and `stop()`, or spent inside `with stopwatch.running():` blocks.

    On an accelerator the time is taken by events that the device records as it gets there, so that a step is never
    held up; on a CPU by the wall clock.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        # torch.cuda.Event, torch.xpu.Event, torch.mps.Event: one interface.
        self._event: Any = None if device.type == "cpu" else getattr(getattr(torch, device.type, None), "Event", None)
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0
        self._started: Any = None

    def start(self) -> None:
        """Count from here. What was started before and not stopped is forgotten."""
        self._started = self._now()

    def stop(self) -> None:
        """Count up to here."""
        if self._started is None:
            return
        started, self._started = self._started, None
        if self._event is None:
            self._seconds += self._now() - started
            return
        self._pending.append((started, self._now()))
        # A run that never logs must not pile up events; one of the oldest is over long ago.
        if len(self._pending) > MOST_EVENTS:
            self._read()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time spent inside the block."""
        self.start()
        yield
        self.stop()

    def drain(self) -> float:
        """Return the seconds counted since the last call. Waits for the device."""
        while self._pending:
            self._read()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _now(self) -> Any:
        if self._event is None:
            return time.perf_counter()
        event = self._event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        start, end = self._pending.popleft()
        end.synchronize()
        self._seconds += start.elapsed_time(end) / 1000
