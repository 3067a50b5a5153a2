"""Checks the disks that a run writes to: may it write there, are there locks, and is there room?"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hf_distill import parallel
from hf_distill.cache.cache import amount
from hf_distill.files.lock import has_locks
from hf_distill.locations import existing
from hf_distill.models import sharding
from hf_distill.models.inspection import base_model
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.memory import measured
from hf_distill.run.doctor.trial import bytes_of
from hf_distill.run.requirements import output_directory, steps_of

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

# Room for what was not counted: logs, plots, other programs.
SPARE = 1.5


class OnDisk(NamedTuple):
    """What a run writes into a directory: in words, and its size in bytes."""

    folder: Path
    what: str
    size: int


def disk(opened: Opened) -> Iterator[Finding]:
    """Check the output directory, and the room on each disk."""
    output = output_directory(opened.recipe)
    yield from place(output)
    written = [*_models(opened, output), *_cache(opened)]
    disks: dict[int, list[OnDisk]] = {}
    for one in written:
        disks.setdefault(os.stat(existing(one.folder)).st_dev, []).append(one)
    for each in disks.values():
        there = held(output) if any(one.folder == output for one in each) else 0
        yield room(each, shutil.disk_usage(existing(each[0].folder)).free, there)


def place(folder: Path) -> Iterator[Finding]:
    """Say whether a run can write into a directory, and lock it. Writes nothing."""
    parent = existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "this user may not write there" if parent.is_dir() else f"{parent} is a file"
        yield Finding("disk", "mistake", f"{folder}: {why}.", "Choose another output_dir, or change the rights.")
        return
    if not has_locks(parent):
        text = f"the file system of {folder} has no locks: two runs there at once would not notice each other."
        yield Finding("disk", "warning", text, "Start one run there at a time.")


def room(written: list[OnDisk], free: int, there: int = 0) -> Finding:
    """Say whether there is room on a disk.

    Args:
        written: What a run writes to it.
        free: Number of free bytes.
        there: Bytes that an earlier start of the run has written: they stay, or are deleted before others are written.
    """
    needed = sum(one.size for one in written)
    said = ", ".join(f"{one.what} {amount(one.size)}" for one in written)
    folders = " and ".join(dict.fromkeys(str(one.folder) for one in written))
    text = f"the run writes at most {amount(needed)} to the disk of {folders} ({said}); {amount(free)} are free"
    text += f", and {amount(there)} are in the output directory already" if there else ""
    figures = {"needed_bytes": needed, "free_bytes": free}
    free += min(there, needed)
    if needed > free:
        advice = "Free some space, choose another output_dir, or store fewer checkpoints (save_total_limit)."
        return Finding("disk", "mistake", f"{text}.", advice, figures)
    if needed * SPARE > free:
        return Finding("disk", "warning", f"{text}: that is tight.", "Free some space.", figures)
    return Finding("disk", "ok", text, figures=figures)


def held(folder: Path) -> int:
    """Return the size of all files in a directory; links are not followed."""
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another run may delete it meanwhile
                found += os.lstat(Path(at, name)).st_size
    return found


def _models(opened: Opened, output: Path) -> Iterator[OnDisk]:
    """Yield the finished models, and the most checkpoints that are there at once."""
    recipe, trainer = opened.recipe, opened.trainer
    model = sharding.unwrapped(trainer.model)
    student = bytes_of(opened.student.parameters())
    trained = bytes_of(one for one in model.parameters() if one.requires_grad)
    try:
        states = measured(opened).trial.optimizer_bytes
    except CannotCheck:
        states = 2 * trained  # as of Adam
    # Of a student with adapters, a checkpoint holds the adapters.
    checkpoint = states + (student if base_model(model) is model else trained)
    every = len(opened.run.seeds) * (1 + recipe.report.baseline) * len(recipe.plan)
    teachers = [how for how in recipe.teacher.fine_tuning.values() if how.directory is None]
    teacher = bytes_of(one for each in opened.teacher.models.values() for one in each.parameters()) if teachers else 0
    yield OnDisk(output, f"{every} finished student{'s' if every > 1 else ''}", every * student)
    if teachers:
        yield OnDisk(output, "fine-tuned teacher", teacher)
        checkpoint = max(checkpoint, 3 * teacher // len(teachers))
    if kept := kept_checkpoints(opened):
        yield OnDisk(output, f"{kept} checkpoint{'s' if kept > 1 else ''} at once", kept * checkpoint)


def kept_checkpoints(opened: Opened) -> int:
    """Return how many checkpoints of a training are there at once, while the next one is written."""
    args = opened.run.args
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if limit := args.save_total_limit:
        return int(limit) + 1 + (bool(args.load_best_model_at_end) and limit == 1)
    steps, data = args.max_steps, opened.trainer.train_dataset
    if steps <= 0:  # a stream has max_steps
        rows = len(data)  # type: ignore[arg-type]
        steps = steps_of({**opened.training, **opened.recipe.plan[0].training}, rows, parallel.processes())
    if strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else 1
    every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
    return max(int(steps / every), 1)


def _cache(opened: Opened) -> Iterator[OnDisk]:
    """Yield the teacher's stored targets, if the run stores them and they are not there yet."""
    if not opened.recipe.teacher.caches or opened.run.stored is not None:
        return
    stored = opened.run.targets_of(opened.teacher)
    if not stored.path.exists():
        yield OnDisk(stored.path, "the teacher's targets", stored.size)
