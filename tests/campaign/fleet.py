"""A command as several processes, each forked off as a launcher would start it, and how they are disturbed."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from campaign.trials import Child
from forked import free_port

# After this time a fleet is stuck, and killed.
SECONDS = 180.0


@dataclass
class Fleet:
    """Processes of one run, the first of rank 0.

    Attributes:
        children: The processes.
        stuck: Whether they had to be killed after a time.
    """

    children: Sequence[Child]
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
            os.kill(child.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        for child in self.children:
            child.wait()

    @property
    def said(self) -> str:
        return "\n".join(child.said for child in self.children)


def start(
    words: Sequence[str | Path],
    logs: Path,
    count: int = 2,
    engine: str = "",
    disturb: Callable[[int], None] | None = None,
) -> Fleet:
    """Start `hf-distill WORDS` as several processes.

    Args:
        words: The recipe and its overrides.
        logs: Where each process prints, into a file of its own.
        count: Number of processes; one finds no launcher.
        engine: A name of `engines.ENGINES`; empty for accelerate's own choice.
        disturb: Called with the rank in each process, before it begins.
    """
    number, port = len([*logs.iterdir()]), free_port()
    sys.stdout.flush()
    children = []
    for rank in range(count):
        log = logs / f"{number}-{rank}.log"
        log.touch()
        if (pid := os.fork()) == 0:
            _run(words, log, rank, count, port, engine, disturb)
        children.append(Child(pid, log))
    return Fleet(children)


def _run(
    words: Sequence[str | Path],
    log: Path,
    rank: int,
    count: int,
    port: int,
    engine: str,
    disturb: Callable[[int], None] | None,
) -> None:
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        if count > 1:
            os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        if engine:
            from engines import enter

            enter(engine)
        from hf_distill.cli import main

        if disturb is not None:
            disturb(rank)
        status = main([str(word) for word in words])
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# ---- At a chosen place -----------------------------------------------------------------------------------------------


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


PLACES: dict[str, Callable[[], tuple[Any, str]]] = {
    "training": _in_training,
    "evaluation": _in_evaluation,
    "cache": _in_the_cache,
    "checkpoint": _in_a_checkpoint,
}


def at(place: str, rank: int, act: Callable[[], Any], call: int = 2) -> Callable[[int], None]:
    """Return a function for `start` that acts in one process when it is at a place for the second time."""

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
    os.kill(os.getpid(), number)


ACTS: dict[str, Callable[[], Any]] = {
    "SIGKILL": partial(send_this, signal.SIGKILL),
    "SIGSTOP": partial(send_this, signal.SIGSTOP),
    "SIGTERM": partial(send_this, signal.SIGTERM),
    "SIGUSR1": partial(send_this, signal.SIGUSR1),
}
