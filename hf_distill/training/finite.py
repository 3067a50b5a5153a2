"""Finds NaN and infinite values of a training: stored on the device, checked when something is read from it anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models import sharding

# Micro-batches that are stored at most before they are checked, also if nothing is logged: about a kilobyte each.
MOST = 1024
# Steps in a row that float16's loss scale may take to settle. It halves each time, from 2^16.
SETTLING = 40
# Rows that a message names.
SHOWN = 8


@dataclass(frozen=True)
class NonFinite:
    """The first value that was not finite.

    Attributes:
        step: Optimiser step, from 1.
        terms: Terms that were not finite, and their kind: `{"kl": "NaN"}`.
        rows: Indices of the examples of the micro-batch with such values.
        of: Number of examples in the micro-batch.
        sides: Whose logits were not finite there: `teacher`, `student`, both or none.
        norm: The norm of the gradient, if the gradient was not finite.
        process: Rank of the process that had the micro-batch; None if there is only one.
        evaluation: Whether it was found in an evaluation after that step; rows are then those of the eval split.
    """

    step: int
    terms: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    of: int = 0
    sides: tuple[str, ...] = ()
    norm: float | None = None
    process: int | None = None
    evaluation: bool = False


class Watch:
    """Stores what the micro-batches since the last check have computed, without making the host wait for the device.

    Args:
        names: Names of the terms.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._batches: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[int, Any]] = []

    def batch(self, step: int, sums: Tensor, extremes: Tensor) -> None:
        """Store the values of a micro-batch.

        Args:
            step: Optimiser step that it belongs to.
            sums: Sum of every term for every example, `(batch, terms)`.
            extremes: Largest logit of student and teacher, `(batch, 2)`, as `Rows.extremes` returns them.
        """
        self._batches.append((step, torch.cat((sums.detach(), extremes.to(sums)), -1)))

    def gradient(self, step: int, norm: Any) -> None:
        """Store the norm of a step's gradient; None if an engine such as DeepSpeed does not return it."""
        if norm is not None:
            self._norms.append((step, norm))

    def clear(self) -> None:
        """Delete all stored values."""
        self._batches.clear()
        self._norms.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored."""
        return not self._batches and not self._norms

    @property
    def is_full(self) -> bool:
        """Whether so many micro-batches are stored that they should be checked now."""
        return len(self._batches) >= MOST

    def flag(self, device: torch.device) -> Tensor:
        """Return 1 if a stored value is not finite, else 0, as a tensor on the device, without waiting for it."""
        parts = []
        if self._batches:  # concatenated: a few operations for any number of steps
            parts.append(_finite(torch.cat([values for _, values in self._batches])).all())
        if self._norms:
            parts.append(torch.stack([_tensor(norm, device).reshape(()) for _, norm in self._norms]).isfinite().all())
        return 1.0 - torch.stack(parts).all().float() if parts else torch.zeros(())

    def norms(self) -> list[tuple[int, float]]:
        """Return (step, norm) of each stored gradient."""
        return [(step, float(_tensor(norm))) for step, norm in self._norms]

    def first(self, *, norms: bool = True) -> NonFinite | None:
        """Return the first fault of this process, or None; within a step the micro-batches come before the gradient.

        Args:
            norms: Whether a gradient that is not finite is a fault.
        """
        faults = [*self._faulty_batches(), *(self._faulty_norms() if norms else ())]
        return min(faults, key=lambda fault: fault.step, default=None)

    def _faulty_batches(self) -> Iterator[NonFinite]:
        for step, values in self._batches:
            fault = fault_of(step, values, self.names)
            if fault is not None:
                yield fault
                return

    def _faulty_norms(self) -> Iterator[NonFinite]:
        yield from (NonFinite(step, norm=norm) for step, norm in self.norms() if not math.isfinite(norm))


def fault_of(step: int, values: Tensor, names: Sequence[str]) -> NonFinite | None:
    """Return the fault of a batch with values that are not finite, or None.

    Args:
        step: Optimiser step that the batch belongs to.
        values: Sums of all terms, then the largest logit of student and teacher, `(examples, terms + 2)`.
        names: Names of the terms.
    """
    finite, values = _finite(values).cpu(), values.cpu()
    good, columns = finite.all(-1), finite.all(0).tolist()
    if good.all():
        return None
    kinds = ["NaN" if one else "infinite" for one in values.isnan().any(0).tolist()]
    found = zip(names, kinds, columns, strict=False)
    sides = zip(("student", "teacher"), columns[-2:], strict=True)
    return NonFinite(
        step,
        {name: kind for name, kind, is_good in found if not is_good},
        rows=tuple((~good).nonzero().flatten().tolist()),
        of=len(good),
        sides=tuple(side for side, is_good in sides if not is_good),
    )


def _finite(values: Tensor) -> Tensor:
    """Return which values are good, bool `(batch, terms + 2)`.

    A largest logit of -inf is good: it belongs to a row whose classes are all masked.
    """
    terms, extremes = values[:, :-2], values[:, -2:]
    return torch.cat((terms.isfinite(), extremes < math.inf), -1)  # false for NaN


def _tensor(norm: Any, device: torch.device | None = None) -> Tensor:
    # With FSDP the norm is sharded: all processes together have it.
    found = torch.as_tensor(sharding.whole(norm))
    return found if device is None else found.to(device)


def bad_weight(model: nn.Module) -> str | None:
    """Return the name of a weight with NaN or infinite values, or of a buffer with NaN; None if there is none.

    If a model is sharded, a process checks only its own part.
    """
    weights = dict(model.named_parameters())
    own = {name: _local(one) for name, one in (*weights.items(), *model.named_buffers())}
    own = {name: one for name, one in own.items() if one is not None}
    if not own:
        return None
    # The largest absolute value of each tensor: NaN if an entry is NaN. It needs no copy of the tensor.
    largest = [torch.linalg.vector_norm(one, math.inf).float() for one in own.values()]
    values = torch.stack([one.to(largest[0].device) for one in largest]).tolist()
    for name, value in zip(own, values, strict=True):
        # A buffer may hold -inf, as in an attention mask.
        if math.isnan(value) or (math.isinf(value) and name in weights):
            return name
    return None


def _local(one: Tensor) -> Tensor | None:
    """Return the part of a tensor in this process; None if there is none, or if it is quantized."""
    here = sharding.local(one.detach())
    plain = type(here) is Tensor and here.is_floating_point() and not here.is_meta
    return here if plain and here.numel() else None


def describe_rows(fault: NonFinite, unit: str = "the batch") -> str:
    """Return which rows have the fault, such as `rows 0, 2, 5 of 8 of the batch`."""
    rows = [str(row) for row in fault.rows[:SHOWN]]
    if len(fault.rows) == fault.of:
        return f"all {fault.of} rows of {unit}" if fault.of > 1 else f"the only row of {unit}"
    more = f" and {len(fault.rows) - SHOWN} more" if len(fault.rows) > SHOWN else ""
    return f"row{'s' * (len(fault.rows) > 1)} {', '.join(rows)}{more} of {fault.of} of {unit}"


def advice(side: str, teacher: nn.Module | None, args: Any) -> str:
    """Return what to try if a model gives values that are not finite.

    Args:
        side: `teacher`, or anything else for the model that is trained.
        teacher: The teacher; None if there is none.
        args: Training arguments.
    """
    if side == "teacher" and teacher is not None:
        if (name := bad_weight(teacher)) is not None:
            return f"Its weight {name} is not finite: the checkpoint is damaged, or was made for another dtype."
        dtype = next((str(one.dtype).removeprefix("torch.") for one in teacher.parameters()), None)
        if dtype is None:
            return "They come from a cache: delete it, so that they are computed again."
        now = f" (now {dtype})" if dtype == "float16" else ""
        return f"Load the teacher with dtype: float32 or bfloat16{now}, or train without fp16."
    clipped = "" if args.max_grad_norm and args.max_grad_norm <= 1 else f", max_grad_norm: 1 (now {args.max_grad_norm})"
    half = ", bf16 in place of fp16" if args.fp16 else ""
    return f"Try a lower learning_rate (now {args.learning_rate:g}) or warmup_steps{clipped}{half}."


def describe_fault(fault: NonFinite, own: str, hint: Callable[[str], str]) -> str:
    """Return the message about a fault: step, terms, rows, model, and what to try.

    Args:
        fault: What was found.
        own: Name of the model that is trained or evaluated, such as `the student`.
        hint: Returns what to try, given the side (`teacher` or `student`).
    """
    if fault.norm is not None:
        return (
            f"step {fault.step}: the gradient is not finite (its norm is {fault.norm}), though the loss is. "
            f"{hint('student')}"
        )
    terms = " and ".join(
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {kind}"
        for kind in dict.fromkeys(fault.terms.values())
        if (names := [name for name, one in fault.terms.items() if one == kind])
    )
    whose = "" if fault.process is None else f" of process {fault.process}"
    rows = describe_rows(fault, "the evaluation" if fault.evaluation else f"the batch{whose}")
    at_fault = [f"{'the teacher' if side == 'teacher' else own}'s {what}" for side, what in (
        ("teacher", "targets"), ("student", "logits")) if side in fault.sides]  # fmt: skip
    cause = f"{' and '.join(at_fault)} are NaN or infinite" if at_fault else "everything before the loss is finite"
    start = f"{'evaluation after ' if fault.evaluation else ''}step {fault.step}: {f'{terms} for ' if terms else ''}"
    return f"{start}{rows}: {cause}. {hint('teacher' if 'teacher' in fault.sides else 'student')}"
