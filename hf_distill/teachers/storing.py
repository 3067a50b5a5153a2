"""Store the targets of a teacher for a `DistillationTrainer`, as a run does for a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets

from hf_distill import parallel
from hf_distill.cache.replay import TrainingData
from hf_distill.data import with_length
from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model
from hf_distill.models.pair import Pair
from hf_distill.models.target_model import TargetSource
from hf_distill.objectives import Objective
from hf_distill.tasks import Task
from hf_distill.teachers.base import Storing, Teacher

logger = logging.getLogger(__name__)

# Columns of labels; a collator may rename them.
LABELS = ("label", "label_ids", "labels", "start_positions", "end_positions")


def store_targets(
    entry: Teacher,
    model: Any,
    student: Any,
    data: TrainingData,
    *,
    task: Task,
    objectives: Sequence[Objective],
    takes: frozenset[str],
    tokenizer: Any,
    max_length: int | None,
    args: Any,
) -> tuple[TrainingData, TargetSource]:
    """Store the targets that are not stored yet; return the data with targets, and the source that reads them.

    Args:
        entry: The entry that says where and how targets are stored.
        model: The teacher.
        student: The student.
        data: Splits, collator and layout of the training; `eval` may be None, or several splits in a dict.
        task: The task of the student.
        objectives: The objectives that use the targets.
        takes: Columns that the models and the layout read.
        tokenizer: Tokenizer of both models, if it is known.
        max_length: Maximum length of the texts, if they were tokenised here.
        args: Device, precision and batch size.

    Raises:
        UserError: The data is not a `datasets.Dataset`, or its inputs change with every epoch.
    """
    own: Any = base_model(student).config
    theirs: Any = base_model(model).config
    left_out: Any = getattr(data.layout, "left_out", ())
    pair: Any = Pair(theirs, own, tokenizer, None, theirs, own, max_length, left_out)
    entry.check_task(task)
    entry.check_pair(task, objectives, pair)
    splits: dict[str, Any] = data.eval if isinstance(data.eval, dict) else {"": data.eval}
    known = [_readable(split, takes) for split in splits.values() if split is not None]
    train = _readable(data.train, takes)
    whole: Any = replace(data, train=train, eval=datasets.concatenate_datasets(known) if known else train.select([]))
    whole = entry.freeze(whole)

    def say(text: str) -> None:
        if parallel.is_first():
            logger.info("targets: %s", text)

    cache = entry.cache_for(model, Storing(whole, task, objectives, pair, args, say))
    cache.fill(args)
    stored, source = cache.apply(whole)
    return replace(stored, eval=_apart(stored.eval, data.eval)), source


def _readable(split: Any, takes: frozenset[str]) -> datasets.Dataset:
    if not isinstance(split, datasets.Dataset):
        raise UserError(
            f"teacher: to store its targets, wanted a datasets.Dataset to train and evaluate on, found a "
            f"{type(split).__name__}."
        )
    names = {*takes, *LABELS, "length"}
    return with_length(split.select_columns([name for name in split.column_names if name in names]))


def _apart(whole: datasets.Dataset, before: Any) -> Any:
    """Return the concatenated eval data in its form `before`: None, one split, or several in a dict."""
    if before is None:
        return None
    if not isinstance(before, dict):
        return whole
    found, start = {}, 0
    for name, split in before.items():
        found[name] = whole.select(range(start, start + len(split)))
        start += len(split)
    return found
