"""Raw examples: from the Hub, files or directories to `train` and `eval` with columns named by their role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError, did_you_mean
from hf_distill.models import resolve

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.recipe import Data

SPLITS = ("train", "eval")
BUILDERS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
    ".arrow": ("arrow", {}),
}


def check_data(data: Data, roles: Mapping[str, bool]) -> None:
    """Check what can be checked of `data` without reading it.

    Args:
        data: The recipe's section.
        roles: The task's column roles.

    Raises:
        UserError: An unknown role or split, a file of unknown kind, a local path that is not there.
    """
    for role in data.columns:
        if role not in roles:
            raise UserError(f"this task has no such role.{did_you_mean(role, roles)}", key=f"columns.{role}")
    for split in data.splits:
        if split not in SPLITS:
            raise UserError(f"not a split of a run. Wanted: {' and '.join(SPLITS)}.", key=f"splits.{split}")
    missing = [split for split in SPLITS if split not in data.splits]
    if missing:
        raise UserError(
            f"no '{missing[0]}' split. Name one, or cut it from another: splits: {{train: 'train[:90%]', eval: 'train[90%:]'}}.",
            key="splits",
        )
    _source(data)


def _source(data: Data) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `load_dataset` (the path first) for what the recipe names."""
    if isinstance(data.path, str):
        where = resolve(data.path, "path")
        if not Path(where).is_file():
            return where, {"name": data.name, "revision": data.revision}
        builder, options = _builder(where, "path")
        return builder, {"data_files": where, **options}
    files: dict[str, list[str]] = {}
    builders = []
    for split, named in data.path.items():
        key = f"path.{split}"
        files[split] = [resolve(one, key) for one in ([named] if isinstance(named, str) else named)]
        if not files[split]:
            raise UserError("no file named.", key=key)
        builders += [_builder(one, key) for one in files[split]]
    if any(one != builders[0] for one in builders):
        raise UserError("the files are of different kinds; one run reads one kind.", key="path")
    return builders[0][0], {"data_files": files, **builders[0][1]}


def _builder(file: str, key: str) -> tuple[str, dict[str, Any]]:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no such file: {file}.", key=key)
    found = BUILDERS.get(path.suffix.lower())
    if found is None:
        raise UserError(f"cannot read '{path.name}'. Wanted one of {', '.join(BUILDERS)}.", key=key)
    return found


def load_splits(data: Data, roles: Mapping[str, bool]) -> dict[str, Dataset]:
    """Load `train` and `eval`, their columns renamed to roles; columns without a role are dropped.

    Args:
        data: The recipe's section.
        roles: Role -> whether the task must have it.

    Raises:
        UserError: The data cannot be found or read, a split is empty or missing, a column is missing.
    """
    check_data(data, roles)
    return {split: _columns(_load(data, split), split, data, roles) for split in SPLITS}


def peek(data: Data, roles: Mapping[str, bool]) -> dict[str, dict[str, Any]] | None:
    """Return the first row of each split by role, without reading the rest; None for data on the Hub.

    Raises:
        UserError: As `load_splits`, as far as a first row can tell.
    """
    from datasets import load_dataset

    path, options = _source(data)
    if path not in {builder for builder, _ in BUILDERS.values()} and not Path(path).exists():
        return None
    if Path(path, "dataset_dict.json").is_file():
        return {split: dataset[0] for split, dataset in load_splits(data, roles).items()}
    rows = {}
    for split in SPLITS:
        name = data.splits[split].partition("[")[0]  # a stream cannot be sliced
        with _readable(name, split):
            stream = load_dataset(path, split=name, streaming=True, **options)
            row = next(iter(stream), None)
        if row is None:
            raise UserError(f"the split '{name}' is empty: no example to {split} on.", key=f"splits.{split}")
        rows[split] = {role: row[column] for column, role in _roles(list(row), split, data, roles).items()}
    return rows


@contextmanager
def _readable(wanted: str, split: str) -> Iterator[None]:
    """Turn what `datasets` raises on data it cannot read into one line."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        key = f"splits.{split}" if "split" in str(error).lower() else "path"
        raise UserError(f"cannot read split '{wanted}': {reason}", key=key) from error


def _load(data: Data, split: str) -> Dataset:
    from datasets import load_dataset, load_from_disk

    path, options = _source(data)
    wanted = data.splits[split]
    with _readable(wanted, split):
        if Path(path, "dataset_dict.json").is_file():
            available = load_from_disk(path)
            if wanted not in available:
                raise ValueError(f"no split '{wanted}'. It has {', '.join(available)}; slices of it are not read.")
            dataset = available[wanted]
        else:
            dataset = load_dataset(path, split=wanted, **options)
    if len(dataset) == 0:
        raise UserError(f"the split '{wanted}' is empty: no example to {split} on.", key=f"splits.{split}")
    return dataset


def _columns(dataset: Dataset, split: str, data: Data, roles: Mapping[str, bool]) -> Dataset:
    found = _roles(dataset.column_names, split, data, roles)
    # Renaming happens after the selection: a leftover column may carry the name of a role.
    return dataset.select_columns(list(found)).rename_columns({c: r for c, r in found.items() if c != r})


def _roles(columns: list[str], split: str, data: Data, roles: Mapping[str, bool]) -> dict[str, str]:
    """Return column -> role for the columns a task uses."""
    found: dict[str, str] = {}
    for role, required in roles.items():
        column = data.columns.get(role, role)
        if column in columns:
            found[column] = role
        elif role in data.columns or required:
            raise UserError(
                f"the {split} split has no column '{column}' for the role '{role}'."
                f"{did_you_mean(column, columns)} Say which one: columns: {{{role}: ...}}.",
                key=f"columns.{role}" if role in data.columns else "columns",
            )
    return found
