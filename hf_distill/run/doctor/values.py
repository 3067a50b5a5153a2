"""Checks the objectives' values at the student's start against those at the teacher: is there anything to learn?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_distill.errors import UserError, first_line
from hf_distill.models import sharding
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.gradients import batches_of

if TYPE_CHECKING:
    from hf_distill.objectives import Objective
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.trainer import DistillationTrainer

BATCHES = 8
# A student whose objective can fall by less than this share of its value has nothing to learn from it.
LEAST_GAP = 0.01


def values(opened: Opened) -> Iterator[Finding]:
    """Compare each objective of the first stage at the student's start with its value for the teacher as student."""
    objectives = opened.recipe.plan[0].objectives
    if any(objective.needs_teacher for objective in objectives):
        _ = opened.trained_teacher
    trainer = opened.new_trainer()
    batches = batches_of(trainer, BATCHES)
    start = measure(trainer, batches)
    floors, why = _floors(opened, batches)
    for name, objective in zip(trainer.terms.names, objectives, strict=True):
        if name in start:
            floor = floors.get(name) if _on_answers(objective) else None
            yield judge(name, start[name], floor, why, imitates=objective.needs_teacher)


def judge(name: str, start: float, floor: float | None, why: str = "", *, imitates: bool = True) -> Finding:
    """Say what the value of an objective means.

    Args:
        name: Of the objective.
        start: Its value for the student as training starts.
        floor: Its value for the teacher in the student's place; None if that is not known.
        why: Why it is not known.
        imitates: Whether the teacher's value is the least that there is; else that of a good model (`labels`).
    """
    if not math.isfinite(start) or (floor is not None and not math.isfinite(floor)):
        text = f"{name} is {start:.4g} when training starts"
        text += "." if floor is None else f", and {floor:.4g} for the teacher itself."
        advice = "Look for NaN in weights and data, or compute in another precision (bf16 in place of fp16, or none)."
        return Finding("start", "mistake", text, advice)
    if floor is None:
        text = f"{name} is {start:.4g} when training starts{f'; at the teacher it is not known: {why}' if why else ''}"
        return Finding("start", "ok", text, figures={f"{name}_start": start})
    figures = {f"{name}_start": start, f"{name}_floor": floor, f"{name}_gap": start - floor}
    text = f"{name} is {start:.4g} when training starts, and {floor:.4g} for the teacher itself"
    if start - floor > LEAST_GAP * max(abs(start), 1e-6):
        return Finding("start", "ok", f"{text}: {start - floor:.4g} to learn", figures=figures)
    if not imitates:
        text += ": the teacher is no better than the student is already."
        return Finding("start", "warning", text, "Is it the right teacher, trained on this task?", figures)
    advice = "Is the student a copy of the teacher, or trained already? Then this objective teaches it nothing more."
    return Finding("start", "warning", f"{text}: there is nothing to learn.", advice, figures)


def measure(trainer: DistillationTrainer, batches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the value of each objective for the trainer's student, by name, without weights and dropout.

    Objectives for which nothing counts in these batches are left out.

    Args:
        trainer: Of the student.
        batches: Micro-batches.
    """
    terms, model = trainer.terms, sharding.unwrapped(trainer.model)
    model.train(False)
    terms.go_to_end()
    sums = counts = torch.zeros(len(terms), dtype=torch.float64)
    for batch in batches:
        own = trainer.evaluate_batch(model, dict(batch))[0]
        sums = sums + own.sum(0).double().cpu()
        counts = counts + trainer.weighing.of_terms(trainer._count([batch])).double().cpu()
    means = (sums / counts).tolist()
    return {name: means[index] for index, name in enumerate(terms.names) if counts[index] > 0}


def _floors(opened: Opened, batches: Sequence[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """Return each objective's value for a copy of the teacher as student, by name; if that cannot be, why."""
    try:
        return measure(opened.new_trainer(_as_student(opened)), batches), ""
    except CannotCheck as error:
        return {}, str(error)
    except (UserError, ValueError, TypeError, RuntimeError, IndexError) as error:  # it has not the student's shape
        return {}, f"the teacher does not fit in the student's place ({first_line(error)})"


def _as_student(opened: Opened) -> Any:
    """Return a copy of the teacher that can take the student's place.

    Raises:
        CannotCheck: There is none: it reads other inputs, or is not one model with the student's classes.
    """
    if not any(objective.needs_teacher for objective in opened.recipe.plan[0].objectives):
        raise CannotCheck("no objective needs a teacher")
    source, data = opened.teacher, opened.prepared
    if len(source.models) != 1:
        raise CannotCheck("the teacher is not one model")
    if data.for_teacher is not None or data.in_teacher_ids is not None or opened.recipe.teacher.own_inputs:
        raise CannotCheck("the teacher reads other inputs than the student")
    (model,) = source.models.values()
    ours, theirs = (getattr(getattr(one, "config", None), "id2label", None) for one in (opened.student, model))
    if ours != theirs:
        raise CannotCheck("the teacher has its classes in another order")
    copied: Any = copy.deepcopy(model)
    return copied.requires_grad_(True).float() if not getattr(copied, "is_quantized", False) else copied


def _on_answers(objective: Objective) -> bool:
    """Return whether an objective compares what models answer, so that the teacher's own answer is the best."""
    return objective.reads == "answers"
