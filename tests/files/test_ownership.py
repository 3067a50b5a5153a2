"""Whose files a directory holds, and who may write: `hf_distill/files/ownership.py`, `hf_distill/files/lock.py`."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import REPO, WriteRecipe, run, same, weights

from hf_distill.errors import UserError
from hf_distill.files.lock import Lock
from hf_distill.files.ownership import FILE, TRAINING, Ownership
from hf_distill.files.records import write_record


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("restart", [False, True])
def test_a_project_is_not_a_run(write_recipe: WriteRecipe, tmp_path: Path, restart: bool) -> None:
    """A folder with a recipe of its own and `output_dir: .` lost its README, config and checkpoints, with status 0."""
    project = tmp_path / "project"
    (project / "checkpoint-archive").mkdir(parents=True)
    (project / "checkpoint-3").mkdir()
    for name in ("README.md", "config.json", "recipe.yaml", "checkpoint-archive/x", "checkpoint-3/y"):
        (project / name).write_text("mine")
    before = contents(project)
    path = write_recipe(training={"output_dir": str(project)})
    with pytest.raises(UserError, match="was not written by this package"):
        run(path, restart=restart)
    assert contents(project) == before


@pytest.mark.parametrize("name", ["checkpoint-9", "model.safetensors"])
def test_a_file_of_somebody_else_is_not_overwritten(write_recipe: WriteRecipe, tmp_path: Path, name: str) -> None:
    """Also in a directory of ours: it was not this package that wrote it."""
    out = tmp_path / "out"
    Ownership(out.resolve()).check()
    out.mkdir()
    Ownership(out).take()
    (out / name).write_text("mine")
    for restart in (False, True):
        with pytest.raises(UserError, match=f"{name} in .* was not written by this package"):
            run(write_recipe(), restart=restart)
    assert (out / name).read_text() == "mine"


def test_what_is_put_beside_a_student_stays(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A restart, or the end of a run, removed all that was called `checkpoint-...`, and left the old model there."""
    out = tmp_path / "out"
    run(write_recipe())
    (out / "checkpoint-archive").mkdir()
    (out / "checkpoint-archive" / "best").write_text("mine")
    (out / "notes.txt").write_text("mine")
    run(write_recipe(student={"name": "copy_layers", "layers": 1}), restart=True)
    assert (out / "notes.txt").read_text() == (out / "checkpoint-archive" / "best").read_text() == "mine"
    assert not list(out.glob("checkpoint-[0-9]*"))
    assert (out / "report.json").exists()


def test_a_directory_of_the_version_before_is_recognised(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """It has no record of what was written and no checksums; a finished student in it is hours of work."""
    out = tmp_path / "out"
    run(write_recipe())
    for name in (FILE, "_lock"):
        (out / name).unlink()
    record = json.loads((out / TRAINING).read_text())
    for key in ("sum", "files", "sealed"):
        record.pop(key)
    (out / TRAINING).write_text(json.dumps(record))
    written = (out / "model.safetensors").stat().st_mtime_ns
    run(write_recipe())
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    run(write_recipe(student={"name": "copy_layers", "layers": 1}), restart=True)
    assert Ownership(out).names()


def test_what_a_kill_at_the_very_start_leaves_is_ours(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Killed before anything was named, a run refused its own directory for ever, also with --restart."""
    out = tmp_path / "out"
    out.mkdir()
    left = ["__run.json.4711.0a1b2c3d.tmp", "_probe.4711.0a1b2c3d.tmp", "_lock", "_recipe.yaml.12.ffffffff.tmp"]
    for name in left:
        (out / name).write_text("")
    run(write_recipe())
    assert not list(out.glob("*.tmp"))


def test_a_finished_run_leaves_no_checkpoints(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """469 MB lay around a student of 62: optimizers of its teacher, its baseline and its stages."""
    stages = [
        {"objectives": [{"name": "hidden"}], "training": {"num_train_epochs": 1}},
        {"objectives": [{"name": "kl"}, {"name": "labels"}]},
    ]
    teacher = {
        "name": "finetuned",
        "model": str(make_model("bert-bare", layers=2)),
        "output_dir": str(tmp_path / "teachers"),
    }
    path = write_recipe(
        teacher=teacher,
        student={"name": "copy_layers", "layers": 1},
        objectives=None,
        stages=stages,
        report={"latency": False, "baseline": True},
    )
    run(path)
    assert not [*tmp_path.rglob("checkpoint-*"), *tmp_path.rglob("optimizer.pt"), *tmp_path.rglob("_export")]
    (teacher_folder,) = (tmp_path / "teachers").iterdir()
    written = (teacher_folder / "model.safetensors").stat().st_mtime_ns
    run(path, f"training.output_dir={tmp_path / 'other'}")
    assert (teacher_folder / "model.safetensors").stat().st_mtime_ns == written


# ---- Two at once -----------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from hf_distill.files.lock import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other_run(tmp_path: Path) -> Any:
    """Start a process that holds the lock of a directory; killed at the end."""
    started = []

    def hold(directory: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", HOLD, str(directory)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        started.append(process)
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_the_second_run_is_refused_until_the_first_is_gone(
    write_recipe: WriteRecipe, tmp_path: Path, other_run: Any
) -> None:
    """Twice the same command at once: of 20, 5 died with a traceback and 5 ended with other weights and status 0."""
    out = tmp_path / "out"
    first = other_run(out)
    for restart in (False, True):
        with pytest.raises(UserError, match=rf"in use by another run \(process {first.pid} on .*, since 20"):
            run(write_recipe(), restart=restart)
    first.kill()  # the kernel releases it
    first.wait()
    run(write_recipe())


def test_a_run_leaves_the_lock_free(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """In a notebook the next call would be refused by the process itself; also after one that failed."""
    with pytest.raises(UserError):
        run(write_recipe(), "data.columns.text=nothing")
    run(write_recipe())
    lock = Lock(tmp_path / "out")
    assert lock.holder is None
    assert lock.take()


def test_a_shared_teacher_is_waited_for(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, other_run: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two runs would train the same teacher into the same files."""
    teacher = {
        "name": "finetuned",
        "model": str(make_model("bert-bare", layers=2)),
        "output_dir": str(tmp_path / "teachers"),
    }
    path = write_recipe(teacher=teacher, student={"name": "copy_layers", "layers": 1})
    run(path)
    (folder,) = (tmp_path / "teachers").iterdir()
    holder = other_run(folder)

    def end_it(_: float) -> None:
        holder.kill()
        holder.wait()

    monkeypatch.setattr("hf_distill.files.lock.time.sleep", end_it)
    run(path, f"training.output_dir={tmp_path / 'second'}")
    said = capsys.readouterr().out
    assert said.count(f"waiting: another run trains this teacher in {folder} (process {holder.pid} on") == 1
    assert same(weights(tmp_path / "out"), weights(tmp_path / "second"))


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Processes that read data outlive a killed run by seconds; the same command again would be refused."""
    lock = Lock(tmp_path)
    assert lock.take()
    if (child := os.fork()) == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        again, deadline = Lock(tmp_path), time.monotonic() + 20
        while not again.take():  # the child may not have begun
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def forge(directory: Path, wrote: list[Any]) -> None:
    """Write the record of a run that never was, as somebody might who passes the directory on."""
    write_record(directory / FILE, {"by": "hf_distill", "recipe": None, "wrote": wrote})


@pytest.mark.parametrize("restart", [False, True])
def test_a_forged_record_leads_nowhere(restart: bool, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """`--restart` deleted whatever the record named: other directories, the history of a checkout."""
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out / ".git", other):
        folder.mkdir(parents=True)
        (folder / "x").write_text("mine")
    names = ["../other", str(other), "..", ".", "", ".git", "checkpoint-1/../../other", "a\0b", "a\\..\\b"]
    forge(out, names)
    run(write_recipe(training={"max_steps": 1}), restart=restart)
    assert (other / "x").read_text() == (out / ".git" / "x").read_text() == "mine"
    assert not {*names} & (Ownership(out).names() or set())


def test_a_forged_record_of_anything(tmp_path: Path) -> None:
    """Names that are no text were a traceback."""
    forge(tmp_path, [{"a": 1}, 3, None])
    assert Ownership(tmp_path).names() is None
    with pytest.raises(UserError, match="was not written by this package"):
        Ownership(tmp_path).check()


@pytest.mark.parametrize(
    "name",
    [*("report.html", "checkpoint-1", "_lock", "_run.json", "_export", "_teacher", "model.safetensors", "_fit.json")],
)
@pytest.mark.parametrize("restart", [False, True])
def test_links_are_not_followed(name: str, restart: bool, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A link that was planted in an output directory led the report over a file of the user, or deleted a folder."""
    out, home = tmp_path / "out", tmp_path / "home"
    out.mkdir()
    (home / "folder").mkdir(parents=True)
    (home / "file").write_text("mine")
    (home / "folder" / "x").write_text("mine")
    forge(out, [name])
    (out / "_lock").write_text("")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(home / ("folder" if "." not in name and name != "_lock" else "file"))
    before = contents(home)
    with pytest.raises(UserError, match=r"symbolic link|was not written by this package"):
        run(write_recipe(training={"max_steps": 1}), restart=restart)
    assert contents(home) == before


def test_links_below_what_runs_write(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Also a link deeper down, where a second seed or a teacher is trained."""
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (out / "_runs" / "x").mkdir(parents=True)
    (out / "_runs" / "x" / "checkpoint-1").symlink_to(home)
    forge(out, ["_runs"])
    with pytest.raises(UserError, match="checkpoint-1 is a symbolic link"):
        run(write_recipe(training={"max_steps": 1}))


def test_processes_that_ask_at_once(tmp_path: Path) -> None:
    """Each locks the file for a moment: one of the processes of a run took another one for a run of its own."""
    with Lock(tmp_path) as lock:
        assert lock.take()
    with open(tmp_path / "_lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert Lock(tmp_path).holder is None


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    """Taking the lock emptied the file that a link in its place pointed to."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "_lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="symbolic link"):
        Lock(tmp_path).take()
    assert Lock(tmp_path).holder is None
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("where", ["/", "~", ".", "checkout", "parent"])
def test_restart_where_no_run_was(where: str, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: Any) -> None:
    """A slip in `output_dir` must not cost more than a line."""
    home = tmp_path / "home"
    for folder in (home / "checkout" / ".git", home / "parent" / "run"):
        folder.mkdir(parents=True)
        (folder / "x").write_text("mine")
    Ownership(home / "parent" / "run").take()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    before = contents(home)
    with pytest.raises(UserError, match="was not written by this package"):
        run(write_recipe(training={"max_steps": 1, "output_dir": where}), restart=True)
    assert contents(home) == before
