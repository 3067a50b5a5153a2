"""The jobs of the worker, in a process of their own or in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from forked import free_port, two_processes

WORKER = Path(__file__).with_name("worker.py")
LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip
SHARDED_LAUNCH = (
    *(word for word in LAUNCH if word != "--multi_gpu"),
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "NO_WRAP",
    "--fsdp_state_dict_type", "FULL_STATE_DICT",
)  # fmt: skip


def run_worker(job: str, directory: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    tests, root = WORKER.parents[1], WORKER.parents[2]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join((str(tests), str(root), os.environ.get("PYTHONPATH", ""))),
    }
    command = [sys.executable, *launcher, str(WORKER), job, str(directory)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def as_two_processes(job: str, directory: Path, launch: tuple[str, ...] = ()) -> Any:
    """Return the result of a job run by two processes, which accelerate launches if it is told how.

    Launched, it is judged by what it wrote, and tried twice: gloo on a busy machine now and then loses a connection at
    the start, or its threads at the end.
    """
    if not launch:
        from invariants import worker

        (processes, result), _ = two_processes(lambda: worker.done(job, directory), directory / "results")
        assert processes == 2
        return result
    for attempt in ("first", "second"):
        output = directory / attempt
        output.mkdir(parents=True)
        finished = run_worker(job, output, *launch, "--main_process_port", str(free_port()))
        if (output / "result.pt").exists():
            processes, result = torch.load(output / "result.pt", weights_only=False)
            assert processes == 2, "accelerate started one process"
            return result
    raise AssertionError(finished.stderr[-3000:])
