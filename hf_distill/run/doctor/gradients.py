"""Checks the gradients of the objectives when training starts: is each there, and does one drown the others?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.mistakes import join
from hf_distill.models import sharding
from hf_distill.objectives.schedule import Schedule
from hf_distill.run.doctor.finding import Finding
from hf_distill.training.token_batches import flat

if TYPE_CHECKING:
    from hf_distill.objectives import Objective
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.trainer import DistillationTrainer

BATCHES = 4
# Weighted gradients that differ by more than this are worth a warning: the smaller one then turns the direction of a
# step by less than 2 degrees (arctan 1/30), which is less than what two batches differ by.
DROWNED = 30.0
# Below this cosine, two objectives mostly undo each other's steps.
AGAINST = -0.5
# Below this norm a gradient is rounding.
NOTHING = 1e-12


@dataclass(frozen=True)
class TermGradient:
    """The gradient of one objective, before its weight, to the parameters of the student.

    Attributes:
        name: Of the term.
        weight: The largest weight that it has in the training.
        norm: Mean norm over the batches in which something counted for it; NaN if there was none.
        value: Mean value of the objective there.
        batches: Number of these batches.
    """

    name: str
    weight: float
    norm: float
    value: float
    batches: int = BATCHES

    @property
    def weighted(self) -> float:
        """The norm times the weight."""
        return self.weight * self.norm


def gradients(opened: Opened) -> Iterator[Finding]:
    """Check the objectives of the first stage on a few batches."""
    if any(objective.needs_teacher for objective in opened.recipe.plan[0].objectives):
        _ = opened.trained_teacher  # against a head that knows nothing, gradients say nothing
    trainer = opened.new_trainer()
    terms, cosines = measure(trainer, batches_of(trainer, BATCHES))
    paths = [join(join(opened.recipe.stage_path(0), f"objectives[{index}]"), "weight") for index in range(len(terms))]
    yield from judge(terms, cosines, paths)


def batches_of(trainer: DistillationTrainer, number: int) -> list[dict[str, Any]]:
    """Return the first micro-batches of a training, with the completions and targets that are made for them."""
    loader: Any = trainer.get_train_dataloader()
    stream, device = iter(loader), trainer.args.device
    found: list[dict[str, Any]] = []
    for _ in range(min(number, len(loader)) if hasattr(loader, "__len__") else number):
        found += flat(trainer.get_batch_samples(stream, 1, device)[0])
    return [trainer._prepare_inputs(one) for one in islice(found, number)]


def measure(
    trainer: DistillationTrainer, batches: Sequence[dict[str, Any]]
) -> tuple[list[TermGradient], dict[tuple[str, str], float]]:
    """Return the gradient of each objective, and the mean cosine of each two of them, by their names.

    They come from the trainer's own loss: it is computed once for each objective, with weight 1 for this one and 0 for
    the others. Dropout is the same each time. The weights of the student do not change.

    Args:
        trainer: Of the training.
        batches: Micro-batches.
    """
    terms, model = trainer.terms, sharding.unwrapped(trainer.model)
    learned = {id(one) for one in terms.learned.parameters()}
    own = [one for one in model.parameters() if one.requires_grad and id(one) not in learned]
    norms: list[list[float]] = [[] for _ in terms]
    values: list[list[float]] = [[] for _ in terms]
    cosines: dict[tuple[int, int], list[float]] = {}
    model.train()
    for number, batch in enumerate(batches):
        counts = trainer.weighing.of_terms(trainer._count([batch]))
        found: dict[int, list[Tensor | None]] = {}
        for index in range(len(terms)):
            if counts[index] > 0 and terms.objectives[index].has_weight:
                with _alone(trainer, index), torch.random.fork_rng():
                    torch.manual_seed(number)
                    model.zero_grad(set_to_none=True)
                    with trainer.compute_loss_context_manager():
                        loss = trainer.compute_loss(model, dict(batch))
                    loss.backward()
                found[index] = [one.grad for one in own]
                values[index].append(float(loss.detach()))
                norms[index].append(_dot(found[index], found[index]) ** 0.5)
        for one, other in combinations(found, 2):
            if min(norms[one][-1], norms[other][-1]) > NOTHING:
                cosine = _dot(found[one], found[other]) / (norms[one][-1] * norms[other][-1])
                cosines.setdefault((one, other), []).append(cosine)
    model.zero_grad(set_to_none=True)
    trainer.watch.clear()
    named = [
        TermGradient(name, _largest_weight(objective), _mean(norms[index]), _mean(values[index]), len(norms[index]))
        for index, (name, objective) in enumerate(zip(terms.names, terms.objectives, strict=True))
    ]
    return named, {(terms.names[one], terms.names[other]): _mean(each) for (one, other), each in cosines.items()}


def judge(
    terms: Sequence[TermGradient], cosines: dict[tuple[str, str], float], paths: Sequence[str]
) -> Iterator[Finding]:
    """Say what the gradients mean.

    Args:
        terms: The gradient of each objective.
        cosines: Mean cosine of each two of them.
        paths: Key path of the weight of each of them.
    """
    figures = {f"{one.name}_gradient_norm": one.weighted for one in terms if math.isfinite(one.norm)}
    figures |= {f"{one}_{other}_cosine": value for (one, other), value in cosines.items()}
    present = [(one, path) for one, path in zip(terms, paths, strict=True) if NOTHING < one.weighted < math.inf]
    for one, path in zip(terms, paths, strict=True):
        if one.weight and not one.batches:
            yield Finding("gradients", "skipped", f"nothing counts for {one.name} in the first {BATCHES} batches")
        elif one.weight and not math.isfinite(one.norm):
            yield _not_finite(one)
        elif one.weight and one.weighted <= NOTHING:
            yield _nothing(one, path)
    if not present:
        return
    largest = max((one for one, _ in present), key=lambda one: one.weighted)
    for one, path in present:
        if (ratio := largest.weighted / one.weighted) > DROWNED:
            yield Finding(
                "gradients",
                "warning",
                f"the gradient of {largest.name} is {ratio:,.0f} times as large as that of {one.name} (each with its "
                f"weight): {one.name} hardly changes a step.",
                f"{path}: {one.weight * ratio:.3g} would make them equal; it is {one.weight:g}.",
                figures,
            )
    for (name, other), cosine in cosines.items():
        if cosine < AGAINST:
            text = f"{name} and {other} work against each other: the cosine of their gradients is {cosine:.2f}."
            yield Finding("gradients", "warning", text, "Look whether they can agree.", figures)
    said = ", ".join(f"{one.name} {one.weighted:.3g}" for one, _ in present)
    angles = ", ".join(f"{one} and {other} {value:.2f}" for (one, other), value in cosines.items())
    text = f"norm of each objective's gradient, with its weight: {said}{f'; cosine: {angles}' if angles else ''}"
    yield Finding("gradients", "ok", text, figures=figures)


def _not_finite(one: TermGradient) -> Finding:
    """Return what to say of an objective whose gradient is NaN or infinite."""
    text = f"the gradient of {one.name} is not finite when training starts; its value is {one.value:.4g}."
    advice = "Look for NaN in weights and data, or compute in another precision (bf16 in place of fp16, or none)."
    return Finding("gradients", "mistake", text, advice)


def _nothing(one: TermGradient, path: str) -> Finding:
    """Return what to say of an objective without a gradient."""
    if abs(one.value) < 1e-9:
        text = f"{one.name} and its gradient are 0 when training starts: there is nothing to learn from it."
        return Finding("gradients", "warning", text, "Is the student a copy of the teacher?")
    return Finding(
        "gradients",
        "mistake",
        f"{one.name} has no gradient: its value is {one.value:.4g} and no parameter of the student changes it.",
        f"Remove it, freeze less, or let it compare what the student can change ({path.removesuffix('.weight')}).",
    )


@contextmanager
def _alone(trainer: DistillationTrainer, index: int) -> Iterator[None]:
    """Context manager: weight 1 for one objective, 0 for the others."""
    terms = trainer.terms
    before = terms.objectives
    terms.objectives = tuple(replace(one, weight=float(place == index)) for place, one in enumerate(before))
    try:
        yield
    finally:
        terms.objectives = before


def _largest_weight(objective: Objective) -> float:
    weight = objective.weight
    return max(weight.start, weight.end) if isinstance(weight, Schedule) else float(weight)


def _dot(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    """Return the scalar product of two gradients, summed in float64; None stands for zeros."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    parts = [torch.dot(a.reshape(-1).float(), b.reshape(-1).float()).double() for a, b in both]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
