"""Counts the bytes that PyTorch allocates while something runs, part by part."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self  # in typing from Python 3.11 on

_MARK = "hf_distill.part "


class Allocations:
    """Context manager: count the bytes of the tensors that are made and freed in the block.

    On a CPU, PyTorch's profiler reports every allocation; memory that a library takes for itself is not in it. On an
    accelerator, its own allocator counts (`torch.cuda.max_memory_allocated`).

    Args:
        device: Where the tensors are.

    Attributes:
        peaks: For each part, in order, the largest number of bytes above those at the beginning of the block; known
            after the block. A part ends at a `mark()`, the last one with the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.peaks: list[int] = []
        self._counter: Any = None
        self._profiler: Any = None
        self._marks = 0
        if device.type != "cpu":
            self._counter = getattr(torch, device.type)
        self._device = device

    @staticmethod
    def are_counted(device: torch.device) -> bool:
        """Return whether allocations on a device can be counted."""
        return device.type == "cpu" or hasattr(getattr(torch, device.type, None), "reset_peak_memory_stats")

    def __enter__(self) -> Self:
        """Begin."""
        if self._counter is not None:
            self._begun = self._counter.memory_allocated(self._device)
            self._counter.reset_peak_memory_stats(self._device)
            return self
        # Its library writes a line to stderr when it starts and stops, unless it is told to be quiet.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        from torch.profiler import ProfilerActivity, profile

        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profiler.__enter__()
        return self

    def mark(self) -> None:
        """End a part."""
        if self._counter is not None:
            self._lap()
            return
        with torch.profiler.record_function(f"{_MARK}{self._marks}"):
            self._marks += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the last part."""
        if self._counter is not None:
            self._lap()
            return
        self._profiler.__exit__(kind, error, at)
        if error is None:
            self.peaks = _peaks(self._profiler.profiler.kineto_results.events())
        self._profiler = None

    def _lap(self) -> None:
        self.peaks.append(self._counter.max_memory_allocated(self._device) - self._begun)
        self._counter.reset_peak_memory_stats(self._device)


def _peaks(events: Any) -> list[int]:
    """Return the largest number of bytes in each part, from the events of a profiler."""
    changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    ends = sorted(one.start_ns() for one in events if one.name().startswith(_MARK))
    found, held, at = [], 0, 0
    for end in (*ends, None):
        peak = held
        while at < len(changes) and (end is None or changes[at][0] < end):
            held += changes[at][1]
            peak = max(peak, held)
            at += 1
        found.append(peak)
    return found
