"""Time spent on a device, without making the host wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch:` blocks.

    On CUDA the time is taken by events that the device records as it gets there and that are read only in
    `drain`, so that a step is never held up; elsewhere by the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0
        self._cuda = device.type == "cuda"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time spent inside the block."""
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            before = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - before

    def drain(self) -> float:
        """Return the seconds counted since the last call. Waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
