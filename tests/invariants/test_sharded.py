"""Checkpoints of a student that an engine shards: a resumed training ends with the same bits; half of one is none."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from campaign.trials import at_file_operation, kill_this
from invariants.cases import make_trainer, split
from invariants.projected import Projected
from invariants.worker import NoNotes
from safetensors.torch import load_file

from hf_distill import parallel
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.training.checkpoints import last_complete_checkpoint

SETTINGS: dict[str, Any] = {
    "terms": [KLDivergence(group_weights="worst_group"), Labels(), Projected(weight=0.5)],
    "teacher_width": 24,
    "dropout": 0.1,
    "dtype": torch.float32,
    "optim": "adamw_torch",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


def trained(directory: Path, disturb: Any = None) -> list[float]:
    """Train, or go on with the training that is there; return the losses of the steps, and save the student."""
    from invariants.worker import grouped

    trainer = make_trainer("classification", directory, rows=grouped("classification"), **SETTINGS, **split(2, 2))
    trainer.record.gradients = NoNotes()
    if disturb is not None:
        disturb()
    trainer.train(resume_from_checkpoint=parallel.asked_once(lambda: last_complete_checkpoint(directory)))
    trainer.save_model(str(directory / "student"))
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module", params=["fsdp2-shards", pytest.param("fsdp2", marks=pytest.mark.slow), *engines.ZERO])
def straight(request: Any, tmp_path_factory: Any) -> tuple[str, Path, list[float]]:
    directory = tmp_path_factory.mktemp("straight")
    losses, again = engines.run(request.param, partial(trained, directory), directory / "results")
    assert losses == again
    return request.param, directory, losses


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(directory / "student" / "model.safetensors") for directory in (one, other))
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


# Process, and which of its changes of files: in a checkpoint, before and after another, and in the last.
@pytest.mark.parametrize(
    ("rank", "operation"), [(1, 5), (0, 12), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((0, 25), (1, 3)))]
)
def test_killed(straight: tuple[str, Path, list[float]], rank: int, operation: int, tmp_path: Path) -> None:
    """What only a process by itself knows (its part of the optimizer, weights of groups, random numbers) would start
    again in the middle of the training."""
    engine, whole, losses = straight
    out = tmp_path / "out"

    def disturb() -> None:
        if parallel.rank() == rank:
            at_file_operation(out, operation, kill_this)

    with pytest.raises(AssertionError):
        engines.run(engine, partial(trained, out, disturb), tmp_path / "first")
    assert not (out / "student").exists()
    found, _ = engines.run(engine, partial(trained, out), tmp_path / "second")
    assert found == losses
    assert same(out, whole)


def test_half_a_checkpoint_is_none(straight: tuple[str, Path, list[float]], tmp_path: Path) -> None:
    """A folder of shards is there from the first byte of the first process on: taken for a checkpoint, the rest of the
    weights would be those that the model began with."""
    engine, whole, _ = straight
    for step in (2, 3):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    shards = sorted((tmp_path / "checkpoint-3").glob("pytorch_model_fsdp_0/*.distcp"))
    shards += sorted((tmp_path / "checkpoint-3").glob("global_step*/*"))
    assert len(shards) == {"fsdp2-shards": 2, "fsdp2": 0}.get(engine, len(shards) or 1)
    for one in [*shards, tmp_path / "checkpoint-3" / "rng_state_1.pth"][:1]:
        one.unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-3" / "_files.json").unlink()
    if shards:
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
