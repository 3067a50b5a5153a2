"""Exports in tests: run where there is no PyTorch, and refused with the same line everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

# A device without PyTorch: a program that imports it fails there.
WITHOUT = """
import runpy, sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hf_distill", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder: Path, *words: str) -> list[Any]:
    """Return what the script in an exported folder prints where there is no PyTorch."""
    done = _started(folder, words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def failing(folder: Path, *words: str) -> str:
    """Return the single line that the script in an exported folder ends with."""
    done = _started(folder, words)
    assert (done.returncode, done.stdout) == (2, ""), (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def _started(folder: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", WITHOUT, str(folder / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def mistakes_of(path: Path, *overrides: str) -> str:
    """Return the lines of a mistake, the same from --check and a run."""
    found = []
    for how in (lambda recipe: check(recipe), lambda recipe: __import__("hf_distill").distill(recipe)):
        with pytest.raises(UserError) as error:
            how(load_recipe(path, overrides))
        found.append(str(error.value))
    assert found[0] == found[1], found
    return found[0]
