"""A few real optimiser steps of a training that is thrown away: what they allocate, and how long they take."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from hf_distill import parallel
from hf_distill.models import sharding
from hf_distill.run.doctor.allocations import Allocations
from hf_distill.run.doctor.finding import CannotCheck
from hf_distill.training.batches import known_lengths
from hf_distill.training.meter import MIB, peak_memory
from hf_distill.training.sharded import saves_itself

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.trainer import DistillationTrainer


@dataclass
class Trial:
    """What was measured, in this process.

    Attributes:
        seconds: Of each step, from its beginning to that of the next one, with the wait for data.
        peaks: Bytes above weights and optimizer states in each part of the last step; empty if they were not counted.
        student_bytes: Size of the student's weights, and of what objectives learn.
        teacher_bytes: Size of the weights of teachers that are not also the student's.
        gradient_bytes: Size of all gradients.
        optimizer_bytes: Size of the optimizer's states.
        optimizer: Name of its class.
        resident_bytes: By how much the resident memory of the process grew at most; 0 if that is not known.
    """

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    student_bytes: int = 0
    teacher_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    optimizer: str = ""
    resident_bytes: int = 0


def try_out(opened: Opened, rows: Sequence[int], size: int, steps: int, *, counts: bool) -> Trial:
    """Train another student for a few steps, as the first stage does, and return what they took.

    Args:
        opened: What a run would have loaded.
        rows: Rows of its train split, in this order; after the last one they begin again.
        size: Number of rows of a micro-batch of a process.
        steps: Number of steps, at least 2: the first one makes the optimizer's states.
        counts: Whether to count the bytes that the last step allocates, which takes longer.
    """
    wanted = size * opened.trainer.args.gradient_accumulation_steps * parallel.processes() * steps
    order = [rows[index % len(rows)] for index in range(wanted)]
    found = run_steps(
        opened.new_trainer(
            rows=order,
            per_device_train_batch_size=size,
            max_steps=steps,
            train_sampling_strategy="sequential",
            torch_empty_cache_steps=None,
            auto_find_batch_size=False,
        ),
        steps,
        counts=counts,
    )
    gc.collect()
    return found


def run_steps(trainer: DistillationTrainer, steps: int, *, counts: bool) -> Trial:
    """Train for a few steps, and return what they took. The trainer and its model are of no use afterwards.

    Args:
        trainer: A new one, whose `max_steps` is `steps`.
        steps: Number of steps.
        counts: Whether to count the bytes that the last step allocates.
    """
    found = Trial()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(trainer, found, steps, counts=counts))
    before = begin_resident()
    trainer.train()
    trainer.accelerator.free_memory()
    found.resident_bytes = max(found.resident_bytes - before, 0) if before else 0
    return found


def order_of(trainer: DistillationTrainer) -> list[int]:
    """Return the rows of the first epoch, in the order in which the training reads them.

    Raises:
        CannotCheck: The train split is a stream.
    """
    sampler: Any = trainer._get_train_sampler() if hasattr(trainer.train_dataset, "__len__") else None
    if sampler is None:
        raise CannotCheck("the train split is a stream, whose rows cannot be chosen")
    return list(sampler)


def longest_batch(trainer: DistillationTrainer, size: int) -> list[int]:
    """Return the rows of the micro-batch with the most tokens, padding included, in the first epoch; longest first.

    Args:
        trainer: Of the training.
        size: Number of rows of a micro-batch.
    """
    order, data = order_of(trainer), trainer.train_dataset
    lengths = known_lengths(data, trainer.args.length_column_name) or known_lengths(data, "length")
    if lengths is None:
        return order[:size]
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    found = max(batches, key=lambda rows: max(lengths[row] for row in rows) * len(rows))
    return sorted(found, key=lambda row: -lengths[row])


def spread(rows: Sequence[int], number: int) -> list[int]:
    """Return some of the rows at equal distances, the first among them.

    >>> spread([5, 3, 2, 1], 2), spread([5, 3, 2, 1], 1)
    ([5, 1], [5])
    """
    return [rows[round(index * (len(rows) - 1) / max(number - 1, 1))] for index in range(number)]


class _Watch(TrainerCallback):
    """Callback that measures the steps."""

    def __init__(self, trainer: DistillationTrainer, found: Trial, steps: int, *, counts: bool) -> None:
        self._trainer, self._found, self._steps, self._counts = trainer, found, steps, counts
        self._began: float | None = None
        self._open: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time; count the allocations of the last step."""
        self._note()
        if self._counts and state.global_step == self._steps - 1:
            # With sharded weights the parts of a backward pass are not told apart.
            model = None if saves_itself(self._trainer) else sharding.unwrapped(self._trainer.model)
            self._open = _counting(model, args.device, self._found)
            self._open.__enter__()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the size of the gradients."""
        model = sharding.unwrapped(self._trainer.model)
        self._found.gradient_bytes = bytes_of(one.grad for one in model.parameters() if one.grad is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the sizes of weights and of the optimizer's states."""
        if state.global_step < self._steps:
            return
        found = self._found
        found.resident_bytes = peak_resident()
        if self._open is not None:
            self._open.__exit__(None, None, None)
        optimizer: Any = self._trainer.optimizer
        found.optimizer = type(getattr(optimizer, "optimizer", optimizer)).__name__
        states: Any = getattr(optimizer, "state", {})
        found.optimizer_bytes = bytes_of(value for one in states.values() for value in tensors_of(one))
        student = _weights([sharding.unwrapped(self._trainer.model)])
        every = [*student, *_weights(() if self._trainer.source is None else self._trainer.source.models.values())]
        found.student_bytes = bytes_of(student)
        found.teacher_bytes = bytes_of(every) - found.student_bytes
        self._note()

    def _note(self) -> None:
        device = self._trainer.args.device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        now = time.perf_counter()
        if self._began is not None:
            self._found.seconds.append(now - self._began)
        self._began = now


@contextmanager
def _counting(model: nn.Module | None, device: torch.device, found: Trial) -> Iterator[None]:
    """Context manager: count the allocations of a step; a part ends whenever the gradient of a parameter is complete.

    In each part the number of bytes is a straight line in the number of rows: activations become fewer, gradients more.
    """
    allocations = Allocations(device)
    trained: list[Any] = [] if model is None else [one for one in model.parameters() if one.requires_grad]
    hooks = [one.register_post_accumulate_grad_hook(lambda _: allocations.mark()) for one in trained]
    try:
        with allocations:
            yield
    finally:
        for hook in hooks:
            hook.remove()
    found.peaks = allocations.peaks


def begin_resident() -> int:
    """Return freed memory to the system and begin to measure the peak.

    Returns:
        The number of resident bytes of this process now; 0 if its peak cannot be measured from now on.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present figure
    except (OSError, AttributeError, TypeError):  # not Linux with glibc
        return 0
    return peak_resident()


def peak_resident() -> int:
    """Return the largest number of resident bytes of this process since `begin_resident`."""
    return int((peak_memory(torch.device("cpu")) or 0) * MIB)


def _weights(models: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [one for model in models for one in (*model.parameters(), *model.buffers())]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in mappings, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(one)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of tensors in bytes, of sharded ones the part here; memory that several share counts once."""
    sizes: dict[int, int] = {}
    for one in tensors:
        plain = sharding.local(one)
        try:
            storage = plain.untyped_storage()
            sizes[storage.data_ptr() or id(one)] = storage.nbytes()
        except (RuntimeError, NotImplementedError):  # a tensor made of several, such as a quantized one
            sizes[id(one)] = plain.numel() * plain.element_size()
    return sum(sizes.values())
