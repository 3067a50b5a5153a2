"""Checks how the run was started: has it the processes and the engine asked for, and the cores it may use?"""

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

# Environment variables that `accelerate launch` and `torchrun` set for the processes that they start.
_VARIABLES = frozenset({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"})
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Launcher:
    """The `accelerate launch` or `torchrun` that is the parent of this process.

    Attributes:
        command: Its command line.
        environment: Its own environment, without the variables that it sets for its children.
    """

    command: str
    environment: Mapping[str, str]

    def asked_for(self) -> str | None:
        """Return how many processes it should start, if more than one; `N` if only its configuration file says."""
        if said := re.search(r"--num[_-]processes[ =](\d+)", self.command):
            return said[1] if int(said[1]) > 1 else None
        # accelerate sets MASTER_PORT if several processes are asked for, also if it then starts only one.
        return "N" if "MASTER_PORT" in os.environ.keys() - self.environment.keys() else None


def _launcher() -> _Launcher | None:
    """Return the parent of this process if it is a launcher, which sets variables that it does not have itself."""
    try:
        parent = psutil.Process().parent()
        found = None if parent is None else _Launcher(" ".join(parent.cmdline()), parent.environ())
    except psutil.Error:  # the parent belongs to another user, or has ended
        return None
    return found if found and _VARIABLES & (os.environ.keys() - found.environment.keys()) else None


def use_cpu_if_needed(training: dict[str, Any]) -> dict[str, Any]:
    """Return `training` with `use_cpu: true` added on a machine without an accelerator.

    Without it, `TrainingArguments(bf16=True)` raises an error there, and the processes that `torchrun` starts are not
    connected.
    """
    return training if training.get("use_cpu") or _has_accelerator() else {**training, "use_cpu": True}


def check_launch() -> None:
    """Refuse a run in one process if several were asked for, or with DDP if FSDP or DeepSpeed was asked for.

    Two kinds of launch do that silently. `accelerate launch --cpu --num_processes N` (and any other that accelerate
    passes to its simple launcher) starts one process. And if N processes are started for GPUs on a machine without
    one, each trains on the whole data and writes to the same directory. The second kind, and the engine, can be
    detected only once `TrainingArguments` exist, so call this again after building them.

    Raises:
        UserError: Something else was asked for; the message gives the reason and what works.
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

    # `PartialState()` must not be called before: it would create the process group with the wrong settings.
    world = parallel.started()
    if not PartialState._shared_state:
        return
    if world < 2 or parallel.processes() == world:
        _check_engine(parallel.is_sharding_possible())
        return
    raise UserError(
        f"{world} processes were started and each runs alone, not connected to the others "
        f"(on {parallel.device()}). {_advice(str(world), not _has_accelerator())}"
    )


def _check_engine(possible: bool) -> None:
    """Refuse another engine than the launcher asks for.

    Args:
        possible: Whether accelerate can use one here.

    Raises:
        UserError: accelerate would use, or uses, DDP or one process.
    """
    if (asked := parallel.launched_engine()) is not None and not possible:
        instead = "DDP" if parallel.processes() > 1 else "one process"
        raise UserError(
            f"{asked} was asked for, and accelerate silently uses {instead} instead: it has no {asked} for "
            f"{parallel.processes()} process(es) on {parallel.device().type}. Start several on accelerators, or leave "
            f"{asked} out, as in recipes/accelerate/multi_cpu.yaml."
        )


def load_in_every_process() -> str | None:
    """Have every process load its models under FSDP; return a line about it, or None if nothing changes.

    `accelerate launch --use_fsdp` sets `fsdp_cpu_ram_efficient_loading` by default: only the first process loads
    weights, and those of the student are then sent to the others. Nobody sends those of a teacher, which stay empty.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    if os.environ.get(name, "false").lower() != "true":
        return None
    os.environ[name] = "false"
    return "every process loads its models itself (fsdp_cpu_ram_efficient_loading would leave the teacher's empty)"


def end_with_launcher() -> None:
    """Send this process a SIGTERM when the launcher that started it ends, for whatever reason.

    Ctrl-C reaches both, but a cluster or container ends only the launcher. `accelerate launch` with one process does
    not pass the signal on, and a launcher that is killed cannot: the processes would continue to train, unnoticed. It
    is detected by the parent process id, which changes when the parent ends. On Windows it does not change, and there
    this does nothing.
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
"""How often a waiting thread spins in a loop before it sleeps. libgomp's own default is 300,000."""


def spin_little() -> None:
    """Let PyTorch's threads sleep soon while they wait for each other, instead of occupying a core.

    In every matrix product the threads wait for the slowest. If another program uses its core, the waiting threads spin
    on the other cores and slow both down: steps become many times slower. Call this before torch is imported: its
    OpenMP library reads the environment once. Values that the user has set are not changed. The table in
    docs/performance.md says what it gains and costs.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def waiting() -> str | None:
    """Return a line that says how threads wait, if `spin_little` decided that for a run on the CPU; else None."""
    if os.environ.get("GOMP_SPINCOUNT") != SPINS or not _runs_on_cpu():
        return None
    return (
        f"threads: idle ones sleep soon and leave their core to others (GOMP_SPINCOUNT={SPINS}; set it or "
        "OMP_WAIT_POLICY to choose)"
    )


def use_all_cores() -> str | None:
    """Undo the launcher's default of one thread per process in a run on the CPU; return a line about it, or None.

    `accelerate launch` without `--cpu`, and `torchrun` with several processes, set `OMP_NUM_THREADS=1` if the user has
    not set it. That is meant for GPU machines, and leaves the other cores of a CPU machine idle. A number that the user
    chose is not changed: `OMP_NUM_THREADS` in the launcher's own environment, or `--num_cpu_threads_per_process`.
    """
    import torch

    before = os.environ.get("OMP_NUM_THREADS")
    if before is None or not _runs_on_cpu():
        return None
    launcher = _launcher()
    if launcher is None or "OMP_NUM_THREADS" in launcher.environment:
        return None
    threads = max(_cores() // parallel.on_this_machine(), 1)
    if re.search("--num[_-]cpu[_-]threads", launcher.command) or threads <= torch.get_num_threads():
        return None
    torch.set_num_threads(threads)
    return (
        f"threads: {threads} per process (the launcher had set OMP_NUM_THREADS={before} by default; "
        "set OMP_NUM_THREADS yourself to choose)"
    )


def _advice(processes: str, cpu: bool) -> str:
    """Return the command to type for `processes` processes, with the script and arguments of this run."""
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
