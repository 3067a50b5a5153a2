"""Trainings on labels alone: which rows have a label, and how long a baseline trains on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.data.labelled import has_label, known_values
from hf_distill.models.inspection import RENAMED_LABELS
from hf_distill.objectives import Labels
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.training.deciding import LISTENING

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.objectives import Objective
    from hf_distill.rows.base import RowLayout
    from hf_distill.tasks import Prepared

logger = logging.getLogger(__name__)

# How often a baseline with fewer rows than the student is evaluated during training: often enough to find its best.
EVALUATIONS = 10
FEWEST_EVALUATIONS = 4


def on_labels_alone(objectives: Iterable[Objective]) -> bool:
    """Return whether all objectives learn from labels only, so that a row without a label adds nothing."""
    return all(objective.needs().labels for objective in objectives)


def is_labelled(split: Any, layout: RowLayout) -> bool | None:
    """Return whether any row has a label; None if labels are made with the batches, as for masked tokens.

    Args:
        split: A `datasets.Dataset`.
        layout: Which logits count.
    """
    if "labels" in split.column_names:
        return not len(split) or any(known_values(chunk).any() for chunk in column(split, "labels").chunks)
    if not set(RENAMED_LABELS).isdisjoint(split.column_names):
        return True
    return False if isinstance(layout, ExampleRows | SimilarityRows) else None


def drawn_from(split: Dataset, objectives: Iterable[Objective]) -> Dataset:
    """Return the rows to train on: those with a label if the objectives learn from labels only, else all.

    Unlabelled rows would make the batches effectively smaller, and the training would learn less in as many steps.
    """
    if not on_labels_alone(objectives):
        return split
    known = has_label(split)
    return split if known.all() or not known.any() else split.select(np.flatnonzero(known))


def labels_of(prepared: Prepared) -> dict[str, int]:
    """Return how many rows of each split have a label, and how many come from `data.transfer`, by the report's keys."""
    return {
        "train_rows_with_label": int(has_label(prepared.train).sum()) if prepared.labelled else 0,
        "eval_rows_with_label": int(has_label(prepared.eval).sum()) if prepared.evaluator.names else 0,
        **({"transfer_rows": prepared.transfer_rows} if prepared.transfer_rows else {}),
    }


def describe_labels(prepared: Prepared, answers: Callable[[int], int | None]) -> str | None:
    """Return a line that says how many rows have a label; None if all have one.

    Args:
        prepared: The data.
        answers: `Teacher.answers`.
    """
    train, evaluated, *_ = labels_of(prepared).values()
    rows, transfer = (len(prepared.train), len(prepared.eval)), prepared.transfer_rows
    if (train, evaluated) == rows:
        return None
    text = f"labels: {train:,} of {rows[0]:,} train rows and {evaluated:,} of {rows[1]:,} eval rows have one"
    if train == rows[0]:
        return text
    others = rows[0] - train
    source = (
        ""
        if not transfer
        else ", all from data.transfer"
        if transfer == others
        else f" ({transfer:,} from data.transfer)"
    )
    if (most := answers(others)) is not None:
        return f"{text}. Of the other {others:,}{source}, the teacher answers at most {most:,}: only these are learned"
    return f"{text}. From the other {others:,}{source}, only the teacher's targets are learned"


def check_labelled(split: Any, objectives: Sequence[Objective]) -> None:
    """Warn if a training on labels alone has rows without a label.

    If no row has one, `objectives.fit.check_fit` refuses the training.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or not objectives or not on_labels_alone(objectives):
        return
    known = has_label(split)
    if not known.all():
        logger.warning(
            "all objectives learn from labels, and only %s of the %s rows of train_dataset have one: the other rows "
            "add nothing to a batch. Train on these rows alone (train_dataset.filter(...)).",
            f"{int(known.sum()):,}",
            f"{len(known):,}",
        )


def label_objective(objectives: Iterable[Objective]) -> Labels:
    """Return the label loss of a baseline: the student's, with its settings such as label smoothing, at weight 1."""
    own = (objective for objective in objectives if type(objective) is Labels)
    return replace(next(own, Labels()), weight=1.0)


def steps_of(history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many optimiser steps a finished training took."""
    return max((int(entry["step"]) for entry in history if "step" in entry), default=0)


def same_steps(
    history: Sequence[Mapping[str, Any]], training: Mapping[str, Any], *, eval_rows: int, batch: int
) -> dict[str, Any]:
    """Return training arguments with which a baseline on fewer rows takes as many steps as the student.

    Its epochs are shorter, so what the student does once per epoch is done every so many steps instead. It is evaluated
    up to `EVALUATIONS` times, fewer times if that would take longer than the training itself, and at least as often as
    the student: trained on few rows for long, it may be best before its end.

    Args:
        history: `log_history` of the student.
        training: The student's training arguments.
        eval_rows: Number of rows of the eval split.
        batch: Number of rows of an optimiser step.
    """
    steps = steps_of(history)
    own = sum("eval_runtime" in entry for entry in history)
    affordable = steps * batch // max(eval_rows, 1)
    times = max(own, min(EVALUATIONS, max(FEWEST_EVALUATIONS, affordable)))
    if _word(training, "lr_scheduler_type") in LISTENING:
        times = max(own, 1)
    every = max(1, steps // times)
    arguments: dict[str, Any] = {"max_steps": steps, "eval_strategy": "steps", "eval_steps": every}
    saved = _word(training, "save_strategy")
    if saved == "epoch" or (training.get("load_best_model_at_end") and saved == "steps"):
        arguments |= {"save_strategy": "steps", "save_steps": every}
    return arguments


def _word(training: Mapping[str, Any], key: str) -> str:
    value = training.get(key, "")
    return str(getattr(value, "value", value))
