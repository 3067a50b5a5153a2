"""Zip archives: unpacked once into the cache, then read as the files they hold."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from hf_distill.data.forms import describe_endings, is_read
from hf_distill.data.texts import File
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

_FOLDER = "hf_distill-unpacked"
# Text shrinks to a tenth, seldom to a fiftieth. More than this of more than this many bytes is an archive made to fill
# a disk.
_SHRINKS, _LARGE = 250, 2**28
_SPLIT = re.compile(r"(?<![a-z])(train|test|dev|validation|valid|val|eval)(?![a-z])")


def stamp(path: str) -> list[int]:
    """Return size, modification time and inode change time of a file: one of them changes whenever the file does."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def unpack(path: str, name: str) -> Path:
    """Return the folder with the content of a zip archive; unpack it on first use.

    Raises:
        UserError: The file is not an archive, is damaged, or needs a password.
    """
    from datasets import config

    root = Path(config.HF_DATASETS_CACHE, _FOLDER)
    folder = root / fingerprint(os.path.realpath(path), stamp(path))
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=root)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, path, name, root)
            archive.extractall(temporary)  # names that lead out of the folder are made harmless
        os.rename(temporary, folder)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"cannot unpack '{name}': {error}") from error
    except OSError:
        if not folder.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_size(archive: zipfile.ZipFile, path: str, name: str, place: Path) -> None:
    """Refuse an archive that would fill the disk.

    Raises:
        UserError: Its content is larger than the free space, or far larger than texts could be.
    """
    # No file becomes larger than the archive says: Python stops there.
    size = sum(one.file_size for one in archive.infolist())
    if size > _LARGE and size > _SHRINKS * os.path.getsize(path):
        raise UserError(
            f"cannot unpack '{name}': it would become {size / 2**30:,.1f} GiB, as no archive of texts does."
        )
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"cannot unpack '{name}': it needs {size / 2**30:,.1f} GiB, and {place} has {free / 2**30:,.1f} GiB free."
        )


def inside(path: str, name: str) -> list[File]:
    """Return the files of an archive that can be read, in the order of their names.

    Raises:
        UserError: The archive has no such file, or files of several splits.
    """
    folder = unpack(path, name)
    found = [File(str(one), f"{name}/{one.relative_to(folder)}") for one in data_files(folder)]
    if not found:
        raise UserError(f"'{name}' holds no file that can be read. Wanted {describe_endings()}.")
    splits = sorted({split for file in found for split in _SPLIT.findall(Path(file.name).name.lower())})
    if len(splits) > 1:
        raise UserError(
            f"'{name}' holds files of several splits ({', '.join(splits)}). Write path: {name}, and under "
            "splits which is which."
        )
    return found


def data_files(folder: Path) -> list[Path]:
    """Return the data files below a folder, sorted; hidden files and those that macOS adds are left out."""
    found = []
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(one for one in folders if not one.startswith((".", "__")) and _is_new(place, one, seen))
        found += [Path(place, one) for one in sorted(names) if not one.startswith((".", "__")) and _is_data(one)]
    return sorted(found)


def _is_new(place: str, name: str, seen: set[str]) -> bool:
    """Return whether a folder is not one that was seen already: links to folders above would never come to an end."""
    real = os.path.realpath(os.path.join(place, name))
    new = real not in seen
    seen.add(real)
    return new


def _is_data(name: str) -> bool:
    own = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
    return name not in own and (is_read(name) or name.lower().endswith(".zip"))
