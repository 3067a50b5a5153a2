"""Is the data sorted, where the order matters?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.data.sources import CUT
from hf_distill.run.doctor.finding import Finding

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.run.doctor.opened import Opened

NAME = "order"
# Fewer rows may be sorted by chance.
FEWEST = 20


def order(opened: Opened) -> Iterator[Finding]:
    """Yield whether the train rows are sorted by label or by length, and whether anything shuffles them."""
    prepared = opened.prepared
    own = prepared.train.select(range(len(prepared.train) - prepared.transfer_rows))
    found = _sorted_by(own)
    sequential = any(
        {**opened.run.training, **stage.training}.get("train_sampling_strategy") == "sequential"
        for stage in opened.recipe.plan
    )
    if not found:
        yield Finding(NAME, "ok", "the train rows are in no order of labels or lengths")
    elif sequential:
        yield Finding(
            NAME,
            "warning",
            f"the train rows are sorted by {found}, and train_sampling_strategy: sequential trains in that order: each "
            "batch pulls to one side",
            "Leave it out, or shuffle the file.",
        )
    elif _apart(own, prepared.eval):
        yield Finding(
            NAME,
            "warning",
            f"the train rows are sorted by {found}, and all eval rows lie beyond them: eval was cut from the end",
            f"Let the run draw them: {CUT}.",
        )
    else:
        yield Finding(NAME, "ok", f"the train rows are sorted by {found}, and shuffled for training")


def _sorted_by(split: Dataset) -> str:
    """Return by what the rows are sorted, `label` or `length`; empty if by nothing."""
    for name, word in (("labels", "label"), ("length", "length")):
        values = _numbers(split, name)
        if values is not None and len(values) >= FEWEST and _is_sorted(values, name == "labels"):
            return word
    return ""


def _numbers(split: Dataset, name: str) -> NDArray[Any] | None:
    if name not in split.column_names:
        return None
    values = column(split, name)
    return None if hasattr(values.type, "value_type") else np.asarray(values.to_numpy())


def _is_sorted(values: NDArray[Any], grouped: bool) -> bool:
    """Return whether values rise or fall throughout; or, `grouped`, whether equal ones stand together."""
    distinct = len(np.unique(values))
    if distinct < 2 or (not grouped and distinct < FEWEST // 2):
        return False
    steps = np.diff(values)
    monotone = bool((steps >= 0).all() or (steps <= 0).all())
    return monotone or (grouped and distinct <= len(values) // FEWEST and int((steps != 0).sum()) == distinct - 1)


def _apart(train: Dataset, evaluated: Dataset) -> bool:
    """Return whether all eval rows lie beyond one end of the sorted train rows."""
    for name in ("labels", "length"):
        ours, theirs = _numbers(train, name), _numbers(evaluated, name)
        if ours is None or theirs is None or not _is_sorted(ours, name == "labels"):
            continue
        return bool(theirs.min() >= ours.max() or theirs.max() <= ours.min())
    return False
