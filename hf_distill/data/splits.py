"""Read the splits that a recipe names as `datasets.Dataset`; all reading of data goes through here."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_distill.data.forms import Options
from hf_distill.data.sources import Source, find_source, no_split
from hf_distill.errors import UserError
from hf_distill.locations import sibling

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.data.located import Located
    from hf_distill.data.section import Data
    from hf_distill.data.texts import File

logger = logging.getLogger(__name__)

SPLITS = ("train", "eval")

# `--check` reads a split whole up to this size of its files in bytes, and up to this number of rows.
_SMALL_BYTES = 4 * 2**20
_SMALL_ROWS = 20_000


class Splits:
    """Reads the splits of one recipe.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.
        splits: The splits of the run that are read from this place.

    Attributes:
        source: The place that the recipe names.
        wanted: Split of the run -> split of the data, slicing included.
    """

    def __init__(self, data: Data, roles: Mapping[str, bool], splits: Sequence[str] = SPLITS) -> None:
        self.source = find_source(data)
        self.wanted = {split: self.source.instruction(data, split) for split in splits}
        self._options = Options(
            words="tokens" in roles, header=not any(isinstance(one, int) for one in data.columns.values())
        )
        self._located: Located | None = None

    def whole(self, split: str) -> Dataset:
        """Return a split of the run with all its columns; from the cache if it was read before.

        Raises:
            UserError: The split is empty, or cannot be read.
        """
        wanted = self.wanted[split]
        with _readable(self.source, wanted, split):
            located = self._locate()
            if located.builder:
                from datasets import load_dataset

                dataset = load_dataset(**located.builder, split=wanted)
            else:
                dataset = self._from_files(located, wanted, split)
        if len(dataset) == 0:
            raise _empty(wanted, split)
        return dataset

    def sample(self, split: str, rows: int) -> tuple[Dataset, bool] | None:
        """Return the first rows of a split and whether they are all of it, without writing to disk.

        None if only `datasets` can read the data.

        Args:
            split: The split of the run.
            rows: Rows to read of a large split; its slices are then ignored.

        Raises:
            UserError: As `whole`, as far as these rows show it.
        """
        wanted = self.wanted[split]
        with _readable(self.source, wanted, split):
            located = self._locate()
            if located.builder:
                return None
            files = self._files(located, wanted, split)
            small = sum(os.path.getsize(file.path) for some in files.values() for file in some) <= _SMALL_BYTES
            dataset = self._in_memory(files, wanted) if small else self._head(next(iter(files.values())), rows)
        if len(dataset) == 0:
            raise _empty(wanted, split)
        if len(dataset) > _SMALL_ROWS:
            return dataset.select(range(rows)), False
        return dataset, small

    def _locate(self) -> Located:
        from hf_distill.data.located import locate

        self._located = self._located or locate(self.source)
        return self._located

    def _files(self, located: Located, wanted: str, split: str) -> dict[str, list[File]]:
        """Return the files of the splits that an instruction names, on this machine."""
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

        made = builder(self._files(located, wanted, split), self._options, located.features)
        made.download_and_prepare()
        dataset = made.as_dataset(split=wanted)
        for note in filter(None, made.info.description.split("\n")):
            logger.warning("%s", note)
        return dataset

    def _head(self, files: list[File], rows: int | None) -> Dataset:
        from hf_distill.data.rows import head

        return head(files, self._options, self._locate().features, rows)

    def _in_memory(self, files: Mapping[str, list[File]], wanted: str) -> Dataset:
        """Return all rows that an instruction such as `train[:90%]+extra` names."""
        from datasets import ReadInstruction, concatenate_datasets

        whole = {name: self._head(some, None) for name, some in files.items()}
        spec = wanted if all(name in wanted for name in files) else "+".join(files)  # "all"
        parts = ReadInstruction.from_spec(spec).to_absolute({name: len(some) for name, some in whole.items()})
        return concatenate_datasets(
            [whole[part.splitname].select(range(part.from_, max(part.from_, part.to))) for part in parts]
        )


def _empty(wanted: str, split: str) -> UserError:
    what = f"{split} on" if split in SPLITS else "learn from"
    return UserError(f"the split '{wanted}' is empty: no example to {what}.", key=f"splits.{split}")


@contextmanager
def _readable(source: Source, wanted: str, split: str) -> Iterator[None]:
    """Context manager: turn any error on data that cannot be read into one line."""
    try:
        yield
    # `datasets` and pyarrow fail in many ways.
    except Exception as error:
        if _disk_is_full(error):  # not a mistake in the recipe
            raise
        if "corresponds to no data" in str(error):
            raise _empty(wanted, split) from error
        if (own := _own(error)) is not None:
            raise own if own.key else UserError(*own.mistakes, key=source.key(wanted)) from error
        raise _wrong_split(wanted, split, error) or _unreadable(source, wanted, error) from error


def _own(error: BaseException | None) -> UserError | None:
    """Return our `UserError` that `datasets` has wrapped in its own errors; None if there is none."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _wrong_split(wanted: str, split: str, error: Exception) -> UserError | None:
    """Return the mistake in `splits`, if `datasets` complains about an unknown or misspelled split; else None."""
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
        what, hint = f"{what}, which is not a file or directory here", sibling(source.path)
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    reason = " ".join(str(cause).split())[:300] or type(cause).__name__
    return UserError(f"cannot read {what}: {reason}{hint}", key=source.key(wanted))


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
