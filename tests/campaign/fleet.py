"""A command as several processes, which a launcher starts or nobody; and how they are disturbed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from campaign.trials import Child
from forked import free_port

# After this time a fleet is stuck, and killed.
SECONDS = 180.0
_SUBREAPER = 36


@dataclass
class Fleet:
    """Processes of one run.

    Attributes:
        children: The processes, by rank.
        launcher: What has started them and kills them all when one has failed; None without it.
        stuck: Whether they had to be killed after a time.
    """

    children: Sequence[Child]
    launcher: Child | None = None
    stuck: bool = False

    @property
    def running(self) -> list[Child]:
        return [child for child in self.children if not child.has_ended]

    def wait(self, seconds: float = SECONDS, alone: Sequence[int] = ()) -> list[int | None]:
        """Return the exit statuses, once all have ended; kill those that have not after a time.

        Args:
            seconds: The time.
            alone: Ranks that are not waited for, and killed once the others have ended, as a launcher does it.
        """
        until = time.monotonic() + seconds
        try:
            while any(rank not in alone and not child.has_ended for rank, child in enumerate(self.children)):
                if time.monotonic() > until:
                    self.stuck = True
                    break
                time.sleep(0.01)
        finally:
            self.kill()
        return [child.status for child in self.children]

    def send(self, number: int) -> None:
        for child in self.running:
            child.send(number)

    def kill(self) -> None:
        """Kill all that still runs."""
        if self.launcher is not None and not self.launcher.has_ended:
            self.launcher.send(signal.SIGKILL)
            self.launcher.wait()
        self.send(signal.SIGKILL)
        for child in self.children:
            child.wait()

    @property
    def said(self) -> str:
        return "\n".join(child.said for child in self.children)


@dataclass
class Started:
    """How to start a command.

    Attributes:
        words: The recipe and its overrides.
        logs: Where each process prints, into a file of its own.
        count: Number of processes; one finds no launcher.
        engine: A name of `engines.ENGINES`; empty for accelerate's own choice.
        disturb: Called with the rank in each process, before it begins.
    """

    words: Sequence[str | Path]
    logs: Path
    count: int = 2
    engine: str = ""
    disturb: Callable[[int], None] | None = None
    port: int = field(default_factory=free_port)

    def run(self, rank: int, log: Path) -> NoReturn:
        """Be the process of a rank, from beginning to end."""
        status = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            from accelerate.state import AcceleratorState, GradientState, PartialState

            for state in (AcceleratorState, GradientState, PartialState):
                state._shared_state.clear()
            if self.count > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": self.port}
                names |= {"WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count}
                os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
            if self.engine:
                from engines import enter

                enter(self.engine)
            from hf_distill.cli import main

            if self.disturb is not None:
                self.disturb(rank)
            status = main([str(word) for word in self.words])
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def start(words: Sequence[str | Path], logs: Path, *, launched: bool = False, **how: Any) -> Fleet:
    """Start `hf-distill WORDS` as several processes.

    Args:
        words: The recipe and its overrides.
        logs: Where each process prints, into a file of its own.
        launched: Whether a launcher starts them. It ends all once one has failed; when it is killed itself, the
            processes become children of this one.
        how: As of `Started`.
    """
    started = Started(words, logs, **how)
    number = len([*logs.iterdir()])
    files = [logs / f"{number}-{rank}.log" for rank in range(started.count)]
    for file in files:
        file.touch()
    sys.stdout.flush()
    if not launched:
        return Fleet([Child(_fork(partial(started.run, rank, log)), log) for rank, log in enumerate(files)])
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    reads, writes = os.pipe()
    launcher = Child(_fork(partial(_launch, started, files, writes)), files[0])
    os.close(writes)
    with open(reads) as pipe:
        pids = [int(pipe.readline()) for _ in files]
    return Fleet([Child(pid, log, owner=launcher) for pid, log in zip(pids, files, strict=True)], launcher)


def _fork(work: Callable[[], NoReturn]) -> int:
    return os.fork() or work()


def _launch(started: Started, files: Sequence[Path], pipe: int) -> NoReturn:
    """Be the launcher: start the processes, end all once one has failed, and write their statuses beside the logs."""
    status = 1
    try:
        os.environ["TORCHELASTIC_RUN_ID"] = "1"
        children = [Child(_fork(partial(started.run, rank, log)), log) for rank, log in enumerate(files)]
        os.write(pipe, "".join(f"{child.pid}\n" for child in children).encode())
        os.close(pipe)
        while not all(child.has_ended for child in children) and not any(child.status for child in children):
            time.sleep(0.01)
        fleet = Fleet(children)
        for number in (signal.SIGTERM, signal.SIGKILL):
            fleet.send(number)
            until = time.monotonic() + 30
            while fleet.running and time.monotonic() < until:
                time.sleep(0.01)
        for child in children:
            child.log.with_suffix(".status").write_text(str(child.wait()))
        status = int(any(child.status for child in children))
    finally:
        os._exit(status)


# ---- At a chosen place -----------------------------------------------------------------------------------------------


def _at_the_start() -> tuple[Any, str]:
    from hf_distill.run import preparation

    return preparation, "_with_shape"


def _in_training() -> tuple[Any, str]:
    from hf_distill.trainer import DistillationTrainer

    return DistillationTrainer, "training_step"


def _in_evaluation() -> tuple[Any, str]:
    from hf_distill.trainer import DistillationTrainer

    return DistillationTrainer, "prediction_step"


def _in_the_cache() -> tuple[Any, str]:
    from hf_distill.cache.recorder import Recorder

    return Recorder, "__call__"


def _in_a_checkpoint() -> tuple[Any, str]:
    from hf_distill.training.saving import SavingTrainer

    return SavingTrainer, "_save_checkpoint"


def _between_stages() -> tuple[Any, str]:
    from hf_distill.run.run import Run

    return Run, "stage"


def _in_the_report() -> tuple[Any, str]:
    from hf_distill.run import distill

    return distill, "report_on"


PLACES: dict[str, Callable[[], tuple[Any, str]]] = {
    "start": _at_the_start,
    "training": _in_training,
    "evaluation": _in_evaluation,
    "cache": _in_the_cache,
    "checkpoint": _in_a_checkpoint,
    "stages": _between_stages,
    "report": _in_the_report,
}


def at(place: str, rank: int, act: Callable[[], Any], call: int = 2) -> Callable[[int], None]:
    """Return a function for `start` that acts in one process when it is at a place for the `call`-th time."""

    def disturb(here: int) -> None:
        owner, name = PLACES[place]()
        own, calls = getattr(owner, name), [0]

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                act()
            return own(*args, **kwargs)

        if here == rank:
            setattr(owner, name, disturbed)

    return disturb


def send_this(number: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


ACTS: dict[str, Callable[[], Any]] = {
    "SIGKILL": partial(send_this, signal.SIGKILL),
    "SIGSTOP": partial(send_this, signal.SIGSTOP),
    "SIGTERM": partial(send_this, signal.SIGTERM),
    "SIGUSR1": partial(send_this, signal.SIGUSR1),
}
