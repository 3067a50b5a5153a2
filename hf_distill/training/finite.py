"""Whether what a training computes is finite: kept on the device, read where something is read anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill import parallel

# Micro-batches that are kept before they are read though nothing is logged: about a kilobyte each.
MOST = 1024
# Steps in a row that float16's loss scale may take to settle. It halves each time, from 2^16.
SETTLING = 40
# Rows that a message names.
SHOWN = 8


@dataclass(frozen=True)
class Fault:
    """The first thing that was not finite.

    Attributes:
        step: Optimiser step, from 1.
        terms: Terms that were not finite, and what they were: `{"kl": "NaN"}`.
        rows: Examples of the micro-batch that are at fault.
        of: Examples of the micro-batch.
        sides: Whose logits were not finite there: `teacher`, `student`, both or none.
        norm: The norm of the gradient, where it is the fault.
        process: Which process had the micro-batch; None where there is one.
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
    """Keeps what the micro-batches since the last look have computed, without making the host wait for the device.

    Args:
        names: Of the terms.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._batches: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[int, Any]] = []

    def batch(self, step: int, sums: Tensor, extremes: Tensor) -> None:
        """Keep a micro-batch.

        Args:
            step: Optimiser step that it belongs to.
            sums: Of every term, `(batch, terms)`.
            extremes: Of the logits, `(batch, 2)`, as `Rows.extremes` gives them.
        """
        self._batches.append((step, torch.cat((sums.detach(), extremes.to(sums)), -1)))

    def gradient(self, step: int, norm: Any) -> None:
        """Keep the norm of a step's gradient; None where an engine does not tell it."""
        if norm is not None:
            self._norms.append((step, norm))

    def clear(self) -> None:
        """Forget what was kept."""
        self._batches.clear()
        self._norms.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was kept."""
        return not self._batches and not self._norms

    @property
    def is_full(self) -> bool:
        """Whether it is time to look."""
        return len(self._batches) >= MOST

    def flag(self, device: torch.device) -> Tensor:
        """Return 1 on the device where something was not finite, else 0; nobody waits for it."""
        parts = []
        if self._batches:  # together: a few operations, however many steps there were
            parts.append(_finite(torch.cat([values for _, values in self._batches])).all())
        if self._norms:
            parts.append(torch.stack([_tensor(norm, device).reshape(()) for _, norm in self._norms]).isfinite().all())
        return 1.0 - torch.stack(parts).all().float() if parts else torch.zeros(())

    def norms(self) -> list[tuple[int, float]]:
        """Return the norms by step."""
        return [(step, float(_tensor(norm))) for step, norm in self._norms]

    def first(self, *, norms: bool = True) -> Fault | None:
        """Return the first fault of this process; within a step the micro-batches come before the gradient.

        Args:
            norms: Whether a gradient that is not finite is a fault.
        """
        faults = [*self._faulty_batches(), *(self._faulty_norms() if norms else ())]
        return min(faults, key=lambda fault: fault.step, default=None)

    def _faulty_batches(self) -> Iterator[Fault]:
        for step, values in self._batches:
            fault = fault_of(step, values, self.names)
            if fault is not None:
                yield fault
                return

    def _faulty_norms(self) -> Iterator[Fault]:
        yield from (Fault(step, norm=norm) for step, norm in self.norms() if not math.isfinite(norm))


def fault_of(step: int, values: Tensor, names: Sequence[str]) -> Fault | None:
    """Return what is not finite among the examples of a batch, `(examples, terms + 2)`; None where all are."""
    finite, values = _finite(values).cpu(), values.cpu()
    good, columns = finite.all(-1), finite.all(0).tolist()
    if good.all():
        return None
    kinds = ["NaN" if one else "infinite" for one in values.isnan().any(0).tolist()]
    found = zip(names, kinds, columns, strict=False)
    sides = zip(("student", "teacher"), columns[-2:], strict=True)
    return Fault(
        step,
        {name: kind for name, kind, is_good in found if not is_good},
        rows=tuple((~good).nonzero().flatten().tolist()),
        of=len(good),
        sides=tuple(side for side, is_good in sides if not is_good),
    )


def _finite(values: Tensor) -> Tensor:
    """Return what may pass, bool `(batch, terms + 2)`: a largest logit of -inf is that of classes ruled out."""
    terms, extremes = values[:, :-2], values[:, -2:]
    return torch.cat((terms.isfinite(), extremes < math.inf), -1)  # NaN is not below


def _tensor(norm: Any, device: torch.device | None = None) -> Tensor:
    # Sharded, it is a number of all processes together.
    found = torch.as_tensor(parallel.whole(norm))
    return found if device is None else found.to(device)


def bad_weight(model: nn.Module) -> str | None:
    """Return the name of a weight that is NaN or infinite, or of a buffer that is NaN; None where there is none.

    Of a model that is sharded, a process sees its own part.
    """
    weights = dict(model.named_parameters())
    own = {name: _local(one) for name, one in (*weights.items(), *model.named_buffers())}
    own = {name: one for name, one in own.items() if one is not None}
    if not own:
        return None
    # The largest of each, which is NaN where an entry is, and takes no memory of the size of a weight.
    largest = [torch.linalg.vector_norm(one, math.inf).float() for one in own.values()]
    values = torch.stack([one.to(largest[0].device) for one in largest]).tolist()
    for name, value in zip(own, values, strict=True):
        # A buffer may hold -inf for what is masked.
        if math.isnan(value) or (math.isinf(value) and name in weights):
            return name
    return None


def _local(one: Tensor) -> Tensor | None:
    """Return the numbers of a tensor that are here; None where there are none, or where they are quantized."""
    here = parallel.local(one.detach())
    plain = type(here) is Tensor and here.is_floating_point() and not here.is_meta
    return here if plain and here.numel() else None


def rows_in_words(fault: Fault, unit: str = "the batch") -> str:
    """Return `rows 0, 2 and 5 of the 8 of the batch`."""
    rows = [str(row) for row in fault.rows[:SHOWN]]
    if len(fault.rows) == fault.of:
        return f"all {fault.of} rows of {unit}" if fault.of > 1 else f"the only row of {unit}"
    more = f" and {len(fault.rows) - SHOWN} more" if len(fault.rows) > SHOWN else ""
    return f"row{'s' * (len(fault.rows) > 1)} {', '.join(rows)}{more} of {fault.of} of {unit}"


def advice(side: str, teacher: nn.Module | None, args: Any) -> str:
    """Return what to try where a side, `teacher` or else the model that trains, is not finite."""
    if side == "teacher" and teacher is not None:
        if (name := bad_weight(teacher)) is not None:
            return f"Its weight {name} is not finite: the checkpoint is damaged, or was made for another dtype."
        dtype = next((str(one.dtype).removeprefix("torch.") for one in teacher.parameters()), None)
        if dtype is None:
            return "They come from a cache: remove it, so that they are computed anew."
        now = f" (now {dtype})" if dtype == "float16" else ""
        return f"Load the teacher with dtype: float32 or bfloat16{now}, or train without fp16."
    clipped = "" if args.max_grad_norm and args.max_grad_norm <= 1 else f", max_grad_norm: 1 (now {args.max_grad_norm})"
    half = ", bf16 in place of fp16" if args.fp16 else ""
    return f"Try a lower learning_rate (now {args.learning_rate:g}) or warmup_steps{clipped}{half}."


def in_words(fault: Fault, own: str, hint: Callable[[str], str]) -> str:
    """Return the line for a fault: step, term, rows, side, and what to try.

    Args:
        fault: What was found.
        own: What is said of the model that trains or is judged: `the student`.
        hint: `advice` for a side.
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
    rows = rows_in_words(fault, "the evaluation" if fault.evaluation else f"the batch{whose}")
    at_fault = [f"{'the teacher' if side == 'teacher' else own}'s {what}" for side, what in (
        ("teacher", "targets"), ("student", "logits")) if side in fault.sides]  # fmt: skip
    cause = f"{' and '.join(at_fault)} are NaN or infinite" if at_fault else "all before the loss is finite"
    start = f"{'evaluation after ' if fault.evaluation else ''}step {fault.step}: {f'{terms} for ' if terms else ''}"
    return f"{start}{rows}: {cause}. {hint('teacher' if 'teacher' in fault.sides else 'student')}"
