"""Read the rows of `data.transfer`, from which the student learns what the teacher says, and append them to `train`.

The raw splits of a run are made in this order: read (`train`, `eval` and `transfer`), changed by other options of
`data`, and last `append_transfer`: the transfer rows become the last rows of `train`, without a label.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_distill._version import __version__
from hf_distill.data.columns import default_columns, find_columns, place
from hf_distill.data.example_columns import EXAMPLE_COLUMNS
from hf_distill.data.reader import describe_type
from hf_distill.data.section import Data
from hf_distill.data.transfer import TRANSFER
from hf_distill.errors import UserError, did_you_mean
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# How tasks and teachers name a row in their messages.
_ROW = re.compile(r"row (\d+) \(counted from 0\) of the train split")


def as_data(data: Data, label: str) -> Data:
    """Return a `data` section with which the usual readers read the transfer rows, as the split `transfer`.

    Args:
        data: The recipe's section, with `transfer`; its columns are the default.
        label: Role of the labels, which are left out.
    """
    own = data.transfer
    assert own is not None
    columns = {role: one for role, one in data.columns.items() if not isinstance(one, list)} | own.columns
    return Data(
        path=own.path if isinstance(own.path, str) else {"train": own.path},
        name=own.name,
        revision=own.revision,
        columns={role: one for role, one in columns.items() if role != label},
        splits={TRANSFER: own.split},
    )


def check_transfer(data: Data, roles: Mapping[str, bool], label: str) -> None:
    """Check `data.transfer` without reading the rows.

    Args:
        data: The recipe's section, with `transfer`.
        roles: Role -> whether the task must have it.
        label: Role of the labels.

    Raises:
        UserError: A column is that of no role, or of labels; a file or split is not there.
    """
    from hf_distill.data.sources import find_source

    assert data.transfer is not None
    with of_transfer():
        for role in data.transfer.columns:
            if role == label:
                raise UserError(
                    "the teacher labels transfer rows: they have none. Leave it out.", key=f"columns.{role}"
                )
            if role not in roles:
                raise UserError(f"this task has no such role.{did_you_mean(role, roles)}", key=f"columns.{role}")
        theirs = as_data(data, label)
        source = find_source(theirs)
        source.files_of(source.instruction(theirs, TRANSFER), TRANSFER)


def transfer_columns(data: Data, names: list[str], roles: Mapping[str, bool], label: str) -> dict[str, str]:
    """Return column -> role of the transfer rows. One line says which columns of labels are not read.

    Args:
        data: The recipe's section, with `transfer`.
        names: The columns of the transfer rows.
        roles: Role -> whether the task must have it.
        label: Role of the labels.

    Raises:
        UserError: A column is missing.
    """
    assert data.transfer is not None
    wanted = {role: required for role, required in roles.items() if role != label}
    theirs = as_data(data, label)
    asked = {
        role: one
        for role, one in default_columns(theirs, {TRANSFER: names}, roles).items()
        if role != label and not _elsewhere(role, one, data, names)
    }
    found = find_columns({TRANSFER: names}, asked, wanted)[TRANSFER]
    named = data.columns.get(label, default_columns(data, {TRANSFER: names}, roles).get(label, label))
    places = [place(one, names) for one in (named if isinstance(named, list) else [named])]
    if labels := [one for one in places if one is not None and one not in found]:
        logger.warning(
            "data.transfer has labels (%s). They are not read: its rows are learned from the teacher alone",
            ", ".join(f"column '{one}'" for one in labels),
        )
    return found


def _elsewhere(role: str, column: str | int, data: Data, names: list[str]) -> bool:
    """Return whether `data.columns` names a column that these rows call by the name of the role, as `.txt` does."""
    assert data.transfer is not None
    return role not in data.transfer.columns and column not in names and role in names


@contextmanager
def of_transfer() -> Iterator[None]:
    """Context manager: put `transfer` before the keys of mistakes in the section that `as_data` returns."""
    try:
        yield
    except UserError as error:
        keys = [_key(key) for key in error.keys]
        whole = UserError(*error.mistakes, key=keys[0] if keys else TRANSFER)
        whole.keys = tuple(keys)
        raise whole from error


def _key(key: str) -> str:
    known = {f"splits.{TRANSFER}": "split", "path.train": "path"}
    return ".".join(filter(None, (TRANSFER, known.get(key, key))))


@contextmanager
def counting_from(first: int) -> Iterator[None]:
    """Context manager: in a mistake about a transfer row, say which row of `data.transfer` it is.

    Args:
        first: Number of rows of `train` without the transfer rows, which a task counts on from there.
    """
    try:
        yield
    except UserError as error:
        found = _ROW.search(error.mistakes[0])
        if found is None or len(error.mistakes) > 1 or (row := int(found[1]) - first) < 0:
            raise
        text = _ROW.sub(f"row {row} (counted from 0) of data.transfer", error.mistakes[0], count=1)
        raise UserError(text, key=_key(error.key) if error.key.startswith("columns") else error.key) from error


def append_transfer(splits: Mapping[str, Dataset], label: str) -> dict[str, Dataset]:
    """Return `train` and `eval`; the rows of `transfer`, if there are any, are the last of `train`, without a label.

    Args:
        splits: `train`, `eval` and maybe `transfer`, columns named by role.
        label: Role of the labels. A label of a transfer row is dropped.

    Raises:
        UserError: The transfer rows have other inputs than `train`, or inputs of another type.
    """
    from datasets import concatenate_datasets

    rest = {name: split for name, split in splits.items() if name != TRANSFER}
    if TRANSFER not in splits:
        return rest
    train, transfer = splits["train"], splits[TRANSFER]
    transfer = transfer.remove_columns([label] if label in transfer.column_names else [])
    _check_like(train, transfer, label)
    train, transfer = _like(train, transfer)
    joined = concatenate_datasets([train, transfer])
    # The same in every process and run, since it names the tokenised rows in the cache of `datasets`.
    joined._fingerprint = fingerprint(__version__, TRANSFER, train._fingerprint, transfer._fingerprint)
    return {**rest, "train": joined}


def _like(train: Dataset, transfer: Dataset) -> tuple[Dataset, Dataset]:
    """Return the rows with the transfer rows' values of the types of train; without further columns that differ."""
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    both = [name for name in transfer.column_names if name in train.column_names]
    for name in [name for name in both if transfer.features[name] != train.features[name]]:
        features = transfer.features.copy()
        features[name] = train.features[name]
        try:
            transfer = transfer.cast(features)  # not always: it writes the rows once more
        except ArrowException:  # only of a column without a role: inputs were compared before
            logger.warning(
                "the column '%s' holds %s in data.transfer and %s in train: it is left out",
                *(name.rpartition("/")[2], _kind(transfer, name), _kind(train, name)),
            )
            train, transfer = (rows.remove_columns(name) for rows in (train, transfer))
    return train, transfer


def _check_like(train: Dataset, transfer: Dataset, label: str) -> None:
    """Refuse transfer rows whose inputs are not those of the train split."""
    ours, theirs = (_inputs(split, label) for split in (train, transfer))
    if set(ours) != set(theirs):
        role = next(role for role in (*ours, *theirs) if (role in ours) != (role in theirs))
        having, lacking = ("train", TRANSFER) if role in ours else (TRANSFER, "train")
        raise UserError(
            f"the {having} rows have a column for the role '{role}', the {lacking} rows have none: the models would "
            f"read something else there. Name it: columns: {{{role}: ...}}.",
            key=f"{TRANSFER}.columns" if having == "train" else f"{TRANSFER}.columns.{role}",
        )
    for role in ours:
        if _kind(train, role) != _kind(transfer, role):
            raise UserError(
                f"the {role} of the transfer rows holds {_kind(transfer, role)}, that of the train rows "
                f"{_kind(train, role)}. Name another column, or convert it.",
                key=f"{TRANSFER}.columns.{role}",
            )
        _check_filled(transfer, role)


def _inputs(split: Dataset, label: str) -> Sequence[str]:
    return [name for name in split.column_names if name not in (label, *EXAMPLE_COLUMNS) and "/" not in name]


def _kind(split: Dataset, role: str) -> str:
    return describe_type(split.data.schema.field(role).type)


def _check_filled(transfer: Dataset, role: str) -> None:
    """Refuse a missing text here: later its row would be counted from the first row of train."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    values = transfer.select_columns([role]).with_format("arrow")[:][role]
    if values.null_count:
        first = pc.index(pc.is_null(values), True).as_py()
        raise UserError(
            f"{values.null_count:,} of {len(transfer):,} transfer rows have no {role}, the first is row {first}, "
            "counted from 0. Drop or fill these rows.",
            key=f"{TRANSFER}.columns.{role}",
        )
