"""A run that was killed and goes on ends with the weights, to the bit, of one that was not."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import start, status
from invariants.cases import Record, make_rows, make_trainer, train
from invariants.processes import as_two_processes
from invariants.worker import RESUMED, STOPS, done

from hf_distill.training.checkpoints import last_complete_checkpoint

# Within an epoch of three steps, at its end, at the start of the next, in the last, and when all is done.
AFTER = (1, 3, 4, 7, 8)
CLOCKED = ("runtime", "per_second", "teacher_share", "peak_memory")


def assert_bit_identical(found: Record, wanted: Record) -> None:
    assert wanted.weights.keys() == found.weights.keys()
    different = [name for name, value in wanted.weights.items() if not torch.equal(found.weights[name], value)]
    assert different == []


@pytest.mark.parametrize("kind", ["classification", "causal-lm-gpt2"])
@pytest.mark.parametrize("sampling", ["random", "group_by_length", "batch_rebalance"])
def test_every_step(kind: str, sampling: str, tmp_path: Path) -> None:
    """Length grouping of Transformers draws its order from the generator that dropout uses: after a resume the rest of
    the epoch has other batches, some examples twice and some never. After the last step it would take one more.

    With dropout, accumulation, and an epoch whose last window is short.
    """
    rows = make_rows(kind, 20)
    settings = {**RESUMED, "train_sampling_strategy": sampling, "per_device_train_batch_size": 4, "rows": rows}
    whole = train(make_trainer(kind, tmp_path / "whole", **settings))
    assert len(whole.losses) == RESUMED["max_steps"]
    for step in AFTER:
        directory = tmp_path / f"after-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", directory / f"checkpoint-{step}")
        rest = train(make_trainer(kind, directory, **settings), resume_from_checkpoint=True)
        assert rest.losses == whole.losses[step:]
        assert_bit_identical(rest, whole)


def test_logs_of_a_window_that_was_cut(tmp_path: Path) -> None:
    """The first log after a resume was the mean of the steps since the checkpoint only. `train_loss`, in the report,
    left out all steps before: it was 0 if the last checkpoint came after the last step."""
    settings = {**RESUMED, "per_device_train_batch_size": 4, "logging_steps": 3}
    whole = make_trainer("classification", tmp_path / "whole", **settings)
    whole.train()
    for step in (2, 3, RESUMED["max_steps"]):
        directory = tmp_path / f"after-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", directory / f"checkpoint-{step}")
        rest = make_trainer("classification", directory, **settings)
        rest.train(resume_from_checkpoint=True)
        assert [logged(one) for one in rest.state.log_history] == [logged(one) for one in whole.state.log_history]


def logged(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the logs without what a clock says."""
    return {name: value for name, value in entry.items() if not any(word in name for word in CLOCKED)}


def test_dropout_is_at_work(tmp_path: Path) -> None:
    """Without dropout the tests above would not notice a generator that was not restored."""
    settings = {**RESUMED, "per_device_train_batch_size": 4}
    one, other = (train(make_trainer("classification", tmp_path, **settings, seed=seed)) for seed in (1, 2))
    assert one.losses != other.losses
    assert train(make_trainer("classification", tmp_path, **{**settings, "dropout": 0.0})).losses != one.losses


def test_another_training_of_the_same_trainer_logs_its_own_steps_only(tmp_path: Path) -> None:
    """Sums left from steps that were never logged would be added to the first log of the next training."""
    trainer = make_trainer("classification", tmp_path, max_steps=2, logging_steps=3, learning_rate=0.0)
    train(trainer)
    trainer.args.logging_steps = 1
    trainer.train()
    first = trainer.record.logs[0]
    weighted = sum(o.weight * first[f"objective/{o.name}"] for o in trainer.objectives)
    assert weighted == pytest.approx(first["loss"], rel=1e-5)


def test_killed(tmp_path: Path) -> None:
    """The same for a process that gets no chance to say goodbye: what a checkpoint needs is on disk by then."""
    assert status(start(lambda: done("kill", tmp_path / "killed"))) == -signal.SIGKILL
    checkpoint = last_complete_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert checkpoint.endswith("checkpoint-4")
    kind, settings = "causal-lm-gpt2", {**RESUMED, "per_device_train_batch_size": 4}
    rest = train(make_trainer(kind, tmp_path / "killed", **settings), resume_from_checkpoint=checkpoint)
    assert_bit_identical(rest, train(make_trainer(kind, tmp_path / "whole", **settings)))


def test_two_processes(tmp_path: Path) -> None:
    """On several processes accelerate's `set_epoch` does not reach the sampler of a resumed epoch: without a word it
    would be trained in the order of the first."""
    found = as_two_processes("resume", tmp_path)
    assert list(found) == list(STOPS)
    for (_, step), (whole, rest) in found.items():
        assert rest.losses == whole.losses[step:]
        assert_bit_identical(rest, whole)
