"""Which teacher of an ensemble teaches each row, by a column of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.tasks import Prepared, Setup, Task


def read_route(beside: Mapping[str, Dataset], column: str, names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return split -> number of each row's teacher.

    Args:
        beside: The splits with the column.
        column: Its name.
        names: Names of the teachers.

    Raises:
        UserError: A row names no teacher.
    """
    known = {name: number for number, name in enumerate(names)}
    found = {}
    for split, rows in beside.items():
        if column not in rows.column_names:
            raise UserError(
                f"the {split} split has no column '{column}' that names the teacher of each row; wanted it in train "
                "and eval.",
                key="route",
            )
        given = [str(one) if one is not None else None for one in rows[column][:]]
        wrong = [row for row, name in enumerate(given) if name not in known]
        if wrong:
            more = f", as {len(wrong) - 1:,} more rows" if len(wrong) > 1 else ""
            raise UserError(
                f"row {wrong[0]} of the {split} split, counted from 0, names {given[wrong[0]]!r} in column '{column}'"
                f"{more}, and there is no such teacher. There are {', '.join(names)}.",
                key="route",
            )
        found[split] = np.array([known[str(name)] for name in given], dtype=np.int64)
    return found


def routed(
    task: Task,
    splits: Mapping[str, Dataset],
    beside: Mapping[str, Dataset],
    setup: Setup,
    column: str,
    names: Sequence[str],
) -> Prepared:
    """Return the prepared data with the number of each row's teacher, in the column `averaging.ROUTE`.

    The arguments are those of `Teacher.prepare`, and of `read_route`.

    Raises:
        UserError: A row names no teacher.
    """
    from hf_distill.data.two_tokenizers import PREFIX
    from hf_distill.models.target_model import ROW
    from hf_distill.teachers.base import under
    from hf_distill.teachers.ensemble.averaging import ROUTE
    from hf_distill.teachers.given.cache import numbered

    with under("teacher"):
        numbers = read_route(beside, column, names)
    prepared = task.prepare(numbered(splits), setup)

    own, by_split = prepared.for_teacher, {"train": prepared.train, "eval": prepared.eval}
    found = {name: numbers[name][np.array(split[ROW][:])] for name, split in by_split.items()}
    plain = {name: split.remove_columns(ROW).add_column(ROUTE, found[name]) for name, split in by_split.items()}
    if own is None:
        return replace(prepared, **plain)
    # The same examples in the same order, and beside the tokens of the teacher's own in the student's batches.
    both = {name: split.add_column(f"{PREFIX}{ROUTE}", found[name]) for name, split in plain.items()}
    theirs = {name: getattr(own, name).add_column(ROUTE, found[name]) for name in found}
    return replace(prepared, **both, for_teacher=replace(own, **theirs))
