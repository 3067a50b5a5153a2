"""What is found finished is what was written, and what goes on ends the same: `files/durable.py`, `run/found.py`."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from runs import WriteRecipe, run, same, unfinish, weights

from hf_distill.errors import UserError
from hf_distill.files import durable
from hf_distill.files.records import read_record, write_record
from hf_distill.training.checkpoints import SEAL, seal

STEPS = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}


def put(file: Path, content: bytes) -> None:
    file.unlink()  # weights of this process may be mapped from the old one
    file.write_bytes(content)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    put(file, bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "cut": lambda file: put(file, file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: put(file, b""),
    "gone": lambda file: file.unlink(),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for the runs that several tests begin with."""
    return tmp_path_factory.mktemp("kept")


def as_left(out: Path, make: Callable[[], None]) -> None:
    """Have a directory as `make` leaves it, which makes it for the first test alone."""
    copy = out.with_name(f"{out.name}-copy")
    if copy.exists():
        shutil.rmtree(out)
        shutil.copytree(copy, out)
    else:
        make()
        shutil.copytree(out, copy)


@pytest.fixture
def finished(write_recipe: WriteRecipe, kept: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return recipe and directory of a finished run with a baseline, and the student's weights."""
    out = kept / "finished"
    path = write_recipe(report={"latency": False, "baseline": True}, training={"output_dir": str(out)})
    as_left(out, lambda: run(path))
    return path, out, weights(out)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("model.safetensors", how) for how in DAMAGES),
        *((name, "flipped") for name in ("config.json", "_fit.json", "_run.json", "recipe.yaml")),
        *((name, "gone") for name in ("tokenizer_config.json", "_fit.json")),
        ("_runs/baseline/model.safetensors", "flipped"),
        ("_runs/baseline/_fit.json", "cut"),
    ],
)
def test_what_is_damaged_is_made_again(finished: tuple[Path, Path, dict[str, Any]], name: str, how: str) -> None:
    """A flipped bit was used in silence; all else was a traceback, with --restart too."""
    path, out, whole = finished
    DAMAGES[how](out / name)
    run(path)
    assert same(weights(out), whole)
    for folder in (out, out / "_runs" / "baseline"):
        record = read_record(folder / "_fit.json")
        assert record is not None
        assert durable.fault(folder, record["files"]) is None


@pytest.mark.parametrize(
    ("name", "how"),
    [("recipe.yaml", "cut"), ("_run.json", "empty"), ("_fit.json", "flipped"), ("model.safetensors", "gone")],
)
def test_restart_always_works(finished: tuple[Path, Path, dict[str, Any]], name: str, how: str) -> None:
    """It is the way out that every message names."""
    path, out, whole = finished
    DAMAGES[how](out / name)
    run(path, "report.baseline=false", restart=True)
    assert same(weights(out), whole)


def leave_checkpoints(path: Path, out: Path) -> None:
    """Run a recipe as far as a kill right before the end lets it."""
    with mock.patch("hf_distill.run.fit.remove_checkpoints"):
        run(path)
    unfinish(out)


@pytest.fixture
def interrupted(write_recipe: WriteRecipe, kept: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return recipe and directory of a run with checkpoints after 3 and 6 of its 8 steps, and its final weights."""
    out = kept / "interrupted"
    path = write_recipe(training={**STEPS, "output_dir": str(out)})
    as_left(out, lambda: leave_checkpoints(path, out))
    shutil.rmtree(out / "checkpoint-8", ignore_errors=True)
    return path, out, weights(out)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("model.safetensors", "flipped"), ("optimizer.pt", "flipped"), ("optimizer.pt", "gone"), (SEAL, "empty")),
        *(("scheduler.pt", "cut"), ("rng_state.pth", "gone"), ("trainer_state.json", "flipped"), (SEAL, "gone")),
    ],
)
def test_a_damaged_checkpoint_is_not_gone_on_from(
    interrupted: tuple[Path, Path, dict[str, Any]], caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    """A flipped bit in the optimizer, or random numbers that are missing, ended in other weights with status 0."""
    path, out, whole = interrupted
    DAMAGES[how](out / "checkpoint-6" / name)
    with caplog.at_level(logging.WARNING, "hf_distill"):
        run(path)
    assert "checkpoint-6 is not complete" in caplog.text
    assert "checkpoint-3 is not" not in caplog.text
    assert same(weights(out), whole)


def test_checkpoints_of_another_training_do_not_count(interrupted: tuple[Path, Path, dict[str, Any]]) -> None:
    """Where the record of a training is lost, its checkpoints could be gone on from with another one."""
    path, out, whole = interrupted
    (out / "_fit.json").unlink()
    for checkpoint in out.glob("checkpoint-*"):
        record = read_record(checkpoint / SEAL)
        write_record(checkpoint / SEAL, {**(record or {}), "key": "another"})
    run(path)
    assert same(weights(out), whole)


def test_other_processes_are_refused(interrupted: tuple[Path, Path, dict[str, Any]]) -> None:
    """Their random numbers are not in the checkpoint: Transformers goes on without, at the level of its infos."""
    path, out, _ = interrupted
    folder = out / "checkpoint-6"
    record = read_record(folder / SEAL) or {}
    shutil.copy(folder / "rng_state.pth", folder / "rng_state_1.pth")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    seal(folder, record["key"], processes=2)
    with pytest.raises(UserError, match="was made by 2 process"):
        run(path)


def test_a_checkpoint_without_optimizer_is_not_gone_on_from(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`save_only_model`, killed and resumed: status 0 and other weights."""
    path, out = write_recipe(training={**STEPS, "save_only_model": True}), tmp_path / "out"
    leave_checkpoints(path, out)
    assert "starts from the beginning" in capsys.readouterr().out
    assert list(out.glob("checkpoint-*"))
    whole = weights(out)
    run(path)
    assert same(weights(out), whole)


def test_skipping_no_data_is_refused(write_recipe: WriteRecipe) -> None:
    """`ignore_data_skip` shows a resumed run other examples."""
    with pytest.raises(UserError, match="ignore_data_skip"):
        run(write_recipe(training={"ignore_data_skip": True}))


def test_the_best_model_must_be_whole(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Where its checkpoint is damaged, Transformers warns and takes the last model for the best."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}
    training = {**STEPS, **best, "save_steps": 1, "learning_rate": 0.5}
    path, out = write_recipe(training=training), tmp_path / "out"
    leave_checkpoints(path, out)
    whole = weights(out)
    for step in range(8, 1, -1):
        checkpoint = out / f"checkpoint-{step}"
        chosen = Path(json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"])
        if chosen != checkpoint:
            break
        shutil.rmtree(checkpoint)
    assert chosen != checkpoint
    flip(chosen / "model.safetensors")
    run(path)
    assert same(weights(out), whole)


def test_all_is_on_disk_before_it_is_vouched_for(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut six of seven runs were stuck: the record was on disk, the model it called finished was not."""
    synced: set[tuple[int, int]] = set()
    unsafe: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note(handle: int) -> None:
        fsync(handle)
        stat = os.fstat(handle)
        synced.add((stat.st_ino, stat.st_size))

    def vouch(source: Any, target: Any) -> None:
        if Path(target).name in ("_fit.json", SEAL):
            sums = json.loads(Path(source).read_text()).get("files", {})
            for name in sums:
                stat = (Path(target).parent / name).stat()
                if (stat.st_ino, stat.st_size) not in synced:
                    unsafe.append(name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", vouch)
    run(write_recipe(training=STEPS))
    assert synced
    assert unsafe == []
