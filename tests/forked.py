"""Processes that are forks of this one: what takes five seconds to import is there already."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(work: Callable[[], Any]) -> int:
    """Return the process in which a function runs, and nothing after it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def status(child: int) -> int:
    """Return the exit status of a process, which is waited for; of one that a signal ended minus that signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def two_processes(work: Callable[[], Any], directory: Path) -> list[Any]:
    """Return what a function returns in each of two processes; see `processes`."""
    return processes(work, directory, 2)


def processes(
    work: Callable[[], Any], directory: Path, count: int, seconds: float = SECONDS, logged: bool = False
) -> list[Any]:
    """Return what a function returns in each of several processes, which find themselves as torchrun starts them.

    Args:
        work: It makes the process group, or has accelerate make it.
        directory: For the results; nothing else is in it.
        count: How many; a single one finds no launcher.
        seconds: After this time all are killed, and the test fails.
        logged: Whether what a process prints goes to `RANK.log` in the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    port, children = free_port(), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _child(work, directory, rank, count, port, logged)
        children.append(child)
    began, statuses = time.monotonic(), {}
    try:
        while len(statuses) < count:
            for child in set(children) - set(statuses):
                found, code = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = code
            if any(statuses.values()) or time.monotonic() - began > seconds:
                break
            time.sleep(0.01)
    finally:  # also after Ctrl-C
        for child in set(children) - set(statuses):
            os.kill(child, signal.SIGKILL)
            statuses[child] = os.waitpid(child, 0)[1]
    errors = [path.read_text() for path in sorted(directory.glob("*.error"))]
    assert not any(statuses.values()), "\n".join(errors) or f"killed: {statuses}"
    return [torch.load(directory / f"{rank}.result", weights_only=False) for rank in range(count)]


def _child(work: Callable[[], Any], directory: Path, rank: int, count: int, port: int, logged: bool) -> NoReturn:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # At the end not even what an interpreter does when it exits: threads of gloo abort in it now and then.
    try:
        if logged:
            _print_to(directory / f"{rank}.log")
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        if count > 1:
            os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        torch.save(work(), directory / f"{rank}.result")
    except BaseException:
        (directory / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
    if logged:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _print_to(log: Path) -> None:
    """Have this process print to a file, with the descriptors of its standard output and errors."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
