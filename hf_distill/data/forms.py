"""The table of file formats: which reader reads a file, by the ending of its name and by the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.data.conll import Conll
from hf_distill.data.delimited import Delimited
from hf_distill.data.json_records import JsonRecords
from hf_distill.data.plain_text import PlainText
from hf_distill.data.tables import Tables
from hf_distill.data.texts import COMPRESSED, File
from hf_distill.errors import UserError

if TYPE_CHECKING:
    from hf_distill.data.reader import Reader

FORMS: dict[str, Callable[..., Reader]] = {
    ".csv": Delimited,
    ".tsv": Delimited,
    ".json": JsonRecords,
    ".jsonl": JsonRecords,
    ".ndjson": JsonRecords,
    ".parquet": Tables,
    ".txt": PlainText,
    ".arrow": Tables,
    ".feather": Tables,
    ".conll": Conll,
    ".conllu": Conll,
    ".iob": Conll,
    ".iob2": Conll,
    ".bio": Conll,
}
# Formats that people also have and that are not read, and what to do with each.
_ELSEWHERE = {
    (".xlsx", ".xls", ".ods"): "a spreadsheet: save it as CSV (UTF-8)",
    (".tar", ".tgz", ".rar", ".7z"): "an archive: unpack it, or make a .zip of it",
    (
        ".pkl",
        ".pickle",
        ".npy",
        ".npz",
        ".pt",
    ): "Python's own format, which can run code: save the rows as JSON or Parquet",
    (".xml", ".html"): "markup: convert it to JSON Lines or CSV",
    (".h5", ".hdf5"): "HDF5: convert it to Parquet",
    (".yaml", ".yml"): "YAML: convert it to JSON",
}


@dataclass(frozen=True)
class Options:
    """What decides how a file is read, besides the file itself.

    Attributes:
        words: Whether an example of the task is a list of words: text files are then read as CoNLL.
        header: Whether the first line of CSV and TSV names the columns.
    """

    words: bool = False
    header: bool = True


def reader_of(file: File, options: Options, limit: int | None = None) -> Reader:
    """Return the reader of a file.

    Args:
        file: The file; `check_kind` has accepted it.
        options: How the run reads files.
        limit: Rows after which to stop.
    """
    ending = file.endings[0]
    if options.words and ending in (".txt", ".tsv"):
        return Conll(file, limit)
    if FORMS[ending] is Delimited:
        return Delimited(file, header=options.header, limit=limit)
    return FORMS[ending](file, limit)


def is_read(name: str) -> bool:
    """Return whether a file of this name can be read."""
    plain, packing = File("", name).endings
    return plain in FORMS and not (packing and FORMS[plain] is Tables)


def check_kind(path: str, key: str) -> None:
    """Refuse a file of a format that is not read, by its name alone; files inside a zip are checked later.

    Raises:
        UserError: The format is not read; says what to do if there is a way.
    """
    name = Path(path).name
    plain, packing = File("", name).endings
    if is_read(name) or plain == ".zip":
        return
    if packing and plain in FORMS:
        raise UserError(f"'{name}' is packed twice: {plain} files are compressed inside. Unpack it.", key=key)
    for endings, hint in _ELSEWHERE.items():
        if plain in endings:
            raise UserError(f"cannot read '{name}', {hint}.", key=key)
    raise UserError(f"cannot tell what '{name}' holds. Wanted a name that ends in {describe_endings()}.", key=key)


def describe_endings(endings: Iterable[str] = FORMS) -> str:
    """Return the list of endings that are read."""
    return f"{', '.join(endings)} or .zip; text files may also be compressed ({', '.join(COMPRESSED)})"
