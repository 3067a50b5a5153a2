"""A `datasets` builder for the rows of files: read once, then taken from its cache until a file changes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets.builder import Key

from hf_distill.data.archives import stamp
from hf_distill.data.forms import Options, reader_of
from hf_distill.data.reader import Reader
from hf_distill.data.texts import File
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

logger = logging.getLogger(__name__)

# Part of the cache's key: another version of this package may read a file differently.
_VERSION = fingerprint(*(file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))))


@dataclass
class RowsConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """The files to read.

    Attributes:
        request: JSON of everything that the rows depend on. `datasets` derives the folder in its cache from it.
        features: Column types that a data card declares.
    """

    request: str = ""
    features: datasets.Features | None = None


class FileRows(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Builds splits from files of any readable format."""

    BUILDER_CONFIG_CLASS = RowsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        asked = json.loads(self.config.request)
        options = Options(**asked["options"])
        self._readers = {
            split: [reader_of(File(path, name), options) for path, name, _ in files]
            for split, files in asked["files"].items()
        }
        readers = [reader for some in self._readers.values() for reader in some]
        self._schema = together(readers)
        self.info.features = self.info.features or datasets.Features.from_arrow_schema(self._schema)
        # The only field of a cached data set that can hold text of ours.
        self.info.description = "\n".join(notes(readers))
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self._readers]

    def _generate_tables(self, split: str) -> Iterator[tuple[Key, pa.Table]]:
        for index, reader in enumerate(self._readers[split]):
            with naming_file(reader):
                rows = 0
                for number, table in enumerate(reader.tables(self._schema)):
                    rows += len(table)
                    yield Key(index, number), table
                if rows != reader.rows:
                    raise UserError(
                        f"{reader.rows} rows were counted and {rows} read: the file changed meanwhile. Start again"
                    )


class naming_file:
    """Context manager: put the name of the file that is being read into its errors."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UserError):
            line = error.mistakes[0].rstrip(".")
            raise UserError(f"cannot read '{self.reader.file.name}': {line}.") from error
        if isinstance(error, pa.ArrowInvalid | pa.ArrowTypeError | pa.ArrowNotImplementedError):
            line = " ".join(str(error).split())[:200]
            raise UserError(f"cannot read '{self.reader.file.name}': {line}") from error


def notes(readers: list[Reader]) -> list[str]:
    """Return the notes of all readers, each with the name of its file."""
    return [f"'{reader.file.name}': {note}" for reader in readers for note in reader.notes]


def together(readers: list[Reader]) -> pa.Schema:
    """Return the schema that fits several files.

    Raises:
        UserError: A file cannot be read, or has other columns than the first.
    """
    schemas = []
    for reader in readers:
        with naming_file(reader):
            schemas.append(reader.scan())
        if set(schemas[-1].names) != set(schemas[0].names):
            raise _other_columns(readers[0], reader, schemas[0], schemas[-1])
    return readers[0].unify(schemas)


def _other_columns(first: Reader, other: Reader, wanted: pa.Schema, found: pa.Schema) -> UserError:
    missing, more = (sorted(set(a.names) - set(b.names)) for a, b in ((wanted, found), (found, wanted)))
    parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(more)} instead"] * bool(more)
    return UserError(
        f"the files of one split need the same columns: '{other.file.name}' {' and '.join(parts)}; '{first.file.name}' "
        f"has {', '.join(wanted.names)}."
    )


def builder(files: dict[str, list[File]], options: Options, features: datasets.Features | None) -> FileRows:
    """Return the builder of splits.

    Args:
        files: Split -> its files, on this machine.
        options: How to read them.
        features: Column types that a data card declares.
    """
    request = {
        "files": {split: [(one.path, one.name, stamp(one.path)) for one in some] for split, some in files.items()},
        "options": vars(options),
    }
    return FileRows(dataset_name="rows", hash=_VERSION, request=json.dumps(request), features=features)


def head(files: list[File], options: Options, features: datasets.Features | None, rows: int | None) -> datasets.Dataset:
    """Return the first rows of files, read as the run reads them, without a cache.

    Args:
        files: The files of one split, on this machine.
        options: How to read them.
        features: Column types that a data card declares.
        rows: Rows to read of each file; None for all.
    """
    readers = [reader_of(file, options, rows) for file in (files if rows is None else files[:1])]
    schema = together(readers)
    tables = []
    for reader in readers:
        with naming_file(reader):
            tables += list(reader.tables(schema))
    for note in notes(readers):
        logger.warning("%s", note)
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    if features is not None:
        table = datasets.table.table_cast(table, features.arrow_schema)
    return datasets.Dataset(table)
