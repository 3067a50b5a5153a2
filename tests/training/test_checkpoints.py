"""Which checkpoint a training goes on from: `hf_distill/training/checkpoints.py`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from invariants.cases import make_trainer, split
from safetensors.torch import save_file
from transformers.trainer_utils import HPSearchBackend

from hf_distill.files.ownership import TRAINING
from hf_distill.files.records import write_record
from hf_distill.run.directory import last_checkpoint
from hf_distill.training.checkpoints import last_complete_checkpoint, seal


def _checkpoint(root: Path, step: int) -> Path:
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"w": torch.ones(4)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"lr": 0.1}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def test_newest_by_number(tmp_path):
    """Sorted as text, checkpoint-900 would be resumed in place of checkpoint-1000."""
    for step in (900, 1000, 50):
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1000")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "trainer_state.json").unlink(),
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 2'),
        lambda folder: (folder / "trainer_state.json").write_text("[]"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: _cut(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100),
        lambda folder: _cut(folder / "optimizer.pt"),
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
    ],
)
def test_half_written_checkpoint_is_skipped_and_named(tmp_path, caplog, damage):
    """Resuming from a checkpoint that a kill cut short would go on from other weights, or from a fresh optimizer."""
    _checkpoint(tmp_path, 1)
    damage(_checkpoint(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert "checkpoint-2 is not complete" in caplog.text


def test_every_shard_counts(tmp_path):
    """An index is written before the last shard is safe on disk."""
    folder = _checkpoint(tmp_path, 1)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert last_complete_checkpoint(tmp_path) is None
    save_file({"v": torch.ones(2, 2)}, folder / "model-00002-of-00002.safetensors")
    assert last_complete_checkpoint(tmp_path) == str(folder)


def test_the_best_model_of_a_trial(tmp_path):
    """A search over hyperparameters has a directory for each trial: all its hours ended in "cannot be loaded"."""
    trainer = make_trainer("classification", tmp_path, max_steps=1, save_strategy="steps", save_steps=1, **split(4))
    trainer.train()
    wanted = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    (tmp_path / "run-0").mkdir()
    (tmp_path / "checkpoint-1").rename(tmp_path / "run-0" / "checkpoint-1")
    with torch.no_grad():
        trainer.model.classifier.weight.zero_()
    trainer.hp_search_backend, trainer._trial = HPSearchBackend.OPTUNA, SimpleNamespace(number=0)
    trainer.state.best_model_checkpoint = str(tmp_path / "run-0" / "checkpoint-1")
    trainer._load_best_model()
    assert all(torch.equal(wanted[name], one) for name, one in trainer.model.state_dict().items())


def _sharded(folder: Path) -> None:
    """Make a checkpoint one of two processes, as FSDP writes it with SHARDED_STATE_DICT."""
    (folder / "model.safetensors").unlink()
    (folder / "rng_state.pth").unlink()
    for part, file in (("pytorch_model_fsdp_0", "optimizer.pt"), ("optimizer_0", "scheduler.pt")):
        (folder / part).mkdir()
        (folder / part / "__0_0.distcp").write_bytes((folder / file).read_bytes())
    (folder / "optimizer.pt").unlink()
    for rank in range(2):
        torch.save({"lr": 0.1}, folder / f"rng_state_{rank}.pth")


@pytest.mark.parametrize("missing", ["optimizer_0", "scheduler.pt", "rng_state_1.pth"])
def test_a_sharded_checkpoint_needs_all_that_others_need(tmp_path: Path, missing: str) -> None:
    """`save_only_model` with sharded weights, or a file that another machine never wrote: the training went on with a
    new optimizer, or other random numbers, and only a log said so."""
    folder = _checkpoint(tmp_path, 1)
    _sharded(folder)
    seal(folder, "key", 2)
    assert last_complete_checkpoint(tmp_path, "key") == str(folder)
    (folder / missing).rename(tmp_path / "elsewhere")
    seal(folder, "key", 2)
    assert last_complete_checkpoint(tmp_path, "key") is None


def test_the_last_line_of_a_stopped_run_reads_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler kills a run half a minute after its SIGTERM: hashing hundreds of gigabytes again, to name them, took
    longer, and the run was not queued again."""
    folder = _checkpoint(tmp_path, 1)
    seal(folder, "key", 1)
    record = {"key": "key", "finished": False, "seconds": 0.0, "history": [], "sealed": True}
    write_record(tmp_path / TRAINING, record)
    monkeypatch.delattr("hf_distill.training.checkpoints.fault")
    assert last_checkpoint(tmp_path) == str(folder)
