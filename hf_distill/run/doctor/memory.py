"""Checks the memory of a process: what it holds, what its steps allocate, and how large a batch may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from hf_distill import parallel
from hf_distill.cache.cache import amount
from hf_distill.run.doctor.allocations import Allocations
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.trial import Trial, longest_batch, spread, try_out
from hf_distill.training.sharded import saves_itself

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

# Above this share of what is there, the estimate is too rough to promise that it fits.
TIGHT = 0.85
MOST_ROWS = 2**16
# Steps after which the heap has found its size.
SETTLED = 4
# The share of further tensors by which the heap holds back more; measured between 0.16 and 0.4.
HEAP = 0.4
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step allocates above weights and optimizer states, by the number of rows of a micro-batch.

    It was measured at two sizes, or at one. Between two moments of the backward pass at which the gradient of a
    parameter is complete, it is a straight line in the number of rows; the peak is that of the highest line.

    Attributes:
        sizes: The numbers of rows, the smaller one first.
        peaks: For each of them, the peaks of the parts of a step.
    """

    sizes: tuple[int, ...]
    peaks: tuple[tuple[int, ...], ...]

    def at(self, rows: int) -> float:
        """Return the peak for micro-batches of so many rows.

        >>> StepMemory((1, 2), ((10, 40), (30, 40))).at(2), StepMemory((1, 2), ((10, 40), (30, 40))).at(3)
        (40.0, 50.0)
        """
        if len(self.sizes) == 1:
            return max(self.peaks[0]) * max(rows / self.sizes[0], 1.0)
        (low, high), (few, many) = self.sizes, self.peaks
        if len(few) != len(many):  # the objectives reach other parameters in one of them
            few, many = (max(few),), (max(many),)
        share = (rows - low) / (high - low)
        return max(0.0, *(one + (other - one) * share for one, other in zip(few, many, strict=True)))


@dataclass(frozen=True)
class Memory:
    """Memory of one process in the first stage, in bytes.

    Attributes:
        rows: Number of rows of a micro-batch, as the recipe says.
        trial: The measured sizes of weights, gradients and optimizer states.
        step: What a step allocates besides.
        buckets: Copies of the gradients that DDP sends.
        beside: Resident memory above all tensors: kernels, and what the heap holds back. At the larger of the measured
            sizes; 0 on an accelerator.
        base: The process before models are loaded: Python, libraries, data. 0 on an accelerator.
        there: What is there for this process.
    """

    rows: int
    trial: Trial
    step: StepMemory
    buckets: int
    beside: int
    base: int
    there: int

    def training(self, rows: int) -> int:
        """Return the peak of the training for micro-batches of so many rows, without the base."""
        one = self.trial
        held = one.student_bytes + one.teacher_bytes + one.optimizer_bytes + self.buckets
        return int(held + self.step.at(rows) + self.others(rows))

    def others(self, rows: int) -> float:
        """Return the resident memory above all tensors."""
        if not self.beside:
            return 0.0
        return self.beside + HEAP * max(self.step.at(rows) - self.step.at(self.step.sizes[-1]), 0.0)

    @property
    def largest(self) -> int:
        """The largest number of rows that fits; 0 if none does."""
        within, above = 0, 1
        while above <= MOST_ROWS and self.fits(above):
            within, above = above, above * 2
        while above - within > 1:
            middle = (within + above) // 2
            within, above = (middle, above) if self.fits(middle) else (within, middle)
        return within

    def fits(self, rows: int) -> bool:
        """Return whether micro-batches of so many rows fit."""
        return self.base + self.training(rows) <= self.there


def memory(opened: Opened) -> Iterator[Finding]:
    """Compare what the first stage takes on this device with what is there."""
    yield judge(measured(opened), opened.run.args.device)


def measured(opened: Opened) -> Memory:
    """Return the memory of the first stage; measured once.

    Raises:
        CannotCheck: Nothing counts allocations here, or the rows cannot be chosen.
    """
    if "memory" not in opened.made:
        opened.made["memory"] = _measure(opened)
    found: Memory = opened.made["memory"]
    return found


def sizes_for(rows: int) -> tuple[int, ...]:
    """Return at which numbers of rows a step is measured: a quarter and a half of a large batch, all of a small one.

    >>> sizes_for(32), sizes_for(4), sizes_for(1)
    ((8, 16), (2, 4), (1,))
    """
    high = max(rows // 2, min(rows, 4))
    return (high // 2, high) if high > 1 else (1,)


def _measure(opened: Opened) -> Memory:
    args, trainer = opened.run.args, opened.trainer
    if not Allocations.are_counted(args.device):
        raise CannotCheck(f"allocations on {args.device.type} cannot be counted")
    rows = trainer._train_batch_size
    longest, sizes = longest_batch(trainer, rows), sizes_for(rows)
    there = available(args.device)
    trials: list[Trial] = []
    for size in sizes:
        too_much = bool(trials) and max(trials[-1].peaks) * size / sizes[0] > there
        if any(parallel.from_all(too_much)):
            sizes = sizes[:1]  # too much to try
            break
        steps = SETTLED if size == sizes[-1] else 2
        trials.append(try_out(opened, spread(longest, size), size, steps, counts=True))
    last = trials[-1]
    base = beside = 0
    if args.device.type == "cpu":
        beside = max([0, *(one.resident_bytes - one.optimizer_bytes - max(one.peaks) for one in trials)])
        base = opened.base_bytes
    copies = parallel.processes() > 1 and not saves_itself(trainer)
    step = StepMemory(sizes, tuple(tuple(one.peaks) for one in trials))
    return Memory(rows, last, step, last.gradient_bytes if copies else 0, beside, base, there)


def judge(found: Memory, device: torch.device) -> Finding:
    """Say whether it fits.

    Args:
        found: What was measured.
        device: Where.
    """
    peak, largest, trial = found.training(found.rows), found.largest, found.trial
    needed = found.base + peak
    figures = {
        "peak_bytes": peak,
        "base_bytes": found.base,
        "available_bytes": found.there,
        "student_bytes": trial.student_bytes,
        "teacher_bytes": trial.teacher_bytes,
        "gradient_bytes": trial.gradient_bytes,
        "optimizer_bytes": trial.optimizer_bytes,
        "step_bytes": int(found.step.at(found.rows)),
        "ddp_bytes": found.buckets,
        "beside_bytes": int(found.others(found.rows)),
        "batch_rows": found.rows,
        "largest_batch_rows": largest,
    }
    text = (
        f"a process takes {amount(peak)} for the training at {found.rows} rows of the longest batch: student "
        f"{amount(trial.student_bytes)}, teacher {amount(trial.teacher_bytes)}, {trial.optimizer} "
        f"{amount(trial.optimizer_bytes)}, a step with its gradients {amount(int(found.step.at(found.rows)))}, "
        f"other {amount(int(found.buckets + found.others(found.rows)))}"
        + (f"; and {amount(found.base)} for Python, libraries and data" if found.base else "")
        + f". {amount(found.there)} are there on {device}"
    )
    more = "more than 65,536" if largest >= MOST_ROWS else f"{largest:,}"
    if needed > found.there:
        advice = (
            f"The largest per_device_train_batch_size that fits: {more}; gradient_accumulation_steps makes up for it."
        )
        if not largest:
            advice = (
                "Not even one row fits. Take a smaller student, adapters, another optim, or shorter texts (max_length)."
            )
        return Finding("memory", "mistake", f"{text}.", advice, figures)
    if needed > TIGHT * found.there:
        return Finding("memory", "warning", f"{text}: that is tight.", f"At most {more} rows fit.", figures)
    return Finding("memory", "ok", f"{text}: batches of {more} rows fit", figures=figures)


def available(device: torch.device) -> int:
    """Return how many bytes this process can have on a device, of a host its share of what is free.

    What this process holds at present counts as free.
    """
    if device.type != "cpu":
        free, _ = getattr(torch, device.type).mem_get_info(device)
        return int(free + getattr(torch, device.type).memory_reserved(device))
    free, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    if (limit := _limit()) is not None:
        free = min(free, limit)
    return int(free / parallel.on_this_machine() + own)


def _limit() -> int | None:
    """Return how much more the container of this process may take; None if it has no limit.

    Pages of files that were read count as free: the kernel drops them before it ends a process.
    """
    try:
        most, held = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if most == "max":
            return None
        pages = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(int(most) - int(held) + int(pages.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None
