"""Running recipes in tests: what most of them need around `distill`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).parents[1]
KL_AND_LABELS = [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}]
WriteRecipe = Callable[..., Path]


def run(path: Path, *overrides: str, restart: bool = False, drawn: bool = False) -> Any:
    """Run a recipe; unless `drawn`, the page of its report is without plots, a third of the time of a tiny run."""
    from hf_distill import distill, load_recipe

    with nullcontext() if drawn else mock.patch("hf_distill.report.page.plots", return_value=[]):
        return distill(load_recipe(path, overrides), restart=restart)


def weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def unfinish(directory: Path) -> None:
    """Write down of a finished training what stood there right before it was finished."""
    from hf_distill.files.ownership import TRAINING
    from hf_distill.files.records import read_record, write_record

    record = read_record(directory / TRAINING)
    assert record is not None
    write_record(directory / TRAINING, {**record, "finished": False})


def command(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPO / "scripts" / "distill.py"), str(path), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
