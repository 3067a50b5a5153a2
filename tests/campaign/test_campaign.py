"""Kills, damaged files, power cuts, two runs at once and full disks: the same command again ends with the same weights.

A sample of each runs with the other tests; `make campaign` runs them in numbers and prints what became of each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign.trials import (
    OTHER,
    REFUSED,
    RIGHT,
    SAME,
    STUCK,
    TRACEBACK,
    Child,
    Command,
    Table,
    at_file_operation,
    cut_power,
    kill_this,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, signals and limits of POSIX")
# Trials of a kind; `make campaign` says how many.
TRIALS = int(os.environ.get("CAMPAIGN", "0"))
KILLS, OPERATIONS, CUTS, TWICE, SIZES = (
    (TRIALS, TRIALS, TRIALS, TRIALS, max(2, TRIALS // 2)) if TRIALS else (1, 2, 2, 1, 1)
)
FILES = 4 * TRIALS or 2
TABLE = Table()


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """Print the table after the last trial."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process that is forked has one
    yield
    torch.set_num_threads(threads)
    print(f"\n\n{TABLE}\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_model: Any, sentiment_csv: Any) -> Callable[[Path], Command]:
    """Return a function that writes a recipe: a teacher that is fine-tuned, two stages, a baseline."""
    import transformers  # noqa: F401 - here, and not in every process

    import hf_distill.run.distill  # noqa: F401

    model = make_model("bert-bare", layers=2)
    training = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "disable_tqdm": True, "num_train_epochs": 1}
    steps = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no", "use_cpu": True}

    def write(place: Path, teachers: Path | None = None) -> Command:
        (place / "logs").mkdir(parents=True)
        recipe = {
            "task": "text-classification",
            "data": {
                "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
                "columns": {"text": "sentence"},
            },
            "teacher": {
                "name": "finetuned",
                "model": str(model),
                **({"output_dir": str(teachers)} if teachers else {}),
            },
            "student": {"name": "copy_layers", "layers": 1},
            "stages": [{"objectives": [{"name": "hidden"}]}, {"objectives": [{"name": "kl"}, {"name": "labels"}]}],
            "training": {**training, **steps, "output_dir": str(place / "out")},
            "report": {"latency": False, "baseline": True},
        }
        path = place / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        return Command(path, place / "out", place / "logs", REFERENCE[0])

    first = write(tmp_path_factory.mktemp("whole"))
    counted = first.out.parent / "counted"
    assert first.start(disturb=partial(at_file_operation, first.out, 0, kill_this, counted=counted)).wait() == 0
    OPERATIONS_OF_A_RUN[0] = counted.stat().st_size
    REFERENCE[0] = (first.out / "model.safetensors").read_bytes()
    WHOLE_RUN.append(first)
    return write


REFERENCE = [b""]
WHOLE_RUN: list[Command] = []
OPERATIONS_OF_A_RUN = [0]


def judge(kind: str, trials: Iterator[tuple[str, str]]) -> None:
    """Count outcomes, `(trial, outcome)`, and fail on the wrong ones."""
    wrong = []
    for trial, outcome in trials:
        TABLE.add(kind, outcome, trial)
        wrong += [] if outcome in RIGHT else [f"{trial}: {outcome}"]
    assert wrong == []


def test_killed_at_any_time(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """SIGKILL, up to twice in a run."""
    draw = random.Random(1)

    def trials() -> Iterator[tuple[str, str]]:
        for trial in range(KILLS):
            command = base(tmp_path / str(trial))
            times = [draw.uniform(0.2, 6.0) for _ in range(draw.randint(1, 2))]
            for seconds in times:
                command.start().kill_after(seconds)
            yield f"killed after {times} s in {command.out}", command.again()

    judge("SIGKILL at random times", trials())


def spread(most: int, number: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return sorted(draw.sample(range(1, most), min(number, most - 1)))


def test_killed_at_a_file_operation(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """SIGKILL right before a file is opened to be written, renamed or removed, or right after it came to disk."""

    def trials() -> Iterator[tuple[str, str]]:
        for number in spread(OPERATIONS_OF_A_RUN[0], OPERATIONS, 2):
            command = base(tmp_path / str(number))
            command.start(disturb=partial(at_file_operation, command.out, number, kill_this)).wait()
            yield f"operation {number} in {command.out}", command.again()

    judge("SIGKILL at file operations", trials())


def test_power_cut(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """A model of ext4: at the cut, files that were not forced to disk since they were written are empty."""

    def trials() -> Iterator[tuple[str, str]]:
        for number in spread(OPERATIONS_OF_A_RUN[0], CUTS, 3):
            command = base(tmp_path / str(number))
            synced = command.out.parent / "synced"
            child = command.start(disturb=partial(at_file_operation, command.out, number, kill_this, synced))
            child.wait()
            cut_power(command.out, synced)
            yield f"operation {number} in {command.out}", command.again()
        # And after the end, when all has been said to be finished.
        command = base(tmp_path / "end")
        synced = command.out.parent / "synced"
        assert command.start(disturb=partial(at_file_operation, command.out, 10**9, kill_this, synced)).wait() == 0
        cut_power(command.out, synced)
        yield "after the end", SAME if command.is_same else OTHER
        yield "after the end, again", command.again()

    judge("power cuts (model)", trials())


def _flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flipped": _flip,
    "cut": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "gone": lambda content, draw: None,
}


def _damaged(source: Path, base: Callable[[Path], Command], tmp_path: Path, most: int) -> Iterator[tuple[str, str]]:
    """Damage each file of a directory in each way, one at a time, in copies."""
    draw = random.Random(4)
    names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file() and file.stat().st_size]
    every = [(name, how) for name in sorted(names) for how in DAMAGES]
    for index, (name, how) in enumerate(every if most >= len(every) else draw.sample(every, most)):
        command = base(tmp_path / str(index))
        shutil.copytree(source, command.out)
        content = DAMAGES[how]((command.out / name).read_bytes(), draw)
        (command.out / name).unlink()
        if content is not None:
            (command.out / name).write_bytes(content)
        yield f"{name} {how} in {command.out}", command.again()


def test_damaged_after_the_end(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """Every file that a finished run leaves: its teacher's, its stages', its baseline's, its own."""
    judge("damaged files of a finished run", _damaged(WHOLE_RUN[0].out, base, tmp_path, FILES))


def test_damaged_on_the_way(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """Every file that a killed run leaves, those of its last checkpoint among them."""
    command = base(tmp_path / "killed")
    folder = command.out / "checkpoint-6"

    def kill() -> None:
        if (folder / "_files.json").exists():
            kill_this()

    def listen() -> None:
        import sys

        sys.addaudithook(lambda event, arguments: kill() if event == "os.rename" else None)

    assert command.start(disturb=listen).wait() == -signal.SIGKILL
    judge("damaged files of a killed run", _damaged(command.out, base, tmp_path, FILES))


def test_two_at_once(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """The same command twice: one run does it, the other says so in one line, or finds all done."""
    draw = random.Random(5)

    def outcome(command: Command, children: list[Child]) -> str:
        statuses = [child.wait() for child in children]
        if any(child.has_traceback for child in children):
            return TRACEBACK
        if 0 not in statuses or not set(statuses) <= {0, 2}:
            return STUCK
        if not command.is_same:
            return OTHER
        refused = [child for child in children if child.status == 2]
        return REFUSED if refused and all("in use by another run" in one.said for one in refused) else SAME

    def trials() -> Iterator[tuple[str, str]]:
        for trial in range(TWICE):
            command = base(tmp_path / str(trial))
            first = command.start()
            first_seconds = draw.choice((0.0, 0.0, draw.uniform(0, 4)))
            while first_seconds > 0 and not command.out.exists():
                first_seconds -= 0.01
                os.sched_yield()
            yield f"{command.out}", outcome(command, [first, command.start()])

    judge("the same command twice at once", trials())


def test_a_shared_teacher_at_once(base: Any, tmp_path: Path) -> None:
    """Two runs that want the same teacher: one trains it, the other waits and finds it."""

    def trials() -> Iterator[tuple[str, str]]:
        for trial in range(max(1, TWICE // 2)):
            teachers = tmp_path / f"teachers-{trial}"
            both = [base(tmp_path / f"{trial}-{side}", teachers) for side in "ab"]
            children = [command.start() for command in both]
            if any(child.wait() != 0 for child in children):
                yield str(teachers), TRACEBACK
            else:
                trained = sum("teacher: found finished" not in child.said for child in children)
                right = trained == 1 and all(command.is_same for command in both)
                yield str(teachers), SAME if right else OTHER

    judge("a shared teacher, two at once", trials())


def _end_of_disk(command: Command, child: Child) -> str:
    if child.wait() == 0:
        return SAME if command.is_same else OTHER
    if child.has_traceback or child.status != 1:
        return TRACEBACK
    return ""


def test_a_limit_on_files(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """`ulimit -f`: files that are larger are cut off, wherever they are written."""

    def trials() -> Iterator[tuple[str, str]]:
        for size in spread(300, SIZES, 6):
            command = base(tmp_path / str(size))
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size * 1024, resource.RLIM_INFINITY))
            yield f"{size} KiB in {command.out}", _end_of_disk(command, command.start(disturb=limit)) or command.again()

    judge("a limit on the size of files", trials())


def test_a_full_disk(base: Callable[[Path], Command], tmp_path: Path) -> None:
    """A small disk in memory, where one may be mounted: full, one line and status 1; larger, the run goes on."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a disk")
    subprocess.run(["umount", str(place)], check=True)

    def trials() -> Iterator[tuple[str, str]]:
        for size in spread(1500, SIZES, 7):
            command = base(tmp_path / str(size))
            command.out.mkdir()
            disk = ["tmpfs", str(command.out)]
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", *disk], check=True)
            try:
                outcome = _end_of_disk(command, command.start())
                subprocess.run(["mount", "-o", "remount,size=1g", *disk], check=True)
                yield f"{size} KiB", outcome or command.again()
            finally:
                subprocess.run(["umount", str(command.out)], check=True)

    judge("a full disk", trials())
