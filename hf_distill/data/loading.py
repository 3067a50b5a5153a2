"""Raw examples: what the recipe names, read into `train` and `eval` with columns named by their role."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_distill.data.shared_rows import warn_of_shared_rows
from hf_distill.data.sources import Source, find_source, no_split
from hf_distill.errors import UserError, did_you_mean
from hf_distill.locations import sibling

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    from hf_distill.recipe import Data

logger = logging.getLogger(__name__)

SPLITS = ("train", "eval")


def check_data(data: Data, roles: Mapping[str, bool]) -> None:
    """Check what can be checked of `data` without reading it.

    Args:
        data: The recipe's section.
        roles: The task's column roles.

    Raises:
        UserError: An unknown role or split, a file of unknown kind, a local path that is not there.
    """
    mistakes = [
        UserError(f"this task has no such role.{did_you_mean(role, roles)}", key=f"columns.{role}")
        for role in data.columns
        if role not in roles
    ] + [
        UserError(f"not a split of a run. Wanted: {' and '.join(SPLITS)}.", key=f"splits.{split}")
        for split in data.splits
        if split not in SPLITS
    ]
    if mistakes:
        raise UserError.together(mistakes)
    source = find_source(data)
    for split in SPLITS:
        source.files_of(source.instruction(data, split), split)


def load_splits(data: Data, roles: Mapping[str, bool]) -> dict[str, Dataset]:
    """Load `train` and `eval`, their columns renamed to roles; columns without a role are dropped.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.

    Raises:
        UserError: The data cannot be found or read, a split is empty or missing, a column is missing.
    """
    check_data(data, roles)
    source = find_source(data)
    wanted = {split: source.instruction(data, split) for split in SPLITS}
    loaded = {split: _load(source, wanted[split], split) for split in SPLITS}
    found = _find_columns({split: dataset.column_names for split, dataset in loaded.items()}, data, roles)
    # Renaming happens after the selection: a leftover column may carry the name of a role.
    splits = {
        split: loaded[split].select_columns(list(mine)).rename_columns({c: r for c, r in mine.items() if c != r})
        for split, mine in found.items()
    }
    warn_of_shared_rows(splits, wanted)
    return splits


def peek(data: Data, roles: Mapping[str, bool]) -> dict[str, dict[str, Any]] | None:
    """Return the first row of each split by role, without reading the rest; None for data on the Hub.

    Raises:
        UserError: As `load_splits`, as far as a first row can tell.
    """
    check_data(data, roles)
    source = find_source(data)
    if not source.files and not os.path.exists(source.path):
        return None
    from datasets import load_dataset  # a path that is not there is told without it

    rows = {}
    for split in SPLITS:
        wanted = source.instruction(data, split)
        first = wanted.partition("+")[0].partition("[")[0].strip()  # a stream cannot be sliced
        files = source.files_of(first, split)
        with _readable(source, files, first, split):
            stream = load_dataset(source.path, split=first, data_files=files or None, streaming=True, **source.options)
            row = next(iter(stream), None)
        if row is None:
            raise _empty(first, split)
        rows[split] = row
    found = _find_columns({split: list(row) for split, row in rows.items()}, data, roles)
    return {split: {role: rows[split][name] for name, role in mine.items()} for split, mine in found.items()}


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column as Arrow holds it: no Python object for each of a million rows."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


# ---- Reading ---------------------------------------------------------------------------------------------------------


def _load(source: Source, wanted: str, split: str) -> Dataset:
    from datasets import load_dataset

    files = source.files_of(wanted, split)
    with _readable(source, files, wanted, split):
        dataset = load_dataset(source.path, split=wanted, data_files=files or None, **source.options)
    if len(dataset) == 0:
        raise _empty(wanted, split)
    return dataset


def _empty(wanted: str, split: str) -> UserError:
    return UserError(f"the split '{wanted}' is empty: no example to {split} on.", key=f"splits.{split}")


@contextmanager
def _readable(source: Source, files: Mapping[str, list[str]], wanted: str, split: str) -> Iterator[None]:
    """Turn whatever `datasets` raises on data it cannot read into one line."""
    try:
        yield
    # Every format fails in its own way: pandas, pyarrow, json, the Hub.
    except Exception as error:
        if _disk_is_full(error):  # no fault of the recipe
            raise
        if "corresponds to no data" in str(error):
            raise _empty(wanted, split) from error
        raise _wrong_split(wanted, split, error) or _unreadable(source, files, error) from error


def _wrong_split(wanted: str, split: str, error: Exception) -> UserError | None:
    """Return the mistake in what `splits` says, if that is what `datasets` complains of."""
    unknown = re.search(r"Unknown split \"(.+?)\"\. Should be one of \[(.*)\]", str(error))
    if unknown:
        return no_split(unknown[1], re.findall(r"'([^']+)'", unknown[2]), split)
    if "Unrecognized instruction format" in str(error):
        return UserError(
            f"cannot read '{wanted}' as a split. Wanted one such as 'train' or 'train[:90%]'.", key=f"splits.{split}"
        )
    return None


def _unreadable(source: Source, files: Mapping[str, list[str]], error: Exception) -> UserError:
    paths = [path for group in files.values() for path in group]
    what, hint = f"'{paths[0] if paths else source.path}'", ""
    if len(paths) > 1:
        what = f"one of {len(paths)} files ({what}, ...)"
    if not paths and not os.path.exists(source.path):
        what, hint = f"{what}, which is no file or directory here", sibling(source.path)
    return UserError(f"cannot read {what}: {_reason(error)}{hint}", key=source.key(files))


def _reason(error: Exception) -> str:
    """Return what `datasets` found wrong, in one line that says what to do."""
    from datasets.exceptions import DatasetGenerationError

    for paragraph in str(error).split("\n\n"):
        if paragraph.startswith("All the data files must have the same columns"):
            return paragraph
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, UnicodeDecodeError):
        byte = cause.object[cause.start]
        return f"it is not UTF-8 (byte 0x{byte:02x}). Convert it, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"
    ragged = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text)
    if ragged:
        return (
            f"line {ragged[2]} has {ragged[3]} fields, those above it {ragged[1]}. A text that contains the delimiter "
            "stands between double quotes."
        )
    if text.startswith("JSON parse error"):
        return f"{text} (rows counted from 0). Wanted one JSON object a line, or one list of objects."
    return text[:300]


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- Columns ---------------------------------------------------------------------------------------------------------


def _find_columns(columns: Mapping[str, list[str]], data: Data, roles: Mapping[str, bool]) -> dict[str, dict[str, str]]:
    """Return column -> role for each split; a role that is not required may be missing in one of them."""
    found: dict[str, dict[str, str]] = {split: {} for split in columns}
    mistakes: list[UserError] = []
    # A column that a recipe names for one role is not that of another by its name alone.
    for role in sorted(roles, key=lambda role: role not in data.columns):
        required = roles[role]
        wanted = data.columns.get(role, role)
        named = role in data.columns
        key = f"columns.{role}" if named else "columns"
        without = [split for split, names in columns.items() if wanted not in names]
        if without and (required or (named and len(without) == len(columns))):
            mistakes.append(_no_column(wanted, role, without[0], columns[without[0]], key))
            continue
        if without and named:
            logger.warning("the %s split has no column '%s' and goes without %s", without[0], wanted, role)
        for split in set(columns) - set(without):
            if wanted in found[split] and not named and not required:
                continue
            if wanted in found[split]:
                mistakes.append(
                    UserError(f"'{wanted}' is the column of the role '{found[split][wanted]}' already.", key=key)
                )
                break
            found[split][wanted] = role
    if mistakes:
        # A wrong delimiter takes all columns away: one mistake.
        read = all(_delimiter(names) == "" for names in columns.values())
        raise UserError.together(mistakes if read else mistakes[:1])
    return found


def _no_column(wanted: str, role: str, split: str, known: list[str], key: str) -> UserError:
    hint = did_you_mean(wanted, known) + f" Say which one: columns: {{{role}: ...}}."
    return UserError(
        f"the {split} split has no column '{wanted}' for the role '{role}'.{_delimiter(known) or hint}", key=key
    )


def _delimiter(columns: list[str]) -> str:
    signs = [sign for sign in ";\t|" if sign in columns[0]] if len(columns) == 1 else []
    return f" Its delimiter seems to be {signs[0]!r}; wanted commas, or tabs in a .tsv file." if signs else ""


def by_length(split: Dataset) -> Dataset:
    """Return the split sorted by length; examples of one length stay in order."""
    import numpy as np

    return split.select(np.argsort(column(split, "length").to_numpy(), kind="stable"))
