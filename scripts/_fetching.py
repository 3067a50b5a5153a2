"""What the scripts that fetch models and data share: packages through pip, files against their sha256."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.locations import resolve


def run_all(steps: Sequence[Callable[[], None]]) -> int:
    """Fetch one thing after the other; return the exit status: 0, or 2 with a line on stderr that says what failed."""
    try:
        for step in steps:
            step()
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on from here", file=sys.stderr)
        return 130
    return 0


def install(package: tuple[str, str], place: str, files: Mapping[str, str]) -> None:
    """Install a package into the running Python for its data, without its dependencies, unless that is there and whole.

    Args:
        package: `name==version`, and the sha256 of its archive.
        place: Where its data is, `package:NAME/PATH`.
        files: Path below the place -> sha256 of the file; `.` is the place itself.

    Raises:
        UserError: It could not be installed, or is not what it should be.
    """
    if _are_whole(place, files):
        print(f"{place}: already there", flush=True)
        return
    # Forced: an interrupted installation leaves files that pip takes for an installed package.
    pip("install", *package, "--force-reinstall")
    importlib.invalidate_caches()
    if not _are_whole(place, files):
        raise UserError(f"{place}: pip installed it, but its files are not whole. Run this again.")
    print(f"{place}: installed", flush=True)


def _are_whole(place: str, files: Mapping[str, str]) -> bool:
    try:
        directory = Path(resolve(place))
    except UserError:
        return False
    return all(is_whole(directory / name, digest) for name, digest in files.items())


def pip(command: str, requirement: str, digest: str, *options: str) -> None:
    """Run pip for one package; pip itself refuses an archive with another sha256, before it runs any of its code.

    Args:
        command: `install` or `download`.
        requirement: `name==version`.
        digest: sha256 of its archive.
        *options: Of the command.

    Raises:
        UserError: pip failed, with the reason it gave.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")
        print(f"fetching {requirement} with pip", flush=True)
        arguments = f"--disable-pip-version-check --no-input --retries 2 {command} --no-deps -r".split()
        whole = [sys.executable, "-m", "pip", *arguments, str(wanted), *options]
        done = subprocess.run(whole, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason given")
        raise UserError(
            f"pip could not fetch {requirement} ({reason.removeprefix('ERROR:').strip()}). It comes from the Python "
            "package index: check the network and `pip config list`, then run this again."
        )


def is_whole(file: Path, digest: str) -> bool:
    """Return whether a file is there and has this sha256."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest
