"""Find where a recipe's examples are: a Hub dataset, a directory, files, or a dataset from `save_to_disk`."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.data.forms import check_kind
from hf_distill.errors import UserError, did_you_mean
from hf_distill.locations import PACKAGE, resolve, shorten

if TYPE_CHECKING:
    from hf_distill.data.section import Data

CUT = "splits: {eval: 0.1}"


@dataclass(frozen=True)
class Source:
    """The place that a recipe names, not opened yet.

    Attributes:
        path: Directory, archive or Hub id; empty if `files` are given.
        options: Configuration and revision of a Hub dataset.
        files: Split -> its files; empty if the splits are to be found in `path`.
        named: Whether the recipe names the splits of `files`.
    """

    path: str
    options: Mapping[str, Any]
    files: Mapping[str, list[str]] = field(default_factory=dict)
    named: bool = False

    def instruction(self, data: Data, split: str) -> str:
        """Return the split of the data, slicing included, to use as a split of the run."""
        from hf_distill.data.section import USUAL_SPLITS

        wanted = data.splits[split]
        if not isinstance(wanted, str):  # a part of train, by share or number
            return self.instruction(data, "train")
        # With `path: {train: ..., eval: ...}` the splits have the names of the run's.
        said = self.named and wanted == USUAL_SPLITS.get(split) and wanted not in self.files and split in self.files
        return split if said else wanted

    def files_of(self, instruction: str, split: str) -> dict[str, list[str]]:
        """Return split -> files for the splits in an instruction such as `train[:90%]+extra`.

        Other files are left out: `load_dataset` wants the same columns in all files, and eval may lack labels.

        Raises:
            UserError: The data does not have the split.
        """
        if not self.files:
            return {}
        names = [part.partition("[")[0].strip() for part in instruction.split("+")]
        for name in names:
            if name not in self.files:
                raise no_split(name, self.files, split)
        return {name: self.files[name] for name in names}

    def key(self, instruction: str) -> str:
        """Return the recipe key that names the files of an instruction."""
        return f"path.{instruction.partition('[')[0].strip()}" if self.named and "+" not in instruction else "path"


def no_split(name: str, known: Iterable[str], split: str) -> UserError:
    """Return the error for a split that the data does not have."""
    known = list(known)
    hint = did_you_mean(name, known)
    if len(known) == 1 and split == "transfer":
        hint = f" There is only '{known[0]}'."
    elif len(known) == 1:
        only = "" if known[0] == "train" or split == "train" else f" and splits: {{train: {known[0]}}}"
        hint = f" There is only '{known[0]}'. Hold out a part of it: {CUT}{only}."
    return UserError(f"the data has no split '{name}'.{hint}", key=f"splits.{split}")


def find_source(data: Data) -> Source:
    """Return where the examples are, without reading them.

    Raises:
        UserError: A path does not exist, or a file has a format that is not read.
    """
    if isinstance(data.path, dict):
        return _from_files({split: _paths(named, f"path.{split}") for split, named in data.path.items()}, named=True)
    if _is_pattern(data.path):
        return _from_files({"train": _paths(data.path, "path")})
    where = resolve(data.path, "path")
    if os.path.isfile(where):
        if data.name is not None:
            raise UserError("a file has no configurations. Leave 'name' out.", key="name")
        check_kind(where, "path")
        return Source(where, {}) if where.lower().endswith(".zip") else _from_files({"train": [where]})
    saved = _saved_to_disk(Path(where))
    return _from_files(saved) if saved else Source(where, {"name": data.name, "revision": data.revision})


def _is_pattern(path: str) -> bool:
    """Return whether `*`, `?` or brackets are a pattern: they are not if a file has exactly this name."""
    return glob.has_magic(path) and not path.startswith(PACKAGE) and not os.path.exists(os.path.expanduser(path))


def _paths(named: str | list[str], key: str) -> list[str]:
    """Return the files that a recipe names, with patterns such as `*` expanded."""
    found: list[str] = []
    for one in [named] if isinstance(named, str) else named:
        if not _is_pattern(one):
            found.append(resolve(one, key))
            continue
        matches = sorted(glob.glob(os.path.expanduser(one), recursive=True))
        matches = [match for match in matches if os.path.isfile(match)] or matches
        if not matches:
            raise UserError(f"no file matches '{one}' (looked from {Path.cwd()}).", key=key)
        found += matches
    if not found:
        raise UserError("no file named.", key=key)
    return found


def _from_files(files: Mapping[str, list[str]], *, named: bool = False) -> Source:
    for split, paths in files.items():
        for path in paths:
            _check_file(path, f"path.{split}" if named else "path")
    if not any(files.values()):
        raise UserError("no file named.", key="path")
    return Source("", {}, files, named)


def _check_file(file: str, key: str) -> None:
    path = Path(file)
    if not os.path.isfile(path):
        what = "a directory; wanted files" if os.path.isdir(path) else "not there"
        raise UserError(f"'{shorten(file, 120)}' is {what}.", key=key)
    check_kind(file, key)
    if path.stat().st_size == 0:
        raise UserError(f"'{file}' is empty.", key=key)


def _saved_to_disk(directory: Path) -> dict[str, list[str]] | None:
    """Return split -> files of a dataset written by `save_to_disk`; None for any other directory.

    A directory with one `Dataset` is the split "train". The files are read without `load_from_disk`, so that slices
    work as for other data and nothing is written beside the files.
    """
    try:
        if (directory / "dataset_dict.json").is_file():
            names = json.loads((directory / "dataset_dict.json").read_bytes())["splits"]
            return {name: _arrow_files(directory / name) for name in names}
        if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file():
            return {"train": _arrow_files(directory)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "its state.json does not list the files" if isinstance(error, KeyError | TypeError) else error
        raise UserError(f"'{directory}' is an incomplete dataset from save_to_disk: {reason}.", key="path") from error
    return None


def _arrow_files(directory: Path) -> list[str]:
    # Not `*.arrow`: the folder may also hold files that `map` cached.
    state = json.loads((directory / "state.json").read_bytes())
    return [str(directory / file["filename"]) for file in state["_data_files"]]
