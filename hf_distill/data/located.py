"""Find the files of each split in a directory or a repository on the Hub."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.data.archives import data_files, inside, unpack
from hf_distill.data.forms import describe_endings, is_read
from hf_distill.data.remembered import in_cache, recall, remember
from hf_distill.data.texts import File
from hf_distill.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetBuilder, Features

    from hf_distill.data.sources import Source

logger = logging.getLogger(__name__)

# Settings of `datasets`' readers that ours has too; with any other setting `datasets` reads the files.
_KNOWN = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
_BUILDERS = ("csv", "json", "text", "parquet", "arrow", "conll")
# Only an empty cell is a missing value: pandas would also drop the texts and classes "None", "NA" and "null".
_PANDAS = {"keep_default_na": False, "na_values": [""]}


@dataclass(frozen=True)
class Located:
    """Where the rows are.

    Attributes:
        files: Split -> its files, on this machine or on the Hub.
        features: Types of the columns; None if no data card declares them.
        builder: Arguments of `load_dataset`, if only `datasets` can read the format or settings; `files` is then empty.
    """

    files: Mapping[str, list[File]] = field(default_factory=dict)
    features: Features | None = None
    builder: Mapping[str, Any] = field(default_factory=dict)


def locate(source: Source) -> Located:
    """Return the files of a source; uses the network if it is on the Hub.

    Raises:
        UserError: A directory has no data files, or an archive is damaged.
    """
    if source.files:
        return Located({split: _opened(paths) for split, paths in source.files.items()})
    if os.path.isfile(source.path):
        return _directory(unpack(source.path, source.path), source)
    if os.path.isdir(source.path):
        return _directory(Path(source.path), source)
    return _repository(source.path, source)


def _opened(paths: list[str]) -> list[File]:
    """Return the files; an archive is replaced by the files in it."""
    files = [inside(path, path) if path.lower().endswith(".zip") else [File(path, path)] for path in paths]
    return [file for some in files for file in some]


def _directory(folder: Path, source: Source) -> Located:
    """Return the files of a directory, sorted into splits by their names as `datasets` does.

    Raises:
        UserError: The directory has no data files, or its data card is wrong.
    """
    there = data_files(folder)
    if not there:
        raise UserError(
            f"'{source.path}' has no data files. Wanted files that end in {describe_endings()}.", key="path"
        )
    with tempfile.TemporaryDirectory() as place:
        # A folder of links: `datasets` would read brackets in the path as a pattern, and every file as data.
        mirror = _mirror(folder, there, Path(place, "data"))
        card = folder / "README.md"
        if card.is_file() and card.read_bytes().startswith(b"---"):
            os.symlink(card.resolve(), mirror / "README.md")
            try:
                return _moved(_repository(str(mirror), source), mirror, folder)
            except FileNotFoundError as error:
                reason = " ".join(str(error).split()).replace(str(mirror), str(folder))[:200]
                raise UserError(f"the data card of '{source.path}' names a missing file: {reason}") from error
        if source.options.get("name") is not None:
            raise UserError("a directory without a data card (README.md) has no configurations.", key="name")
        located = _moved(Located(_by_name(mirror)), mirror, folder)
    used = {file.name for files in located.files.values() for file in files}
    if unused := sorted({str(file) for file in there} - used):
        logger.warning(
            "%s of the %s data files in '%s' are not read, since their names do not say which split they are: %s",
            len(unused),
            len(there),
            source.path,
            ", ".join(unused[:5]),
        )
    return Located({split: _opened([file.path for file in files]) for split, files in located.files.items()})


def _mirror(folder: Path, files: list[Path], mirror: Path) -> Path:
    mirror.mkdir()
    for file in files:
        link = mirror / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file.resolve(), link)
    return mirror


def _by_name(folder: Path) -> dict[str, list[File]]:
    from datasets.data_files import DataFilesDict, get_data_patterns

    patterns = get_data_patterns(str(folder))
    found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    return {str(split): [File(path, path) for path in sorted(paths)] for split, paths in found.items()}


def _moved(located: Located, mirror: Path, folder: Path) -> Located:
    """Return the files with the links of the mirror replaced by their real paths."""

    def real(file: File) -> File:
        inside = os.path.relpath(file.path, mirror)
        if Path(inside).parts[:1] == (os.pardir,):  # not a name that begins with two dots
            raise _outside(str(folder), file.path)
        path = str(folder / inside)
        return File(path, path)

    files = {split: [real(file) for file in files] for split, files in located.files.items()}
    return Located(files, located.features, located.builder)


def _outside(source: str, named: str) -> UserError:
    return UserError(
        f"the data card of '{source}' names a file outside of it: {named}. If that file is what you want to read, name "
        "it as path.",
        key="path",
    )


def _repository(path: str, source: Source) -> Located:
    from datasets import load_dataset_builder

    asked = {"path": path, **source.options}
    try:
        builder = load_dataset_builder(**asked)
    except ConnectionError:
        if (known := recall(asked)) is None:
            raise
        return Located(*known)
    if not os.path.isdir(path):
        named = (str(one) for some in (builder.config.data_files or {}).values() for one in some)
        if here := next((one for one in named if "://" not in one or one.startswith(("file:", "local:"))), None):
            raise _outside(path, here)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _BUILDERS or _settings(builder) - _KNOWN:
        return Located(builder={**asked, **(_PANDAS if kind == "csv" else {})})
    files = {str(split): [File(one, one) for one in some] for split, some in (builder.config.data_files or {}).items()}
    if not all(is_read(file.name) or file.name.endswith(".zip") for some in files.values() for file in some):
        return Located(builder={**asked, **(_PANDAS if kind == "csv" else {})})
    if not os.path.isdir(path):
        remember(asked, files, builder.info.features)
    return Located(files, builder.info.features)


def _settings(builder: DatasetBuilder) -> set[str]:
    """Return the settings of a builder's configuration that differ from the default."""
    usual = type(builder.config)()
    return {key for key, value in vars(builder.config).items() if value != getattr(usual, key, None)}


def downloaded(files: list[File]) -> list[File]:
    """Return the files on this machine: download those of the Hub into its cache, replace archives by their files."""
    from datasets import DownloadManager

    here = [File(in_cache(file.path) or file.path, file.name) for file in files]
    remote = [file for file in here if "://" in file.path]
    paths = dict(zip(remote, DownloadManager().download([file.path for file in remote]) if remote else [], strict=True))
    here = [File(paths.get(file, file.path), file.name) for file in here]
    opened = [inside(file.path, file.name) if file.name.lower().endswith(".zip") else [file] for file in here]
    return [file for some in opened for file in some]
