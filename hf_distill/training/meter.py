"""Measures what the steps of a training cost: time, the teacher's share of it, tokens, memory."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MIB = 2**20
_STATUS = Path("/proc/self/status")


class Meter(TrainerCallback):
    """Callback that adds up time and tokens of the steps since the last `read`, without waiting for the device.

    A step is an optimiser step: from its first micro-batch to the end of the optimiser's work. Waiting for data,
    evaluation, logging and saving are not included.

    Args:
        device: Device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps, self._teacher, self._writing = Stopwatch(device), Stopwatch(device), Stopwatch(device)
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start timing the step."""
        self._steps.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop timing the step."""
        self._steps.stop()

    def teacher(self) -> AbstractContextManager[None]:
        """Context manager: count the time of the block as the teacher's."""
        return self._teacher.running()

    def writing(self) -> AbstractContextManager[None]:
        """Context manager: count the time of the block as that of writing completions, before a step."""
        return self._writing.running()

    def count(self, tokens: Tensor) -> None:
        """Add the number of tokens of a step, summed over all processes."""
        self._tokens += tokens.to(self._tokens.dtype)

    def reset(self) -> None:
        """Set time and tokens to 0."""
        self._steps.drain()
        self._teacher.drain()
        self._writing.drain()
        self._tokens.zero_()

    def read(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the figures since the last call, and start again from 0.

        Args:
            gather: Concatenates the rows of all processes; all of them must call this together.

        Returns:
            `teacher_share`: the teacher's share of the time of the steps, in this process. `writing_share`: that of
            writing completions before a step, which then counts as a part of the step. `tokens_per_second`: tokens of
            all processes, divided by the seconds of the slowest. `peak_memory`: MiB, the largest of all processes.
            Figures that are not known are left out.
        """
        writing, teacher, tokens = self._writing.drain(), self._teacher.drain(), int(self._tokens.item())
        seconds = self._steps.drain() + writing
        self._tokens.zero_()
        own = torch.tensor([[seconds, peak_memory(self._device) or 0.0]], device=self._device)
        slowest, peak = gather(own).amax(0).tolist()
        shares = {"teacher_share": teacher, "writing_share": writing}
        figures = {name: share / seconds for name, share in shares.items() if share and seconds}
        if tokens and slowest:
            figures["tokens_per_second"] = round(tokens / slowest, 1)
        if peak:
            figures["peak_memory"] = round(peak, 1)
        return figures


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory since this process began, in MiB; None if it cannot be measured.

    On a GPU: the memory of all tensors on it (`torch.cuda.max_memory_allocated`, or the same of another device).
    Elsewhere: the resident memory of the process, with model, data and libraries.
    """
    allocated = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if device.type != "cpu" and allocated is not None:
        return float(allocated(device)) / MIB
    return _peak_resident()


def _peak_resident() -> float | None:
    # Preferred to `getrusage`, which on Linux returns the figure of the parent process if that was larger.
    if _STATUS.exists():
        found = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return float(found[0][1]) / 1024 if found else None
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


MOST_EVENTS = 1000


class Stopwatch:
    """Adds up the seconds between `start()` and `stop()`, or inside `with stopwatch.running():` blocks.

    On an accelerator, the time is taken by events in the device's queue, so that no step waits; on a CPU, by the wall
    clock.

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
        """Start timing. A start that was not followed by a stop is ignored."""
        self._started = self._now()

    def stop(self) -> None:
        """Stop timing, and add the time since the last start."""
        if self._started is None:
            return
        started, self._started = self._started, None
        if self._event is None:
            self._seconds += self._now() - started
            return
        self._pending.append((started, self._now()))
        # A run that never logs must not collect events without end. The oldest is long over, so this does not wait.
        if len(self._pending) > MOST_EVENTS:
            self._read()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: time the block."""
        self.start()
        yield
        self.stop()

    def drain(self) -> float:
        """Return the seconds since the last call, and start again from 0. Waits for the device."""
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
