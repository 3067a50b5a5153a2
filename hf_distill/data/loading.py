"""Raw examples: what the recipe names, read into `train` and `eval` with columns named by their role."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_distill.data.columns import default_columns, find_columns
from hf_distill.data.forms import Options
from hf_distill.data.holdout import check_size, hold_out
from hf_distill.data.joined import join_columns
from hf_distill.data.shared_rows import warn_of_shared_rows
from hf_distill.data.sources import Source, find_source, no_split
from hf_distill.errors import UserError, did_you_mean
from hf_distill.locations import sibling

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    from hf_distill.data.located import Located
    from hf_distill.data.texts import File
    from hf_distill.recipe import Data

logger = logging.getLogger(__name__)

SPLITS = ("train", "eval")
PEEK = 1_000
"""Rows of a split that `--check` looks at."""

_WHOLE = 4 * 2**20


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
    if not isinstance(data.splits["train"], str):
        raise UserError("wanted the name of a split. Only eval can be a part of another.", key="splits.train")
    if not isinstance(size := data.splits["eval"], str):
        check_size(size)
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
    read = _Reading(data, roles)
    splits = _by_role({split: read.whole(split) for split in _named(data)}, data, roles)
    if len(splits) == len(SPLITS):
        warn_of_shared_rows(splits, read.wanted)
        return splits
    size = data.splits["eval"]
    assert not isinstance(size, str)
    return hold_out(splits["train"], size, *_cut_by(splits["train"].column_names, roles))


def peek(data: Data, roles: Mapping[str, bool], rows: int = PEEK) -> dict[str, Dataset] | None:
    """Return the first rows of each split by role, read as `load_splits` does; None for data on the Hub.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.
        rows: How many of a split; files up to 4 MiB are read whole, and cut as the recipe says; else slices are not
                followed.

    Raises:
        UserError: As `load_splits`, as far as these rows can tell.
    """
    check_data(data, roles)
    read = _Reading(data, roles)
    if not read.source.files and not os.path.exists(read.source.path):
        return None
    return _by_role({split: read.first(split, rows) for split in _named(data)}, data, roles)


def _sliced(dataset: Dataset, wanted: str, name: str) -> Dataset:
    """Return the rows that an instruction such as `train[:90%]` names."""
    from datasets import ReadInstruction

    if "[" not in wanted:
        return dataset
    parts = ReadInstruction.from_spec(wanted).to_absolute({name: len(dataset)})
    return dataset.select([row for part in parts for row in range(part.from_, part.to)])


def _named(data: Data) -> list[str]:
    """Return the splits of the run that are splits of the data, not a part of another."""
    return [split for split in SPLITS if isinstance(data.splits[split], str)]


def _by_role(loaded: Mapping[str, Dataset], data: Data, roles: Mapping[str, bool]) -> dict[str, Dataset]:
    """Return the columns that have a role, under its name."""
    names = {split: dataset.column_names for split, dataset in loaded.items()}
    if any(isinstance(one, list) for one in data.columns.values()):
        loaded, asked = join_columns(loaded, data.columns)
        names = {split: dataset.column_names for split, dataset in loaded.items()}
    else:
        asked = default_columns(data, names, roles)
    found = find_columns(names, asked, roles)
    # Renaming happens after the selection: a leftover column may carry the name of a role.
    return {
        split: loaded[split].select_columns(list(mine)).rename_columns({c: r for c, r in mine.items() if c != r})
        for split, mine in found.items()
    }


def _cut_by(columns: list[str], roles: Mapping[str, bool]) -> tuple[str, str | None]:
    """Return the role whose equal values stay together, and that of the labels."""
    inputs = "context" if "context" in columns else next(role for role in roles if role in columns)
    return inputs, next((role for role in ("label",) if role in columns), None)


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column as Arrow holds it: no Python object for each of a million rows."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


# ---- Reading ---------------------------------------------------------------------------------------------------------


class _Reading:
    """Reads the splits of one recipe: one place for every road to the data."""

    def __init__(self, data: Data, roles: Mapping[str, bool]) -> None:
        self.source = find_source(data)
        self.wanted = {split: self.source.instruction(data, split) for split in SPLITS}
        self.options = Options(
            words="tokens" in roles, header=not any(isinstance(one, int) for one in data.columns.values())
        )
        self._located: Located | None = None

    def whole(self, split: str) -> Dataset:
        """Return a split of the run with all its columns.

        Raises:
            UserError: It is empty, or cannot be read.
        """
        wanted = self.wanted[split]
        with _readable(self.source, wanted, split):
            located = self.located()
            if located.builder:
                from datasets import load_dataset

                dataset = load_dataset(**located.builder, split=wanted)
            else:
                dataset = self._from_files(located, wanted, split)
        if len(dataset) == 0:
            raise _empty(wanted, split)
        return dataset

    def first(self, split: str, rows: int) -> Dataset:
        """Return the first rows of the (first) split that an instruction names."""
        from hf_distill.data.rows import head

        wanted = self.wanted[split]
        with _readable(self.source, wanted, split):
            located = self.located()
            files = self._files(located, wanted, split)
            here = next(iter(files.values()))
            small = sum(os.path.getsize(file.path) for file in here) <= _WHOLE
            dataset = head(here, self.options, located.features, None if small else rows)
            if small and len(files) == 1:
                dataset = _sliced(dataset, wanted, next(iter(files)))
        if len(dataset) == 0:
            raise _empty(next(iter(files)), split)
        return dataset

    def located(self) -> Located:
        """Return the files of the source; asked once."""
        from hf_distill.data.located import locate

        self._located = self._located or locate(self.source)
        return self._located

    def _files(self, located: Located, wanted: str, split: str) -> dict[str, list[File]]:
        from hf_distill.data.located import downloaded

        names = [part.partition("[")[0].strip() for part in wanted.split("+")]
        if "all" in names and "all" not in located.files:
            names = list(located.files)
        for name in names:
            if name not in located.files:
                raise no_split(name, located.files, split)
        return {name: downloaded(located.files[name]) for name in names}

    def _from_files(self, located: Located, wanted: str, split: str) -> Dataset:
        from hf_distill.data.rows import builder

        made = builder(self._files(located, wanted, split), self.options, located.features)
        made.download_and_prepare()
        dataset = made.as_dataset(split=wanted)
        for note in filter(None, made.info.description.split("\n")):
            logger.warning("%s", note)
        return dataset


def _empty(wanted: str, split: str) -> UserError:
    return UserError(f"the split '{wanted}' is empty: no example to {split} on.", key=f"splits.{split}")


@contextmanager
def _readable(source: Source, wanted: str, split: str) -> Iterator[None]:
    """Turn whatever is raised on data that cannot be read into one line."""
    try:
        yield
    # `datasets` and pyarrow fail in many ways.
    except Exception as error:
        if _disk_is_full(error):  # no fault of the recipe
            raise
        if "corresponds to no data" in str(error):
            raise _empty(wanted, split) from error
        if (own := _own(error)) is not None:
            raise own if own.key else UserError(*own.mistakes, key=source.key(wanted)) from error
        raise _wrong_split(wanted, split, error) or _unreadable(source, wanted, error) from error


def _own(error: BaseException | None) -> UserError | None:
    """Return the mistake that `datasets` has wrapped in errors of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


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


def _unreadable(source: Source, wanted: str, error: Exception) -> UserError:
    from datasets.exceptions import DatasetGenerationError

    files = source.files.get(wanted.partition("[")[0].strip(), [])
    what, hint = f"'{files[0] if files else source.path}'", ""
    if not files and not os.path.exists(source.path):
        what, hint = f"{what}, which is no file or directory here", sibling(source.path)
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    reason = " ".join(str(cause).split())[:300] or type(cause).__name__
    return UserError(f"cannot read {what}: {reason}{hint}", key=source.key(wanted))


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def by_length(split: Dataset) -> Dataset:
    """Return the split sorted by length; examples of one length stay in order."""
    import numpy as np

    return split.select(np.argsort(column(split, "length").to_numpy(), kind="stable"))
