"""Runs that are disturbed, and what became of them: each in a process that is forked off, so that it starts at once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of a disturbed run, after the same command was given again. The first three are right.
SAME = "same weights"
RESTARTED = "one line, then --restart: same weights"
REFUSED = "one line"
OTHER = "OTHER WEIGHTS"
TRACEBACK = "TRACEBACK"
STUCK = "STUCK"
RIGHT = (SAME, RESTARTED, REFUSED)


def nothing() -> None:
    """Disturb nothing."""


@dataclass
class Child:
    """A run in a process of its own.

    Attributes:
        pid: Its number.
        log: Where it prints.
        status: As a shell has it, negative where a signal ended it; None while it runs.
        owner: The process that has started it, and writes its status beside the log; None for this one.
    """

    pid: int
    log: Path
    status: int | None = None
    owner: Child | None = None

    @property
    def has_ended(self) -> bool:
        if self.status is None:
            self.status = self._found()
        return self.status is not None

    def _found(self) -> int | None:
        if self.owner is not None:
            if not self.owner.has_ended:
                return None  # it waits for this one, and ends then
            if (file := self.log.with_suffix(".status")).exists():
                return int(file.read_text())
        pid, status = os.waitpid(self.pid, os.WNOHANG)  # also a child of a launcher that was killed
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self) -> int:
        while not self.has_ended:
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_after(self, seconds: float) -> None:
        """Kill it, unless it has ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.has_ended:
                return
            time.sleep(0.005)
        self.send(signal.SIGKILL)
        self.wait()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said


@dataclass(frozen=True)
class Command:
    """`hf-distill RECIPE.yaml`, and the weights that it ends with if nothing disturbs it.

    Attributes:
        recipe: The file.
        out: Its output directory.
        logs: Where to put what it prints.
        reference: Bytes of the student's weights.
    """

    recipe: Path
    out: Path
    logs: Path
    reference: bytes = b""

    def start(self, *arguments: str, disturb: Callable[[], None] = nothing) -> Child:
        """Start it in a process of its own, after `disturb` was called there."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}.log"
        log.touch()
        sys.stdout.flush()
        if (pid := os.fork()) != 0:
            return Child(pid, log)
        status = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            from hf_distill.cli import main

            disturb()
            status = main([str(self.recipe), *arguments])
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    @property
    def is_same(self) -> bool:
        file = self.out / "model.safetensors"
        return file.exists() and file.read_bytes() == self.reference

    def again(self) -> str:
        """Give the command again, undisturbed, with `--restart` where it says so; return what became of it."""
        first = self.start()
        if first.wait() == 0:
            return SAME if self.is_same else OTHER
        if first.has_traceback or first.status != 2:
            return TRACEBACK
        second = self.start("--restart")
        if second.wait() == 0:
            return RESTARTED if self.is_same else OTHER
        return TRACEBACK if second.has_traceback else STUCK


# ---- At a chosen file operation --------------------------------------------------------------------------------------

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def at_file_operation(
    out: Path, number: int, act: Callable[[], Any], synced: Path | None = None, counted: Path | None = None
) -> None:
    """Call `act` in this process right before its `number`-th operation that changes something below `out`.

    Args:
        out: A directory.
        number: From 1.
        act: Such as a kill.
        synced: Where to note which files were forced to disk: inode, size and time of the last change.
        counted: File that gets a byte for each operation.
    """
    seen, root, fsync = [0], str(out), os.fsync

    def count() -> None:
        seen[0] += 1
        if counted is not None:
            with open(counted, "ab") as file:
                file.write(b".")
        if seen[0] == number:
            act()

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not str(arguments[0]).startswith(root):
            return
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else os.O_WRONLY
        if flags & (os.O_WRONLY | os.O_RDWR):
            count()

    def note(handle: int) -> None:
        fsync(handle)
        if synced is not None:
            stat = os.fstat(handle)
            with open(synced, "a") as file:
                file.write(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\n")
        count()  # and right after something came to disk

    os.fsync = note
    sys.addaudithook(listen)


def kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_power(out: Path, synced: Path) -> int:
    """Empty every file below a directory that was not forced to disk since it was written, as ext4 may leave it."""
    safe = {tuple(map(int, line.split())) for line in synced.read_text().splitlines()} if synced.exists() else set()
    lost = 0
    for file in filter(Path.is_file, out.rglob("*")):
        stat = file.stat()
        if stat.st_size and (stat.st_ino, stat.st_size, stat.st_mtime_ns) not in safe:
            os.truncate(file, 0)
            lost += 1
    return lost


# ---- Counting --------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """How many trials of a kind ended how."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str, trial: str = "") -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome not in RIGHT:
            self.wrong.append(f"{kind}, {trial}: {outcome}")

    def __str__(self) -> str:
        lines = [f"{'kind':<34} {'trials':>6}  outcomes"]
        for kind, outcomes in self.counts.items():
            told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
            lines.append(f"{kind:<34} {outcomes.total():>6}  {told}")
        return "\n".join([*lines, *(f"WRONG: {line}" for line in self.wrong)])
