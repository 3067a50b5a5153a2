"""Force files to disk, take and compare their checksums, and move finished files into place."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

# File name -> [size in bytes, sha256]. A list, not a tuple, since that is what JSON returns.
Sums = Mapping[str, "list[int | str]"]

_PIECE = 2**22


def sha256(file: Path) -> str:
    """Return the sha256 checksum of a file in hexadecimal, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk (`fsync`).

    Raises:
        OSError: The disk is full or broken. Not raised if the system cannot do this for folders.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def files_in(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder, sorted, with `/` as separator."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def sync_tree(folder: Path) -> None:
    """Force all files below a folder to disk, then the folders that contain them.

    Files that their writer has left readable for their owner alone, as safetensors does, get the usual permissions: on
    a shared disk others could read all of a model but its weights.
    """
    _share(folder)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for name in files_in(folder):
        sync(folder / name)
    for path in reversed(folders):
        sync(path)


def _share(folder: Path) -> None:
    os.umask(mask := os.umask(0o077))  # the only way to read it
    for name in files_in(folder):
        file = folder / name
        if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600:
            file.chmod(0o666 & ~mask)


def checksums(folder: Path) -> dict[str, list[int | str]]:
    """Return name -> [bytes, sha256] of all files below a folder (1 to 2 GB a second with SHA instructions)."""
    return {name: [(folder / name).stat().st_size, sha256(folder / name)] for name in files_in(folder)}


def fault(folder: Path, sums: Sums) -> str | None:
    """Return which file is not as it was written and why, or None: `model.safetensors is cut off (10 of 62 bytes)`."""
    for name, (size, digest) in sums.items():
        file = folder / name
        try:
            found = file.stat().st_size
            if found != size:
                return f"{name} is {'empty' if not found else 'cut off'} ({found:,} of {size:,} bytes)"
            if sha256(file) != digest:
                return f"{name} was changed since it was written (its sha256 differs)"
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            return f"{name} is missing" if missing else f"{name} cannot be read ({error.strerror})"
    return None


def move_into(folder: Path, source: Path, names: Iterable[str]) -> None:
    """Move entries of `source` into `folder`, replace entries of the same name, and force both to disk."""
    for name in names:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        os.replace(source / name, folder / name)
    shutil.rmtree(source)
    sync(folder)
