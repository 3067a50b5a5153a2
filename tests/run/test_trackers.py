"""What experiment trackers receive of a run, and what the log file and the time of arrival say."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from runs import WriteRecipe
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hf_distill.cli import main
from hf_distill.errors import Stopped
from hf_distill.run.arrival import Arrival, Part
from hf_distill.run.log_file import logging_output

FEW: dict[str, Any] = {"max_steps": 4, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
# Terms, agreement and speeds of a training; these names are promised in docs/running.md.
OF_TRAINING = {"loss", "objective/kl", "agreement", "tokens_per_second", "peak_memory", "teacher_share", "grad_norm"}
OF_EVALUATION = {"eval_loss", "eval_accuracy", "eval_objective/kl", "eval_agreement"}
OF_REPORT = {
    f"eval_{model}/{what}"
    for model in ("teacher", "student", "baseline")
    for what in ("accuracy", "parameters", "latency_ms")
} | {"eval_agreement"}


class Noting(TrainerCallback):
    """A tracker: notes what it is told, by the name of its run."""

    runs: ClassVar[dict[str, set[str]]] = {}
    ended: ClassVar[list[str]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert args.run_name not in self.runs, "two trainings in one run of the tracker"
        self.runs[args.run_name] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.runs[args.run_name] |= {*logs}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended.append(args.run_name)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Noting]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Noting)
    monkeypatch.setattr(Noting, "runs", {})
    monkeypatch.setattr(Noting, "ended", [])
    return Noting


def recipe(write_recipe: WriteRecipe, make_model: Any, report_to: str, **others: Any) -> Path:
    model = str(make_model("bert", layers=4, seed=1))
    return write_recipe(
        teacher={"name": "finetuned", "model": model},
        training={**FEW, "report_to": report_to, **others},
        report={"baseline": True, "latency": True},
    )


def test_every_training_and_the_report_have_a_run_in_the_tracker(
    tracker: type[Noting], write_recipe: WriteRecipe, make_model: Any
) -> None:
    """Teacher, student and baseline in one run overwrite each other's curves, and the results are on disk alone."""
    assert main([str(recipe(write_recipe, make_model, "tensorboard"))]) == 0
    assert [*tracker.runs] == tracker.ended == ["out teacher", "out student", "out baseline", "out report"]
    assert tracker.runs["out student"] >= OF_TRAINING | OF_EVALUATION
    assert tracker.runs["out teacher"] >= {"loss", "objective/labels", "eval_accuracy"}
    assert tracker.runs["out report"] == OF_REPORT | {"eval_student/f1", *_others(tracker)}


def _others(tracker: type[Noting]) -> set[str]:
    return {name for name in tracker.runs["out report"] if name.rpartition("/")[2] in ("f1", "mcc")}


def test_a_tracker_that_fails_at_the_end_costs_a_warning(
    tracker: type[Noting],
    write_recipe: WriteRecipe,
    make_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The report of a week's run is not shown, and its student not pushed, since a server was away for a minute."""

    def fail(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.run_name.endswith("report"):
            raise ConnectionError("the tracker is away")

    monkeypatch.setattr(Noting, "on_train_end", fail)
    assert main([str(recipe(write_recipe, make_model, "tensorboard"))]) == 0
    assert "the tracker is away" in caplog.text
    assert (tmp_path / "out" / "report.json").exists()


# ---- Real trackers, where they are installed -------------------------------------------------------------------------


def _tensorboard(out: Path) -> dict[str, set[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore

    found: dict[str, set[str]] = {}
    for file in out.rglob("events.out.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        found[str(file)] = {*events.Tags()["scalars"]}
    return found


def _mlflow(out: Path) -> dict[str, set[str]]:
    import mlflow  # type: ignore

    runs = mlflow.search_runs(output_format="list")
    return {run.data.tags["mlflow.runName"]: {*run.data.metrics} for run in runs}


def _trackio(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in (out.parent / "trackio").rglob("*.db"):
        with sqlite3.connect(file) as store:
            for name, metrics in store.execute("select run_name, metrics from metrics"):
                found.setdefault(name, set()).update(json.loads(metrics))
    return found


def _wandb(out: Path) -> dict[str, set[str]]:
    return {str(file): {"train/loss"} for file in (out.parent / "wandb").rglob("*.wandb")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read", "runs"), [("tensorboard", _tensorboard, 4), ("mlflow", _mlflow, 4), ("trackio", _trackio, 4),
    ("wandb", _wandb, 4)],
)  # fmt: skip
def test_real_trackers(
    name: str,
    read: Any,
    runs: int,
    write_recipe: WriteRecipe,
    make_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its own idea of when a run begins and ends: one kept open swallows the next training."""
    if find_spec(name) is None:  # importing it here would settle where it writes
        pytest.skip(f"needs {name}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    path = recipe(write_recipe, make_model, name)
    assert main([str(path)]) == 0
    found = read(tmp_path / "out")
    assert len(found) == runs, found
    every = set().union(*found.values())
    prefix = "" if name == "mlflow" else "train/"
    assert f"{prefix}loss" in every
    if name != "wandb":
        assert {f"{prefix}objective/kl", f"{prefix}tokens_per_second"} <= every
        assert ("eval_" if name == "mlflow" else "eval/") + "student/accuracy" in every
    # What a tracker leaves in the directory is the run's: neither another start nor a new one is refused.
    assert main([str(path)]) == 0
    assert main([str(path), "--restart"]) == 0


# ---- The log file ----------------------------------------------------------------------------------------------------


def test_the_log_file(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a job without a terminal, what it said is lost with the job, or in the scheduler's folder of another user."""
    path = write_recipe(training={"max_steps": 4, "logging_steps": 2, "disable_tqdm": False}, report={"latency": False})
    assert main([str(path)]) == 0
    log = tmp_path / "out" / "_log.txt"
    lines = log.read_text().splitlines()
    assert all(datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)
    said = [line[20:] for line in lines]
    assert said[-1] == "done"
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {*printed} <= {line.strip() for line in said}
    assert any("4/4" in line for line in said)  # the bar, as a line
    assert "\x1b" not in log.read_text()
    # Appended to by the next start, also where that ends with an error.
    from hf_distill.run import distill

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    (tmp_path / "out" / "report.json").unlink()
    monkeypatch.setattr(distill, "report_on", fail)
    with pytest.raises(OSError, match="is gone"):
        main([str(path)])
    again = log.read_text().splitlines()
    assert again[: len(lines)] == lines
    assert again[-1].endswith("OSError: the disk is gone")


def test_the_last_line_is_in_the_log(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the morning the log ends with a signal's number, and what to type next was on a terminal that is gone."""
    from hf_distill.run import distill

    def stop(*_: Any) -> None:
        raise Stopped(15)

    path = write_recipe(training=FEW, report={"latency": False})
    monkeypatch.setattr(distill, "report_on", stop)
    assert main([str(path)]) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Run the same command again" in last
    assert (tmp_path / "out" / "_log.txt").read_text().splitlines()[-1].endswith(last)


def test_others_can_read_the_weights(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """safetensors writes for the owner alone: on a shared disk, a server reads all of a student but its weights."""
    assert main([str(write_recipe(training=FEW, report={"latency": False}))]) == 0
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_no_log_through_a_link(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Whoever may write into the directory could have a run append to any file of its user."""
    path = write_recipe(training=FEW, report={"latency": False})
    assert main([str(path)]) == 0
    log, other = tmp_path / "out" / "_log.txt", tmp_path / "precious"
    log.unlink()
    log.symlink_to(other)
    other.write_text("mine\n")
    assert main([str(path)]) == 2  # refused, as any link in the place of a run's file
    with logging_output(enabled=True) as late:
        late.into(tmp_path / "out")  # a link that came after that
        print("not there")
    assert other.read_text() == "mine\n"


def test_the_log_is_safe_to_show_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries print addresses with passwords, and text that a terminal obeys; their handlers keep an old stream."""
    library = logging.getLogger("a_library_that_prints")
    library.addHandler(handler := logging.StreamHandler(sys.stderr))
    library.propagate = False
    with logging_output(enabled=True) as log:
        log.into(tmp_path)
        library.warning("by a handler")
        sys.stdout.writelines(["by ", "lines\n"])
        print("https://me:pa55word@host/x of hf_abcdefghijklmnopqrstuv \x1b]0;title\x07")
    library.removeHandler(handler)
    assert handler.stream is sys.stderr
    text = (tmp_path / "_log.txt").read_text()
    assert "by a handler" in text
    assert "by lines" in text
    assert "pa55word" not in text
    assert "hf_abc" not in text
    assert not {"\x1b", "\x07"} & {*text}
    assert not (tmp_path / "_log.txt").stat().st_mode & 0o111
    assert "pa55word" in capsys.readouterr().out  # what a library prints is its own


# ---- The time of arrival ---------------------------------------------------------------------------------------------


def test_when_a_run_ends() -> None:
    """The bar of one training says four minutes, and the run takes an hour: nobody knows when to come back."""
    clock = [0.0]
    arrival = Arrival(
        [Part("teacher", 100.0), Part("cache", 50.0), Part("student", 200.0), Part("report", 50.0)],
        clock=lambda: clock[0],
        now=lambda: datetime(2026, 11, 30, 23, 50),
    )
    assert arrival.in_words() == ""
    arrival.begin("teacher")
    assert arrival.at(0.0) == ""
    clock[0] = 10.0
    assert arrival.at(0.5) == "run ends about 23:51"  # 50 units in 10 s: 350 more take 70 s
    assert arrival.left() == pytest.approx(70.0)
    clock[0] = 20.0
    arrival.at(1.0)
    arrival.begin("cache")
    assert arrival.left() == pytest.approx(60.0)
    clock[0] = 100.0
    arrival.begin("student")
    assert arrival.left() == pytest.approx(50.0)
    # Resumed in the middle, at half the speed: its own speed counts for the rest of it, the mean for what follows.
    arrival.at(0.5)
    clock[0] = 120.0
    assert arrival.at(0.75) == "run ends about 23:50"
    assert arrival.left() == pytest.approx(50 * 20 / 50 + 50 * (20 + 20) / (100 + 50))
    clock[0] = 5000.0
    assert arrival.at(0.76) == "run ends about Tue 01:32"


def test_the_parts_of_a_run(write_recipe: WriteRecipe, make_model: Any) -> None:
    """A part that is left out makes the run end hours later than it said."""
    from hf_distill import load_recipe
    from hf_distill.run.parts import parts
    from hf_distill.run.preparation import open_run

    length: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"}
    path = recipe(write_recipe, make_model, "none", per_device_train_batch_size=8, **length)
    given = ["report.seeds=2", "teacher.training.num_train_epochs=2"]
    run = open_run(load_recipe(str(path), given), restart=False, claims=False)
    found = parts(run)
    wanted = ["teacher", "student", "baseline", "student seed 43", "baseline seed 43", "report"]
    assert [part.name for part in found] == wanted
    rows = len(run.prepared.train)
    steps = -(-rows // 8) * 2
    assert [part.steps for part in found[:3]] == [steps] * 3
    teacher, student, baseline = (part.work for part in found[:3])
    # The teacher's gradients cost three passes; beside the student it takes one, and one in each of two evaluations.
    evaluated = 2 * len(run.prepared.eval)
    one = teacher / (3 * 2 * rows + evaluated)
    assert student - baseline == pytest.approx(one * (2 * rows + evaluated))
