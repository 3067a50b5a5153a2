"""Checks that all processes of a run see the same directory, also those on other machines."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from hf_distill import parallel
from hf_distill.errors import UserError, under
from hf_distill.files.atomic import check_writable


def check_shared(directory: Path, key: str = "") -> None:
    """Refuse a directory that other machines have under the same name, but do not share. All processes must call this.

    The first process writes a file there, and every other one looks for it. Its name is a new one each time, so that
    no machine answers from what it remembers of a network file system.

    Args:
        directory: The directory; the first process makes it if it does not exist.
        key: Recipe key for the error.

    Raises:
        UserError: A process does not see the file; the message names the machine.
    """
    if parallel.started() < 2:
        return

    def write() -> tuple[Path, str]:
        with under(key):
            check_writable(directory)
        file = (
            directory / f"_shared.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        )  # removed later if this process is killed
        file.touch()
        return file, socket.gethostname()

    file, first = parallel.asked_once(write)

    def look() -> None:
        if not (directory / file.name).exists():
            raise UserError(
                f"{directory} of {parallel.here()} is not the one of the first process, on {first}. All machines read "
                "there what the first one writes: name a directory that they share (docs/many_machines.md).",
                key=key,
            )

    try:
        parallel.together(look)
    finally:
        if parallel.is_first():
            file.unlink(missing_ok=True)
