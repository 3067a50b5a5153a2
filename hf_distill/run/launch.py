"""How the run was started: as many processes as were asked for, on the cores that are there, or why not."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hf_distill.errors import UserError

# What `accelerate launch` and `torchrun` set for the processes that they start.
_LAUNCHERS_VARIABLES = frozenset({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"})
_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class _Launcher:
    """The launcher among the ancestors of this process.

    Attributes:
        environment: What it was started with, before it set variables for its children.
        processes: How many processes it was asked for, when it is `accelerate launch` and says so.
        cpu: `accelerate launch --cpu`, or `use_cpu` in its config file.
        threads: Whether `--num_cpu_threads_per_process` was given.
        is_parent: Whether it started this process itself, with no shell script between that could export variables.
    """

    environment: dict[str, str]
    processes: int | None = None
    cpu: bool = False
    threads: bool = False
    is_parent: bool = True


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
    after building them. It costs a look at the process table and can be called again.

    Raises:
        UserError: One line with the reason and the command that works.
    """
    world = _environment_int("WORLD_SIZE")
    if world is None:
        launcher = _launcher() if "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_PORT" in os.environ else None
        if launcher is None or launcher.processes is None or launcher.processes < 2 or _mpi_processes() > 1:
            return
        reason = (
            "the `--cpu` of accelerate starts one" if launcher.cpu else "accelerate starts one without `--multi_gpu`"
        )
        raise UserError(
            f"{launcher.processes} processes were asked for and 1 runs: {reason}. "
            + _advice(launcher.processes, launcher.cpu or not _has_accelerator())
        )
    from accelerate import PartialState

    # Asking for the state would create it, and with it the process group, with the wrong settings.
    if world < 2 or not PartialState._shared_state or PartialState().num_processes == world:
        return
    raise UserError(
        f"{world} processes were started and each runs alone, as if it were the only one "
        f"(on {PartialState().device}). {_advice(world, not _has_accelerator())}"
    )


def end_with_launcher() -> None:
    """Have this process told to end (SIGTERM) when the launcher that started it ends, however that comes about.

    Ctrl-C reaches both, but a cluster or container ends the launcher alone. `accelerate launch` of one process passes
    nothing on, and a launcher that is killed never does: the processes would train on, seen by nobody. On Linux the
    kernel can tell; elsewhere this does nothing.
    """
    if sys.platform != "linux" or not _LAUNCHERS_VARIABLES & os.environ.keys():
        return
    parent = os.getppid()
    launcher = _launcher()
    if launcher is None or not launcher.is_parent:
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)


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
    if launcher is None or not launcher.is_parent or launcher.threads or "OMP_NUM_THREADS" in launcher.environment:
        return None
    processes = max(_environment_int("LOCAL_WORLD_SIZE") or 1, 1)
    threads = max(_cores() // processes, 1)
    if threads <= torch.get_num_threads():
        return None
    torch.set_num_threads(threads)
    return (
        f"threads: {threads} per process (the launcher had set OMP_NUM_THREADS={before} by default; "
        "set OMP_NUM_THREADS yourself to choose)"
    )


def _advice(processes: int, cpu: bool) -> str:
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
        if devices < processes:
            return f"This machine has {devices} accelerator(s): start at most {devices} process(es)."
        return f"Start it with: {command} {arguments}"
    if script in ("hf-distill", "distill.py"):
        return f"Start it with: {command} {arguments} training.use_cpu=true"
    return f"Start it with: ACCELERATE_USE_CPU=true {command} {arguments}"


def _launcher() -> _Launcher | None:
    """Return the `accelerate launch` or `torchrun` that this process descends from, or None."""
    try:
        for depth, process in enumerate(psutil.Process().parents()):
            words = process.cmdline()
            arguments = _accelerate_arguments(words)
            if arguments is not None:
                return _read_accelerate(arguments, process.environ(), depth == 0)
            if any(Path(word).name in _TORCHRUN for word in words[:4]):
                return _Launcher(process.environ(), is_parent=depth == 0)
    except psutil.Error:  # an ancestor that belongs to someone else, or has ended
        pass
    return None


def _accelerate_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of `accelerate launch` in a command line, or None when it is another program.

    >>> _accelerate_arguments(["python", "/bin/accelerate", "launch", "--cpu", "train.py"])
    ['--cpu', 'train.py']
    >>> _accelerate_arguments(["python", "-m", "accelerate.commands.launch", "train.py"])
    ['train.py']
    >>> _accelerate_arguments(["python", "train.py", "accelerate", "launch"]) is None
    True
    """
    for start, word in enumerate(words[:4]):
        name = Path(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[start + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[start + 1 : start + 2] == ["launch"]:
            return words[start + 2 :]
        if start and not word.startswith("-") and words[start - 1] not in ("-X", "-W"):
            return None  # the interpreter's script or module: what follows is its arguments
    return None


def _read_accelerate(arguments: list[str], environment: dict[str, str], is_parent: bool) -> _Launcher:
    """Read the launcher's arguments with its own parser, and its config file by the launcher's own rule."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        given, _ = launch_command_parser().parse_known_args(arguments)
        processes, cpu = given.num_processes, bool(given.cpu)
        if given.config_file is not None or (os.path.isfile(default_config_file) and not given.cpu):
            config = load_config_from_file(given.config_file)
            processes = config.num_processes if processes is None else processes
            cpu = cpu or bool(config.use_cpu)
    except (SystemExit, OSError, ValueError, AttributeError):
        return _Launcher(environment, is_parent=is_parent)  # it ran, so the fault is in the reading
    return _Launcher(environment, processes, cpu, given.num_cpu_threads_per_process is not None, is_parent)


def _runs_on_cpu() -> bool:
    from accelerate import PartialState

    if PartialState._shared_state:
        return str(PartialState().device) == "cpu"
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


def _mpi_processes() -> int:
    names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return max(_environment_int(name) or 1 for name in names)


def _environment_int(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else None
