"""Trainings on labels alone: which rows have a label, and a baseline as long as the training of its student."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.objectives import Labels
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.training.deciding import LISTENING

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    from hf_distill.objectives import Objective
    from hf_distill.rows.base import RowLayout
    from hf_distill.tasks import Prepared

logger = logging.getLogger(__name__)

# How often a baseline with fewer rows than the student is judged while it trains: enough to find its best.
EVALUATIONS = 10
FEWEST_EVALUATIONS = 4


def on_labels_alone(objectives: Iterable[Objective]) -> bool:
    """Whether a row without a label adds nothing to any of these objectives."""
    return all(objective.needs().labels for objective in objectives)


def has_label(split: Dataset) -> np.ndarray[Any, Any]:
    """Return which rows have a label, bool `(rows,)`: of a row with several (tokens, classes, values), at least one.

    A split without a column of labels has them made with its batches (masked tokens), or none at all: every row counts.
    """
    if "labels" not in split.column_names:
        return np.ones(len(split), dtype=bool)
    chunks = column(split, "labels").chunks
    return np.concatenate([_known(chunk) for chunk in chunks]) if chunks else np.zeros(0, dtype=bool)


def is_labelled(split: Any, layout: RowLayout) -> bool | None:
    """Return whether a row has a label; None where labels are made with the batches, as of masked tokens.

    Args:
        split: A `datasets.Dataset`.
        layout: Which logits count.
    """
    if "labels" in split.column_names:
        return not len(split) or any(_known(chunk).any() for chunk in column(split, "labels").chunks)
    if {"label", "label_ids"} & set(split.column_names):  # which collators of Transformers rename
        return True
    return False if isinstance(layout, ExampleRows | SimilarityRows) else None


def _known(values: pa.Array) -> np.ndarray[Any, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        known = np.zeros(len(values), dtype=bool)
        known[pc.list_parent_indices(values).to_numpy()[_known(values.flatten())]] = True
        return known
    # Numbers of classes and tokens are 0 or more: -100 is no label, and -1 (`label_names.UNLABELLED`) one nobody knows.
    floats = pa.types.is_floating(values.type)
    known = pc.invert(pc.is_nan(values)) if floats else pc.greater_equal(values, 0)
    found: np.ndarray[Any, Any] = pc.fill_null(known, False).to_numpy(zero_copy_only=False)
    return found


def drawn_from(split: Dataset, objectives: Iterable[Objective]) -> Dataset:
    """Return the rows that a training with these objectives draws from: those with a label, if it is on labels alone.

    A batch with few labels is a small batch, and its training learns less in the same number of steps.
    """
    if not on_labels_alone(objectives):
        return split
    known = has_label(split)
    return split if known.all() or not known.any() else split.select(np.flatnonzero(known))


def labels_of(prepared: Prepared) -> dict[str, int]:
    """Return how many rows of each split have a label, as a report gives it."""
    return {
        "train_rows_with_label": int(has_label(prepared.train).sum()) if prepared.labelled else 0,
        "eval_rows_with_label": int(has_label(prepared.eval).sum()) if prepared.evaluator.names else 0,
    }


def in_words(prepared: Prepared) -> str | None:
    """Return how many rows have a label; None where all have one."""
    train, judged = labels_of(prepared).values()
    rows = len(prepared.train), len(prepared.eval)
    if (train, judged) == rows:
        return None
    text = f"labels: {train:,} of {rows[0]:,} train rows and {judged:,} of {rows[1]:,} eval rows have one"
    return text if train == rows[0] else f"{text}. The other train rows are for what the teacher says alone"


def check_labelled(split: Any, objectives: Sequence[Objective]) -> None:
    """Warn of a training on labels alone whose batches would hold rows without a label.

    Where no row has one, `objectives.fit.check_fit` refuses the training.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or not objectives or not on_labels_alone(objectives):
        return
    known = has_label(split)
    if not known.all():
        logger.warning(
            "all objectives count labels, and only %s of the %s rows of train_dataset have one: the batches hold as "
            "few. Train on these rows alone (train_dataset.filter(...)).",
            f"{int(known.sum()):,}",
            f"{len(known):,}",
        )


def label_objective(objectives: Iterable[Objective]) -> Labels:
    """Return the label loss of a baseline: that of the student, its settings too (label smoothing), at weight 1."""
    own = (objective for objective in objectives if type(objective) is Labels)
    return replace(next(own, Labels()), weight=1.0)


def steps_of(history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many optimiser steps a finished training took."""
    return max((int(entry["step"]) for entry in history if "step" in entry), default=0)


def as_long_as(
    history: Sequence[Mapping[str, Any]], training: Mapping[str, Any], *, judged: int, batch: int
) -> dict[str, Any]:
    """Return the arguments with which fewer rows are trained on for as many steps as a student took.

    Its epochs are shorter, so what happens once an epoch of the student's happens at a number of steps instead. It is
    judged up to `EVALUATIONS` times while it trains, fewer where that would take longer than the training itself, and
    never less often than the student: trained on few rows for long, it may be best before its end.

    Args:
        history: `log_history` of the student.
        training: Its arguments.
        judged: Rows of the eval split.
        batch: Rows of an optimiser step.
    """
    steps = steps_of(history)
    own = sum("eval_runtime" in entry for entry in history)
    affordable = steps * batch // max(judged, 1)
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
