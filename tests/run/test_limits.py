"""What is too long, too deep or too large, and output that nobody reads: one line or nothing, and soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared import refused
from runs import REPO

from hf_distill import load_recipe
from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check
from hf_distill.run.streams import Unread

WriteRecipe = Callable[..., Path]
MANY = ",".join(["1"] * 200_000)


@pytest.mark.parametrize(
    "override",
    [
        ".".join(["a"] * 2000) + "=1",
        "a" + "[0]" * 2000 + "=1",
        "stages=" + "[" * 2000 + "]" * 2000,
        "training.run_name=" + "{a: " * 500 + "}" * 500,
        f"stages=[{MANY}]",
    ],
    ids=["keys", "numbers", "lists", "mappings", "entries"],
)
def test_overrides(override: str, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A RecursionError, or eight seconds for a limit that was checked when all had been read."""
    path = write_recipe()
    load_recipe(path)
    capsys.readouterr()
    started = time.process_time()
    assert main([str(path), override]) == 2
    assert time.process_time() - started < 4
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", [f"stages: [{MANY}]", "stages:\n" + "- 1\n" * 200_000, "a: " + "[" * 5000])
def test_files(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Likewise for a file that is no recipe."""
    path = tmp_path / "large.yaml"
    path.write_text(text)
    started = time.process_time()
    assert main([str(path)]) == 2
    assert time.process_time() - started < 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "too large for a recipe" in line


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
def test_a_file_without_an_end() -> None:
    """It was read until the memory was full."""
    with pytest.raises(UserError, match="too large for a recipe"):
        load_recipe("/dev/zero")


@pytest.mark.parametrize(
    "name", ["y" * 300, "./" + "y" * 300, "y" * 300 + "/b", "package:numpy/" + "y" * 300, "a/" * 3000]
)
@pytest.mark.parametrize(
    "key", ["training.output_dir", "teacher.model", "student.model", "tokenizer", "data.path", "data.path.train"]
)
def test_names(name: str, key: str, write_recipe: WriteRecipe) -> None:
    """`OSError: [Errno 36] File name too long`, and a traceback, for a value that was meant for another key."""
    path = write_recipe()
    _, line = refused(lambda: check(load_recipe(path, [f"{key}={name}"])))
    assert f": {key}" in line
    assert "bytes" in line or "characters; a path can have" in line


def test_a_null_byte(write_recipe: WriteRecipe) -> None:
    """`ValueError: embedded null byte`, from whatever opens the path first."""
    path = write_recipe(training={"output_dir": "out\0"})
    with pytest.raises(UserError, match=r"training\.output_dir: .*null byte"):
        check(load_recipe(path))


# ---- Output that nobody reads ----------------------------------------------------------------------------------------


def test_a_reader_that_goes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """`hf-distill recipe.yaml | head -1` ended a training of hours with 1 as soon as head had its line."""
    path = write_recipe(training={"max_steps": 2, "disable_tqdm": False})
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(REPO / "scripts" / "distill.py"), str(path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Broken" not in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["student"]


def test_a_stream_without_a_reader() -> None:
    """What is held back in a buffer is written when the process ends, and raised there."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = Unread(os.fdopen(writing, "w"))
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)  # type: ignore[arg-type]
    stream.close()


def test_no_stream_at_all() -> None:
    """A daemon has neither output nor errors."""
    stream = Unread(None)
    print("said to nobody", file=stream, flush=True)  # type: ignore[arg-type]
    assert not stream.isatty()
    stream.close()
