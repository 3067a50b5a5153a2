"""Writes a student in a format into a folder of its own: whole or not at all, and not again if it is there."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.errors import UserError
from hf_distill.files.durable import checksums, fault, move_into, sync_tree
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.ownership import EXPORT, Ownership
from hf_distill.files.records import read_record, write_record
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.tokenizers import tokenizer_state

if TYPE_CHECKING:
    from hf_distill.export import FinishedStudent, Format
    from hf_distill.export.options import ExportOptions

# Written last: what is exported, from what, and the checksums of its files.
RECORD = "_export.json"
# Libraries that decide what the files hold.
_LIBRARIES = ("torch", "transformers")


def write(format: Format, student: FinishedStudent, into: Path, options: ExportOptions) -> bool:
    """Write a student in a format into the folder of its name, unless that holds it already.

    Args:
        format: The format.
        student: The student.
        into: Directory in which the folder is made.
        options: Section `export` of the recipe.

    Returns:
        Whether it was written; False if it was found there, whole and of the same student, settings and versions.

    Raises:
        UserError: It cannot be written, or the folder holds files that are not an export.
    """
    folder, key = into / format.name, _key(format, student, options)
    record = read_record(folder / RECORD)
    if record is not None and record.get("key") == key and fault(folder, record["files"]) is None:
        return False
    if folder.exists() and record is None and not _is_ours(into, format.name):
        raise UserError(
            f"{folder} is there already, and is not an export of this package. Move it away, or choose another "
            "directory.",
            key="formats",
        )
    staging = into / EXPORT
    shutil.rmtree(staging, ignore_errors=True)
    (staging / format.name).mkdir(parents=True)
    try:
        format.write(student, staging / format.name, options)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_tree(staging)
    sums = checksums(staging / format.name)
    write_record(staging / format.name / RECORD, {"format": format.name, "key": key, "files": sums})
    if Ownership(into).names():
        Ownership(into).take([format.name])
    move_into(into, staging, [format.name])
    return True


def _is_ours(into: Path, name: str) -> bool:
    return name in (Ownership(into).names() or ())


def _key(format: Format, student: FinishedStudent, options: ExportOptions) -> str:
    """Return a fingerprint of all that decides what is written."""
    reads = format.reads(options)
    rows = list(student.rows(reads)) if reads and student.rows is not None else []
    libraries = dict.fromkeys((*_LIBRARIES, *format.needs))
    parts: list[Any] = [
        format.name,
        model_fingerprint(student.model),
        tokenizer_state(student.tokenizer),
        asdict(student.reading),
        format.settings(options),
        rows,
        {"hf_distill": __version__, **{name: _version(name) for name in libraries}},
    ]
    return fingerprint(*parts)


def _version(module: str) -> str:
    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return ""


def weight_of(folder: Path, beside: tuple[str, ...]) -> int:
    """Return the bytes of a folder's files that hold the model.

    Args:
        folder: The folder.
        beside: Endings of files that do not.
    """
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.name.endswith(beside))
