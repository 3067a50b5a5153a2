"""Store the targets of a teacher for a `DistillationTrainer`, as a run does for a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets

from hf_distill import parallel
from hf_distill.cache.replay import TrainingData
from hf_distill.data import column, with_length
from hf_distill.data.two_tokenizers import MARK
from hf_distill.errors import UserError
from hf_distill.models.inspection import LABELS, RENAMED_LABELS, base_model
from hf_distill.models.needs import TaskFacts
from hf_distill.models.pair import Pair
from hf_distill.models.target_model import ROW, TargetSource
from hf_distill.objectives import Objective
from hf_distill.objectives.fit import check_fit
from hf_distill.tasks import Task
from hf_distill.teachers.base import Storing, Teacher

logger = logging.getLogger(__name__)


def store_targets(
    entry: Teacher,
    model: Any,
    student: Any,
    data: TrainingData,
    *,
    task: Task,
    objectives: Sequence[Objective],
    facts: TaskFacts,
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
        facts: What objectives may ask about the data.
        takes: Columns that the models and the layout read. With `args.remove_unused_columns` the collator gets these
            alone, else all columns.
        tokenizer: Tokenizer of both models, if it is known.
        max_length: Maximum length of the texts, if they were tokenised here.
        args: Device, precision, batch size and `remove_unused_columns`.

    Raises:
        UserError: An objective needs what is not stored, or the data is not a `datasets.Dataset`, or its inputs change
            with every epoch.
    """
    own: Any = base_model(student).config
    theirs: Any = base_model(model).config
    left_out: Any = getattr(data.layout, "left_out", ())
    pair: Any = Pair(theirs, own, tokenizer, None, theirs, own, max_length, left_out)
    entry.check_task(task)
    entry.check_pair(task, objectives, pair)
    gives = entry.gives(task, objectives, pair)
    for index, objective in enumerate(objectives):
        check_fit(objective, gives, facts, (own, theirs), f"objectives[{index}]")
    wanted = {*takes, *LABELS, *RENAMED_LABELS, "length"} if args.remove_unused_columns else None
    splits: dict[str, Any] = data.eval if isinstance(data.eval, dict) else {"": data.eval}
    known = [_readable(split, wanted) for split in splits.values() if split is not None]
    train = _readable(data.train, wanted)
    view: Any = replace(data, train=train, eval=datasets.concatenate_datasets(known) if known else train.select([]))
    whole: Any = entry.freeze(view)

    def say(text: str) -> None:
        if parallel.is_first():
            logger.info("targets: %s", text)

    cache = entry.cache_for(model, Storing(whole, task, objectives, pair, args, say))
    cache.fill(args)
    stored, source = cache.apply(whole)
    trained = data.train if whole.train is view.train else whole.train
    return replace(stored, train=_with_rows(trained, stored.train), eval=_with_rows(data.eval, stored.eval)), source


def _readable(split: Any, wanted: set[str] | None) -> datasets.Dataset:
    """Return the columns of a split that decide what is stored: those that the collator gets; all if None."""
    if not isinstance(split, datasets.Dataset):
        raise UserError(
            f"teacher: to store its targets, wanted a datasets.Dataset to train and evaluate on, found a "
            f"{type(split).__name__}."
        )
    if split.format["type"] == "custom":
        raise UserError(
            "teacher: a data set with a transform (set_transform) may give other rows in every epoch, and stored "
            "targets belong to one of them. Apply it once (map), or take the teacher itself."
        )
    if MARK in split.column_names:
        raise UserError(
            f"teacher: with tokens of its own for the teacher (column {MARK}), only a recipe stores targets "
            "(teacher: {name: cached, ...}). Take the teacher itself here."
        )
    names = [name for name in split.column_names if name != ROW and (wanted is None or name in wanted)]
    return with_length(split.select_columns(names))


def _with_rows(own: Any, stored: datasets.Dataset) -> Any:
    """Return the user's own split, or several, with the row of the cache of every example.

    Args:
        own: One split, or several in a dict; None for none.
        stored: The same examples, one split after the other, with that column.
    """
    if own is None:
        return None
    rows, start, found = column(stored, ROW).to_numpy(), 0, {}
    for name, split in (own if isinstance(own, dict) else {"": own}).items():
        plain = split.remove_columns([ROW]) if ROW in split.column_names else split
        found[name] = plain.add_column(ROW, rows[start : start + len(split)])
        start += len(split)
    return found if isinstance(own, dict) else found[""]
