"""Load the data that a recipe names as `train` and `eval`, with columns named by their role."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.columns import default_columns, find_columns
from hf_distill.data.example_columns import EXAMPLE_ROLES, example_roles, read_examples
from hf_distill.data.holdout import check_size, hold_out
from hf_distill.data.joined import join_columns
from hf_distill.data.shared_rows import warn_of_shared_rows, warn_of_shared_transfer
from hf_distill.data.sources import find_source
from hf_distill.data.splits import SPLITS, Splits
from hf_distill.data.transfer import TRANSFER
from hf_distill.data.transfer_rows import as_data, check_transfer, of_transfer, transfer_columns
from hf_distill.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.data.section import Data

PEEK = 1_000
"""Rows of a large split that `--check` looks at."""
# Prefix of columns that have no role and are loaded all the same.
BESIDE = "beside/"
# Stands for all columns, under their own names.
ALL = "*"


def check_data(data: Data, roles: Mapping[str, bool], label: str = "label") -> None:
    """Check the `data` section of a recipe without reading the data.

    Args:
        data: The recipe's section.
        roles: The task's column roles.
        label: Role of the labels.

    Raises:
        UserError: A role or split is unknown, a file is of an unknown format, a local path does not exist.
    """
    about = example_roles(data.columns, roles)
    mistakes = (
        [
            UserError(
                f"this task has no such role.{did_you_mean(role, (*roles, *EXAMPLE_ROLES))}", key=f"columns.{role}"
            )
            for role in data.columns
            if role not in roles and role not in about
        ]
        + [
            UserError("wanted one column.", key=f"columns.{role}")
            for role in about
            if isinstance(data.columns[role], list)
        ]
        + [
            UserError(f"unknown split. Wanted: {' and '.join(SPLITS)}.", key=f"splits.{split}")
            for split in data.splits
            if split not in SPLITS
        ]
    )
    if mistakes:
        raise UserError.together(mistakes)
    if not isinstance(data.splits["train"], str):
        raise UserError("wanted the name of a split. Only eval can be a number or a share.", key="splits.train")
    if not isinstance(size := data.splits["eval"], str):
        check_size(size)
    source = find_source(data)
    for split in SPLITS:
        source.files_of(source.instruction(data, split), split)
    if data.transfer is not None:
        check_transfer(data, {**roles, **about}, label)


def load_splits(
    data: Data, roles: Mapping[str, bool], also: Sequence[str] = (), *, label: str = "label"
) -> dict[str, Dataset]:
    """Load `train`, `eval` and, if the recipe names one, `transfer`: columns renamed to roles, others dropped.

    The transfer rows have no label. Before the task prepares the data, `append_transfer` adds them to `train`.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.
        also: Further columns to load if a split has them; `apart` separates them from those with a role. `*` stands
            for all columns.
        label: Role of the labels.

    Raises:
        UserError: The data cannot be found or read, a split is empty or missing, a column is missing.
    """
    check_data(data, roles, label)
    read = Splits(data, roles)
    splits = _by_role({split: read.whole(split) for split in _named(data)}, data, roles, also)
    if data.transfer is not None:
        with of_transfer():
            rows = Splits(as_data(data, label), roles, (TRANSFER,)).whole(TRANSFER)
            splits[TRANSFER] = _transfer(rows, data, roles, also, label)
    return _complete(read_examples(splits, whole=True, columns=data.columns), data, roles, read)


@dataclass(frozen=True)
class Sample:
    """The rows that `--check` looks at.

    Attributes:
        splits: `train`, `eval` and `transfer`, columns renamed to roles; no `eval` if it is to be held out of a large
            `train`, and no `transfer` if it is on the Hub.
        whole: Whether `train` and `eval` are all rows of the data.
        whole_transfer: Whether `transfer` has all transfer rows.
    """

    splits: Mapping[str, Dataset]
    whole: bool
    whole_transfer: bool = True


def peek(data: Data, roles: Mapping[str, bool], also: Sequence[str] = (), *, label: str = "label") -> Sample | None:
    """Return small data as `load_splits` does, or the first rows of large data; None if the data is on the Hub.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.
        also: Further columns to load if a split has them; `apart` separates them from those with a role.
        label: Role of the labels.

    Raises:
        UserError: As `load_splits`, as far as these rows show it.
    """
    check_data(data, roles, label)
    read = Splits(data, roles)
    found = {split: sample for split in _named(data) if (sample := _first_rows(read, split)) is not None}
    if len(found) < len(_named(data)):
        return None
    splits = _by_role({split: rows for split, (rows, _) in found.items()}, data, roles, also)
    whole, whole_transfer = all(all_of_it for _, all_of_it in found.values()), True
    if data.transfer is not None:
        with of_transfer():
            rows, whole_transfer = _first_rows(Splits(as_data(data, label), roles, (TRANSFER,)), TRANSFER) or (
                None,
                False,
            )
            if rows is not None:
                splits[TRANSFER] = _transfer(rows, data, roles, also, label)
    splits = read_examples(splits, whole=whole, columns=data.columns)
    return Sample(_complete(splits, data, roles, read) if whole else splits, whole, whole_transfer)


def _first_rows(read: Splits, split: str) -> tuple[Dataset, bool] | None:
    """Return the rows of a split that `--check` looks at, and whether they are all; None if it is on the Hub."""
    if not read.source.files and not os.path.exists(read.source.path):
        return None
    return read.sample(split, PEEK)


def apart(splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """Return the columns that have a role, and the further columns of the same rows under their own names."""
    roles, others = {}, {}
    for name, split in splits.items():
        beside = [one for one in split.column_names if one.startswith(BESIDE)]
        roles[name] = split.remove_columns(beside) if beside else split
        others[name] = split.select_columns(beside).rename_columns({one: one.removeprefix(BESIDE) for one in beside})
    return roles, others


def _complete(splits: dict[str, Dataset], data: Data, roles: Mapping[str, bool], read: Splits) -> dict[str, Dataset]:
    """Return the splits of the run; eval is held out of train if the recipe gives its size."""
    size = data.splits["eval"]
    if isinstance(size, str):
        warn_of_shared_rows(apart(splits)[0], read.wanted)
    else:
        splits |= hold_out(splits["train"], size, *_cut_by(splits["train"].column_names, roles))
    if TRANSFER in splits:
        warn_of_shared_transfer(apart(splits)[0])
    return splits


def _transfer(rows: Dataset, data: Data, roles: Mapping[str, bool], also: Sequence[str], label: str) -> Dataset:
    """Return the transfer rows with columns named by role, without labels; group and weight if they have them."""
    names, own = rows.column_names, data.transfer
    assert own is not None
    named = {role: data.columns[role] for role in example_roles(data.columns, roles)}
    about = {role: True for role, one in named.items() if role in own.columns or one in names}
    found = transfer_columns(data, names, {**roles, **about}, label)
    return _renamed(rows, _internal(found, about), rows, also)


def _named(data: Data) -> list[str]:
    """Return those of `train` and `eval` that the data has, not held out of another."""
    return [split for split in SPLITS if isinstance(data.splits[split], str)]


def _by_role(
    loaded: Mapping[str, Dataset], data: Data, roles: Mapping[str, bool], also: Sequence[str]
) -> dict[str, Dataset]:
    """Return the splits with columns named by role, and the further columns of `also` under a prefix."""
    names = {split: dataset.column_names for split, dataset in loaded.items()}
    whole = loaded
    if any(isinstance(one, list) for one in data.columns.values()):
        loaded, asked = join_columns(loaded, data.columns)
        names = {split: dataset.column_names for split, dataset in loaded.items()}
    else:
        asked = default_columns(data, names, roles)
    about = example_roles(data.columns, roles)
    found = find_columns(names, asked, {**roles, **about})
    return {split: _renamed(loaded[split], _internal(mine, about), whole[split], also) for split, mine in found.items()}


def _internal(mine: Mapping[str, str], about: Mapping[str, bool]) -> dict[str, str]:
    """Return column -> name in the split: its role, but for group and weight the name that no task reads."""
    return {column: EXAMPLE_ROLES[role] if role in about else role for column, role in mine.items()}


def _renamed(dataset: Dataset, mine: Mapping[str, str], whole: Dataset, also: Sequence[str]) -> Dataset:
    from datasets import concatenate_datasets

    # Select before renaming: a column that is dropped may have the name of a role.
    every = whole.column_names if ALL in also else ()
    others = list(dict.fromkeys(name for name in (*also, *every) if name in whole.column_names))
    alone = {name: f"{BESIDE}{name}" for name in others if name not in mine and name in dataset.column_names}
    new = {**{name: role for name, role in mine.items() if name != role}, **alone}
    renamed = dataset.select_columns([*mine, *alone]).rename_columns(new)
    for name in others:
        if name not in alone:  # the column also has a role, or was joined with others
            again = whole.select_columns([name]).rename_column(name, f"{BESIDE}{name}")
            renamed = concatenate_datasets([renamed, again], axis=1)
    return renamed


def _cut_by(columns: list[str], roles: Mapping[str, bool]) -> tuple[str, str | None]:
    """Return the role whose equal values stay together in `hold_out`, and the role of the labels."""
    inputs = "context" if "context" in columns else next(role for role in roles if role in columns)
    return inputs, next((role for role in ("label",) if role in columns), None)


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column as an Arrow array, without a Python object for each row."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def chunks_of(values: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """Yield the parts of a column, with the number of the first row of each: one array of all would be a copy."""
    start = 0
    for chunk in values.chunks:
        if len(chunk):
            yield start, chunk
        start += len(chunk)


# What `ordered_alike` has sorted: number of rows -> their order.
_ORDERS: ContextVar[dict[int, NDArray[np.int64]] | None] = ContextVar("orders", default=None)


@contextmanager
def ordered_alike() -> Iterator[None]:
    """Context manager: `by_length` sorts all splits of as many rows in the order of the first one."""
    token = _ORDERS.set({})
    try:
        yield
    finally:
        _ORDERS.reset(token)


# Whether `by_length` leaves the order as it is.
_AS_GIVEN: ContextVar[bool] = ContextVar("as_given", default=False)


@contextmanager
def in_data_order() -> Iterator[None]:
    """Context manager: `by_length` leaves splits in the order of the data."""
    token = _AS_GIVEN.set(True)
    try:
        yield
    finally:
        _AS_GIVEN.reset(token)


def by_length(split: Dataset) -> Dataset:
    """Return the split sorted by length; examples of equal length keep their order."""
    if _AS_GIVEN.get():
        return split
    order = np.argsort(column(split, "length").to_numpy(), kind="stable")
    if (orders := _ORDERS.get()) is not None:
        order = orders.setdefault(len(split), order)
    return split.select(order)


def with_length(split: Dataset) -> Dataset:
    """Return a tokenised split with the number of tokens of each example as a column, `length`.

    If an example is a list of texts, its length is that of the longest.
    """
    if "length" in split.column_names:
        return split
    found = [_lengths(ids) for _, ids in chunks_of(column(split, "input_ids"))]
    return split.add_column("length", np.concatenate(found) if found else np.zeros(0, np.int64))


def _lengths(ids: pa.Array) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = ids.value_lengths().to_numpy(zero_copy_only=False)
    if hasattr(ids.type.value_type, "value_type") and len(ids):
        texts = ids.flatten().value_lengths().to_numpy(zero_copy_only=False)
        lengths = np.maximum.reduceat(texts, np.cumsum(lengths) - lengths)
    return lengths
