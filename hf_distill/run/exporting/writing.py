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
from hf_distill.formatting import readable
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

    An older export of the student is replaced; files that others put into its folder stay there.

    Args:
        format: The format.
        student: The student.
        into: Directory in which the folder is made.
        options: Section `export` of the recipe.

    Returns:
        Whether it was written; False if it was found there, whole and of the same student, settings and versions.

    Raises:
        UserError: It cannot be written, or its place is taken.
    """
    folder, key = into / format.name, _key(format, student, options)
    record = read_record(folder / RECORD)
    if record is not None and record.get("key") == key and fault(folder, record["files"]) is None:
        return False
    check_place(format.name, student, into)
    staging = _staging(student, into)
    (staging / format.name).mkdir()
    try:
        format.write(student, staging / format.name, options)
        sums = checksums(staging / format.name)
        _take_along(folder, staging / format.name, record)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    told = {"format": format.name, "key": key, "student": _name(student), "weights": student.fingerprint, "files": sums}
    write_record(staging / format.name / RECORD, told)
    sync_tree(staging)
    if _is_beside(student, into) and Ownership(into).names():
        Ownership(into).take([format.name])
    move_into(into, staging, [format.name])
    return True


def check_place(name: str, student: FinishedStudent, into: Path) -> None:
    """Refuse to replace what is not an export of this student.

    Args:
        name: Name of the format.
        student: The student.
        into: Directory in which the folder of the format is made.

    Raises:
        UserError: There is something else; the line names it.
    """
    folder = into / name
    record = read_record(folder / RECORD)
    if not folder.exists() and not folder.is_symlink():
        return
    beside, also = _is_beside(student, into), "Move it away, or choose another directory."
    if beside and name in (Ownership(into).names() or ()):
        return
    if record is None or folder.is_symlink():
        raise UserError(f"{folder} is there already, and is not an export of this package. {also}", key="formats")
    if record.get("weights") != student.fingerprint:
        of = readable(str(record.get("student", "")))
        raise UserError(
            f"{folder} is there already, and holds another student{f' ({of})' if of else ''} than that of "
            f"{student.directory}. {also}",
            key="formats",
        )


def _is_beside(student: FinishedStudent, into: Path) -> bool:
    """Whether it is written beside the student, where folders of formats are those of its run."""
    return into.resolve() == student.directory.resolve()


def _name(student: FinishedStudent) -> str:
    """Return how a student is called in a message: its directory, without what lies above, and its class."""
    return f"{student.directory.resolve().name}, {type(student.model).__name__}"


def _staging(student: FinishedStudent, into: Path) -> Path:
    """Return an empty directory for what is being written; one that a kill left behind is emptied.

    Raises:
        UserError: There is a directory of that name that was not made here.
    """
    staging = into / EXPORT
    ours = _is_beside(student, into) or (staging / RECORD).is_file() or not any(staging.glob("*"))
    if staging.is_symlink() or staging.is_file() or not ours:
        raise UserError(f"{staging} is in the way of what is being written. Move it away, or choose another directory.")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / RECORD).touch()
    return staging


def _take_along(folder: Path, new: Path, record: dict[str, Any] | None) -> None:
    """Copy what others put into the folder of an export into the new one.

    Raises:
        UserError: The new one has a file of the same name.
    """
    ours = {RECORD, *(record or {}).get("files", ())}
    for place in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = place.relative_to(folder).as_posix()
        if name in ours or place.parent.is_symlink() or (place.is_dir() and not place.is_symlink()):
            continue
        if (new / name).exists():
            if record is None:  # damaged: its files are replaced
                continue
            raise UserError(f"{place} was not written by this package, and would be overwritten. Move it away.")
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(place, new / name, follow_symlinks=False)


def _key(format: Format, student: FinishedStudent, options: ExportOptions) -> str:
    """Return a fingerprint of all that decides what is written."""
    reads = format.reads(options)
    rows = list(student.rows(reads)) if reads and student.rows is not None else []
    libraries = dict.fromkeys((*_LIBRARIES, *format.needs))
    parts: list[Any] = [
        format.name,
        student.fingerprint,
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
    """Return the bytes of the files that hold the model of an export, without those that others put there.

    Args:
        folder: Its folder, as `write` left it.
        beside: Endings of files that do not hold it.
    """
    files = (read_record(folder / RECORD) or {}).get("files", {})
    return sum(int(size) for name, (size, _) in files.items() if not name.endswith(beside))
