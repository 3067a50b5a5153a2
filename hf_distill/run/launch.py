"""How the run was started: as many processes as were asked for, on the cores that are there, or why not."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hf_distill import parallel
from hf_distill.errors import UserError

# What `accelerate launch` and `torchrun` set for the processes that they start.
_VARIABLES = frozenset({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"})
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Launcher:
    """The `accelerate launch` or `torchrun` that started this process itself, with no script between.

    Attributes:
        command: Its command line.
        environment: What it was started with, before it set variables for its children.
    """

    command: str
    environment: Mapping[str, str]

    def asked_for(self) -> str | None:
        """Return how many processes it should start, if that is more than one; `N` where its settings say it."""
        if said := re.search(r"--num[_-]processes[ =](\d+)", self.command):
            return said[1] if int(said[1]) > 1 else None
        # accelerate sets it for several processes, also where it then starts one.
        return "N" if "MASTER_PORT" in os.environ.keys() - self.environment.keys() else None


def _launcher() -> _Launcher | None:
    """Return the parent of this process if it is a launcher: this process has a variable that it was not given."""
    try:
        parent = psutil.Process().parent()
        found = None if parent is None else _Launcher(" ".join(parent.cmdline()), parent.environ())
    except psutil.Error:  # it belongs to someone else, or has ended
        return None
    return found if found and _VARIABLES & (os.environ.keys() - found.environment.keys()) else None


def use_cpu_if_needed(training: dict[str, Any]) -> dict[str, Any]:
    """Return `training` with `use_cpu: true` added on a machine without an accelerator.

    Without it `TrainingArguments(bf16=True)` raises there, and under `torchrun` every process takes itself for the
    only one.
    """
    return training if training.get("use_cpu") or _has_accelerator() else {**training, "use_cpu": True}


def check_launch() -> None:
    """Raise when several processes were asked for and this one runs alone.

    Two launches do that without a word: `accelerate launch --cpu --num_processes N` (and any other that accelerate
    hands to its simple launcher) starts one process, and N processes started for GPUs on a machine without one each
    train the whole data, writing to the same directory. The second shows once `TrainingArguments` exist; call this
    after building them. It can be called again.

    Raises:
        UserError: One line with the reason and the command that works.
    """
    if "WORLD_SIZE" not in os.environ:
        launcher = _launcher()
        if launcher is None or (asked := launcher.asked_for()) is None:
            return
        cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        reason = "the `--cpu` of accelerate starts one" if cpu else "accelerate starts one without `--multi_gpu`"
        raise UserError(
            f"{asked.replace('N', 'several')} processes were asked for and 1 runs: {reason}. "
            + _advice(asked, cpu or not _has_accelerator())
        )
    from accelerate import PartialState

    # Asking for the state would create it, and with it the process group, with the wrong settings.
    world = parallel.started()
    if world < 2 or not PartialState._shared_state or parallel.processes() == world:
        return
    raise UserError(
        f"{world} processes were started and each runs alone, as if it were the only one "
        f"(on {parallel.device()}). {_advice(str(world), not _has_accelerator())}"
    )


def end_with_launcher() -> None:
    """Have this process told to end (SIGTERM) when the launcher that started it ends, however that comes about.

    Ctrl-C reaches both, but a cluster or container ends the launcher alone. `accelerate launch` of one process passes
    nothing on, and a launcher that is killed never does: the processes would train on, seen by nobody. Who has lost its
    parent gets another one; on Windows it does not, and there this does nothing.
    """
    parent = os.getppid()
    if _launcher() is None:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-launcher", daemon=True).start()


SPINS = "1000"
"""Turns that a waiting thread takes around its loop before it sleeps. libgomp's own default is 300,000."""


def spin_little() -> None:
    """Have threads that wait for each other sleep soon, rather than hold a core that somebody else needs.

    At every matrix product the threads of PyTorch wait for the last of them. Where another program has its core, the
    others spin, and take the time that it needs to finish: steps become many times slower. Call this before torch is
    imported: its OpenMP library reads the environment once. What the user set is left alone. The table in
    docs/performance.md says what it gains and costs.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def waiting() -> str | None:
    """Return a line that says how threads wait, where `spin_little` decided it for a run on the CPU; or None."""
    if os.environ.get("GOMP_SPINCOUNT") != SPINS or not _runs_on_cpu():
        return None
    return (
        f"threads: idle ones sleep soon and leave their core to others (GOMP_SPINCOUNT={SPINS}; set it or "
        "OMP_WAIT_POLICY to choose)"
    )


def use_all_cores() -> str | None:
    """Undo the launcher's default of one thread per process in a run on CPU; return a line that says so, or None.

    `accelerate launch` without `--cpu` and `torchrun` with several processes set `OMP_NUM_THREADS=1` where the user
    did not set it: a guard for GPU machines that leaves the other cores of a CPU machine idle. A number that the user
    chose is kept: `OMP_NUM_THREADS` in the launcher's own environment, or `--num_cpu_threads_per_process`.
    """
    import torch

    before = os.environ.get("OMP_NUM_THREADS")
    if before is None or not _runs_on_cpu():
        return None
    launcher = _launcher()
    if launcher is None or "OMP_NUM_THREADS" in launcher.environment:
        return None
    threads = max(_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1), 1)
    if re.search("--num[_-]cpu[_-]threads", launcher.command) or threads <= torch.get_num_threads():
        return None
    torch.set_num_threads(threads)
    return (
        f"threads: {threads} per process (the launcher had set OMP_NUM_THREADS={before} by default; "
        "set OMP_NUM_THREADS yourself to choose)"
    )


def _advice(processes: str, cpu: bool) -> str:
    """Return what to type for `processes` processes, with the script and arguments of this very run."""
    command = f"accelerate launch --multi_gpu --num_processes {processes} --num_machines 1"
    command += " --mixed_precision no --dynamo_backend no"
    script = Path(sys.argv[0]).name
    arguments = shlex.join(argument for argument in sys.argv if not argument.startswith("training.use_cpu="))
    if script == "hf-distill":
        command += " --no_python"
    if not cpu:
        import torch

        devices = torch.accelerator.device_count()
        if devices < int(processes.replace("N", "2")):
            return f"This machine has {devices} accelerator(s): start at most {devices} process(es)."
        return f"Start it with: {command} {arguments}"
    if script in ("hf-distill", "distill.py"):
        return f"Start it with: {command} {arguments} training.use_cpu=true"
    return f"Start it with: ACCELERATE_USE_CPU=true {command} {arguments}"


def _runs_on_cpu() -> bool:
    from accelerate import PartialState

    if PartialState._shared_state:
        return str(parallel.device()) == "cpu"
    return not _has_accelerator()


def _has_accelerator() -> bool:
    import torch
    from accelerate.utils import is_torch_xla_available

    return torch.accelerator.is_available() or bool(is_torch_xla_available())


def _cores() -> int:
    """Return the number of physical cores that this process may run on."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)
