"""`hf-distill doctor`: memory, time, disks, the machine and the Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from fake_hub import READ_TOKEN, WRITE_TOKEN, FakeHub, fake_hub
from run.test_hub import _python
from runs import WriteRecipe

from hf_distill import load_recipe
from hf_distill.run.doctor import disk, machine, memory, speed, trial
from hf_distill.run.doctor.allocations import Allocations
from hf_distill.run.doctor.examination import findings
from hf_distill.run.doctor.opened import Opened

__all__ = ["fake_hub"]

CPU = torch.device("cpu")
MB = 10**6


def opened(path: Path, *overrides: str) -> Opened:
    return Opened(load_recipe(path, overrides), path.parent / "scratch")


# --- memory -------------------------------------------------------------------------------------------------------


def test_allocations_are_counted_part_by_part() -> None:
    """A peak that misses what was freed again promises a batch that does not fit."""
    held = []
    with Allocations(CPU) as counted:
        held.append(torch.zeros(1000, dtype=torch.float64))
        torch.zeros(3000, dtype=torch.float64)
        counted.mark()
        held.append(torch.zeros(500, dtype=torch.float64))
    assert counted.peaks == [32_000, 12_000]


def test_the_peak_is_the_highest_of_straight_lines() -> None:
    """Small batches peak where gradients are complete, large ones at the end of the forward pass: one line is wrong."""
    step = memory.StepMemory((2, 4), ((20 + 2 * 7, 100 + 2), (20 + 4 * 7, 100 + 4)))
    assert step.at(2) == 102
    assert step.at(32) == 20 + 32 * 7
    one = memory.StepMemory((1,), ((10, 40),))
    assert one.at(3) == 120


def test_weights_gradients_and_states_are_those_of_the_models(write_recipe: WriteRecipe) -> None:
    """Counted twice, or in another precision, they would hide a batch that fits, or promise one that does not."""
    run = opened(write_recipe())
    (found,) = findings("memory", memory.memory, run)
    student, teacher = (
        sum(one.numel() * 4 for one in model.parameters()) for model in (run.student, run.teacher.model)
    )
    figures = found.figures
    buffers = sum(one.numel() * one.element_size() for one in run.student.buffers())
    assert found.status == "ok"
    assert figures["student_bytes"] == student + buffers
    assert figures["teacher_bytes"] == pytest.approx(teacher, rel=0.02)
    assert figures["gradient_bytes"] == student
    assert figures["optimizer_bytes"] == pytest.approx(2 * student, rel=0.02)
    assert figures["largest_batch_rows"] > 8


@pytest.mark.parametrize(("optim", "states"), [("sgd", 0), ("adafactor", 0.6), ("adamw_torch", 2)])
def test_optimizer_states_are_measured(write_recipe: WriteRecipe, optim: str, states: float) -> None:
    """A table of bytes per optimizer would be wrong for every optimizer that is not in it."""
    found = memory.measured(opened(write_recipe(training={"optim": optim}))).trial
    assert found.optimizer_bytes <= (states + 0.05) * found.student_bytes
    assert found.optimizer_bytes >= (states - 0.55) * found.student_bytes


def test_the_step_at_twice_the_measured_size_is_foretold(write_recipe: WriteRecipe) -> None:
    """The estimate for a large batch comes from two small ones."""
    run = opened(write_recipe(training={"per_device_train_batch_size": 32}))
    found = memory.measured(run)
    assert found.step.sizes == (8, 16)
    rows = trial.longest_batch(run.trainer, 32)
    real = max(trial.try_out(run, rows, 32, 2, counts=True).peaks)
    assert found.step.at(32) == pytest.approx(real, rel=0.15)  # the rows differ in length


def test_what_does_not_fit_is_a_mistake_with_what_fits() -> None:
    """The first step of the longest batch may come after hours."""
    held = trial.Trial(student_bytes=60 * MB, teacher_bytes=100 * MB, optimizer_bytes=120 * MB, optimizer="AdamW")
    step = memory.StepMemory((1, 2), ((10 * MB,), (20 * MB,)))

    def said(rows: int, there: int) -> Any:
        return memory.judge(memory.Memory(rows, held, step, 0, 0, base=20 * MB, there=there * MB), CPU)

    assert said(8, 1000).status == "ok"
    tight, over, never = said(8, 400), said(16, 400), said(1, 290)
    assert tight.status == "warning"
    assert (over.status, over.figures["largest_batch_rows"]) == ("mistake", 10)
    assert "train_batch_size that fits: 10" in over.advice
    assert (never.status, "Not even one row" in never.advice) == ("mistake", True)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "part"), [("ddp", 1), ("fsdp2", 2)])
def test_processes_measure_what_each_of_them_holds(
    write_recipe: WriteRecipe, tmp_path: Path, engine: str, part: int
) -> None:
    """Processes that decide differently what fits wait for each other; a sharded student must not count as a whole."""
    path = write_recipe()
    engines.command(engine, "doctor", path, "--json", directory=tmp_path / "logs")
    text = (tmp_path / "logs" / "0.log").read_text()
    document = json.loads(text[text.index("{") :])
    (found,) = [one for one in document["findings"] if one["check"] == "memory"]
    weights = sum(one.numel() * 4 for one in opened(path).student.parameters())
    assert found["status"] == "ok"
    assert found["figures"]["student_bytes"] == pytest.approx(weights / part, rel=0.1)
    assert (found["figures"]["ddp_bytes"] > 0) == (engine == "ddp")
    assert any(one["check"] == "speed" and one["status"] == "ok" for one in document["findings"])


# --- time ---------------------------------------------------------------------------------------------------------


def test_steps_are_timed_and_leave_no_trace(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Steps of the student that the run gets, or files in the output directory, would change the run."""
    path = write_recipe()
    run = opened(path)
    before = {name: one.clone() for name, one in run.student.state_dict().items()}
    found = findings("speed", speed.speed, run)
    figures = found[0].figures
    assert 0 < figures["step_seconds"] < figures["run_seconds"]
    assert all(one.equal(before[name]) for name, one in run.student.state_dict().items())
    assert not (tmp_path / "out").exists()


def test_the_duration_of_the_run_is_that_of_its_parts(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doctor that forgets the baseline, a seed or the teacher beside the student says Friday instead of Monday."""
    monkeypatch.setattr(speed, "step_seconds", lambda _: 2.0)
    path = write_recipe(report={"baseline": True, "seeds": 2, "latency": False}, training={"eval_strategy": "no"})
    figures = findings("speed", speed.speed, opened(path))[0].figures
    assert figures["student_seconds"] == pytest.approx(8 * 2.0)  # 64 rows in steps of 8
    assert figures["student_seed_43_seconds"] == figures["student_seconds"]
    assert figures["baseline_seconds"] < figures["student_seconds"]  # no teacher beside it
    parts = [value for name, value in figures.items() if name.endswith("_seconds")]
    assert figures["run_seconds"] == pytest.approx(sum(parts) - figures["run_seconds"] - figures["step_seconds"])


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_written_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checkpoint of a week would fail."""
    (tmp_path / "file").write_text("")
    assert [one.status for one in disk.place(tmp_path / "file" / "out")] == ["mistake"]
    assert not list(disk.place(tmp_path / "new" / "out"))
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [one.status for one in disk.place(tmp_path / "out")] == ["mistake"]


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in one directory would then overwrite each other's checkpoints."""
    import fcntl

    def refuses(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    assert [one.status for one in disk.place(tmp_path)] == ["warning"]


def test_room_on_the_disk(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A disk that is full after three days costs the three days."""
    written = [disk.OnDisk(tmp_path, "models", 600), disk.OnDisk(tmp_path, "checkpoints", 400)]
    assert [disk.room(written, free).status for free in (2000, 1400, 900)] == ["ok", "warning", "mistake"]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model").write_bytes(b"x" * 700)  # of a run that is half done: it writes that much less
    assert disk.room(written, 900, disk.held(tmp_path / "half")).status == "ok"
    cached = {
        "name": "cached",
        "path": str(tmp_path / "cache"),
        "teacher": json.loads(write_recipe().read_text())["teacher"],
    }
    run = opened(write_recipe(teacher=cached, report={"baseline": True, "seeds": 2, "latency": False}))
    student = sum(one.numel() * 4 for one in run.student.parameters())
    (found,) = findings("disk", disk.disk, run)
    models, cache = 4 * student, run.run.targets_of(run.teacher).size
    checkpoints = 2 * (student + memory.measured(run).trial.optimizer_bytes)  # one, and the next that is written
    assert found.figures["needed_bytes"] == models + cache + checkpoints
    assert "4 finished students" in found.found
    assert "2 checkpoints" in found.found


@pytest.mark.parametrize(
    ("training", "kept"),
    [
        ({"save_strategy": "no"}, 0),
        ({}, 2),  # a run keeps one
        ({"save_total_limit": 3}, 4),
        ({"save_total_limit": None, "save_strategy": "steps", "save_steps": 2}, 4),  # 8 steps
    ],
)
def test_checkpoints_that_are_there_at_once(write_recipe: WriteRecipe, training: dict[str, Any], kept: int) -> None:
    """Without a limit, checkpoints of a large student fill the disk."""
    assert disk.kept_checkpoints(opened(write_recipe(training=training))) == kept


def test_files_that_were_read_count_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's figure counts cached pages of the data: a run that fits would be called too large after a copy."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._limit() is None
    for name, text in (("max", "1000\n"), ("current", "900\n"), ("stat", "anon 100\ninactive_file 700\nfile 800\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._limit() == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._limit() is None


# --- machine ------------------------------------------------------------------------------------------------------


def test_threads_and_others() -> None:
    """More threads than cores wait for each other: steps take many times as long, and nothing says so."""
    assert machine.threads(4, 1, 4, 0.1).status == "ok"
    over = machine.threads(4, 2, 4, 0.1)
    assert (over.status, over.advice) == ("warning", "Set OMP_NUM_THREADS=2.")
    assert machine.threads(4, 1, 4, 0.9).status == "warning"
    assert [machine.others("cuda:0", held, 80).status for held in (1, 40)] == ["ok", "warning"]
    assert machine.precision("fp16", on_cpu=True).found.startswith("precision fp16")


# --- Hub ----------------------------------------------------------------------------------------------------------

LOOK = """
import json, sys
from hf_distill.errors import UserError
from hf_distill.run.hub import look_at_rights
for case in json.loads(sys.argv[1]):
    try:
        print(look_at_rights(*case))
    except UserError as error:
        print(f"{error.key}! {error}")
"""


def test_rights_are_looked_at_and_nothing_is_created(fake_hub: FakeHub, tmp_path: Path) -> None:
    """A doctor that creates the repository leaves an empty one behind; one that does not look, a push that fails."""

    def look(token: str | None, *cases: tuple[str | None, bool | None]) -> list[str]:
        rows = [(repo_id, private, "outputs/bert") for repo_id, private in cases]
        return _python(fake_hub, tmp_path, token, "-c", LOOK, json.dumps(rows))

    fake_hub.add("ada/there", False)
    free, there, public, foreign = look(
        WRITE_TOKEN, (None, None), ("ada/there", None), ("ada/there", True), ("stranger/student", None)
    )
    assert "ada/bert is not on the Hub yet" in free
    assert "ada/there is on the Hub" in there
    assert public.startswith("private! ada/there exists and is public")
    assert foreign.startswith("repo_id! the token may not write to stranger/student")
    assert "may only read" in look(READ_TOKEN, (None, None))[0]
    assert "none was found" in look(None, (None, None))[0]
    assert {*fake_hub.repos} == {"ada/there"}
