"""Running recipes in tests: what most of them need around `distill`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).parents[1]
KL_AND_LABELS = [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}]
WriteRecipe = Callable[..., Path]


def run(path: Path, *overrides: str, restart: bool = False, drawn: bool = False, may_take_over: bool = False) -> Any:
    """Run a recipe.

    Args:
        path: The recipe.
        *overrides: Its overrides.
        restart: As of `distill`.
        drawn: Whether the page of its report has plots, which take two thirds of the time of a tiny run.
        may_take_over: Whether the report of a finished run may be taken over. By default its models are evaluated
            again, which shows that they are loaded as they were trained.
    """
    from hf_distill import distill, load_recipe

    with ExitStack() as patched:
        if not drawn:
            patched.enter_context(mock.patch("hf_distill.report.page.plots", return_value=[]))
        if not may_take_over:
            patched.enter_context(mock.patch("hf_distill.run.distill.measured_before", return_value=None))
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
