"""A cache on the Hub, against the hub of `fake_hub.py`: published by one machine, taken by another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import READ_TOKEN, WRITE_TOKEN, FakeHub, fake_hub
from invariants.cached import capture, parts
from runs import REPO, WriteRecipe

__all__ = ["fake_hub"]


def distill(hub: FakeHub, home: Path, *arguments: object, token: str | None = WRITE_TOKEN) -> tuple[int, str]:
    own = {"PYTHONPATH": str(REPO), "HF_DATASETS_CACHE": str(home / "d"), **hub.environment(home, token)}
    done = subprocess.run(
        [sys.executable, "-m", "hf_distill.cli", *map(str, arguments)],
        env={**os.environ, **own},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_published_and_taken(fake_hub: FakeHub, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The whole way: pushed by `hf-distill cache`, trained from on a machine that has never seen it, and refused by a
    run whose teacher is another."""
    model = make_model("bert", layers=2, seed=1)
    entry = {"name": "cached", "teacher": {"name": "pretrained", "model": str(model)}, "repo_id": "ada/answers"}
    sections = {"student": {"name": "copy_layers", "layers": 1}}
    push = write_recipe(teacher={**entry, "push": True, "private": True}, **sections)
    status, said = distill(fake_hub, tmp_path / "one", "cache", push)
    assert status == 0, said
    repo = fake_hub.repos["ada/answers"]
    assert repo.private
    assert sorted(repo.files) == ["README.md", "cache.json", "targets-00000-of-00001.arrow"]
    take = write_recipe(teacher=entry, training={"output_dir": str(tmp_path / "two")}, **sections)
    status, said = distill(fake_hub, tmp_path / "other", take, token=READ_TOKEN)
    assert status == 0, said
    assert "shard 1 of" not in said  # nothing was asked again
    assert (tmp_path / "two" / "model.safetensors").exists()
    other = {**entry, "teacher": {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=2))}}
    wrong = write_recipe(teacher=other, training={"output_dir": str(tmp_path / "three")}, **sections)
    status, said = distill(fake_hub, tmp_path / "other", wrong)
    assert status == 2
    assert "is of another teacher" in said
    nowhere = write_recipe(teacher={**entry, "repo_id": "ada/nothing"}, training={"output_dir": str(tmp_path / "four")})
    status, said = distill(fake_hub, tmp_path / "other", nowhere)
    assert status == 2
    assert "cannot download the cache from the data set 'ada/nothing'" in said


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_anybody_can_read_it(kind: str, tmp_path: Path) -> None:
    """It is a data set like any other: `load_dataset` opens the directory (so also the repository), and what the card
    says of the bytes is true."""
    import datasets
    import torch

    _, teacher, data = parts(kind, dtype=torch.float32)
    path = tmp_path / "cache"
    capture(teacher, data, path, top=3, precision="float16")
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(rows) == 24
    said = json.loads((path / "cache.json").read_text())
    assert len(said["shards"]) == 1
    if kind == "classification":
        assert np.asarray(rows["logits"][:]).shape == (24, 3)
        return
    card = (path / "README.md").read_text()
    assert "| `indices` | uint16 | the 3 likeliest tokens |" in card
    row = max(rows, key=lambda one: len(one["remaining"]))
    indices = np.frombuffer(row["indices"], np.uint16).reshape(-1, 3)
    kept = np.frombuffer(row["log_probabilities"], np.float16).reshape(-1, 3).astype(float)
    rest = np.frombuffer(row["remaining"], np.float16).astype(float)
    assert indices.max() < 40
    assert np.exp(kept).sum(-1) + np.exp(rest) == pytest.approx(np.ones(len(rest)), abs=2e-3)
