"""Write files atomically, and check beforehand that a directory can be written to."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.files.durable import sync

_LEFT_OVER = re.compile(r"_.+\.\d+\.[0-9a-f]{8}\.tmp")


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a crash.

    The content goes to a temporary file beside the target, is forced to disk and renamed over it. The temporary
    name starts with an underscore: if the process is killed, `Trainer.push_to_hub` does not publish what is left.

    Args:
        path: The file; its directory must exist. A link is followed.
        content: Text is written as UTF-8, with its line ends as they are.

    Raises:
        OSError: The file cannot be written. Its `filename` is `path`; the old content is unchanged.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.json"
    >>> write_atomic(file, "{}")
    >>> file.read_text(), os.listdir(file.parent)
    ('{}', ['report.json'])
    """
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    temporary = _beside(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f"_{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def is_left_over(name: str) -> bool:
    """Return whether a file name is that of a temporary file, left by a process killed in this module.

    >>> is_left_over("_recipe.yaml.4711.0a1b2c3d.tmp"), is_left_over("_notes.tmp")
    (True, False)
    """
    return _LEFT_OVER.fullmatch(name) is not None


def check_writable(directory: str | os.PathLike[str], need_bytes: int | None = None) -> None:
    """Create `directory` and write a test file there, so that a run does not fail after hours of work.

    Args:
        directory: Created, with its parents, if it does not exist.
        need_bytes: Bytes that the run is going to write; an error if the disk has less free space.

    Raises:
        UserError: The directory cannot be written to. One line: the directory, the reason, what to do.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        probe = _beside(Path(directory) / "probe")
        try:
            # An empty file fits on a full disk, so write a block and force it out.
            probe.write_bytes(bytes(4096))
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot create {directory}: there is a file in its place; choose another directory") from error
    except OSError as error:
        what_to_do = {
            errno.EACCES: "give this user the right to write there, or choose another directory",
            errno.EPERM: "give this user the right to write there, or choose another directory",
            errno.EROFS: "it is on a read-only file system; choose another directory",
            errno.ENOSPC: "its disk is full; free some space or choose another directory",
            errno.EDQUOT: "the disk quota is used up; free some space or choose another directory",
        }.get(error.errno or 0, "choose another directory")
        raise UserError(f"cannot write to {directory} ({error.strerror}): {what_to_do}") from error
    free = shutil.disk_usage(directory).free
    if need_bytes is not None and free < need_bytes:
        raise UserError(
            f"{directory} needs {need_bytes / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB free: "
            "free some space or choose another directory"
        )
