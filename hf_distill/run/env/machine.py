"""The machine: Python, system, memory, PyTorch's build and the devices that it sees."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hf_distill
from hf_distill._version import __version__
from hf_distill.run.env.packages import imported

_GB = 1e9
# Seconds that a program may take which is asked for its version.
_PATIENCE = 5


def package() -> dict[str, Any]:
    """Return version, directory and, in a clone, commit of hf_distill."""
    directory = Path(hf_distill.__file__).resolve().parent
    commit = _said("git", "-C", str(directory), "rev-parse", "--short", "HEAD")
    # Of another repository that happens to be above, such as a project with its environment inside, it says nothing.
    return {
        "version": __version__,
        "directory": str(directory),
        "commit": commit if (directory.parent / ".git").exists() else None,
    }


def python() -> dict[str, Any]:
    """Return version, implementation and path of the interpreter."""
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
    }


def system() -> dict[str, Any]:
    """Return operating system, processor, cores and memory."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    psutil, _ = imported("psutil")
    if psutil is not None:
        found["memory"] = f"{psutil.virtual_memory().total / _GB:.1f} GB"
    return found


def pytorch() -> dict[str, Any]:
    """Return what PyTorch was built for and with how many threads it computes; or why it cannot be imported."""
    torch, error = imported("torch")
    if torch is None:
        return {"error": error}
    found = {"version": torch.__version__, "built for": _built_for(torch), "threads": torch.get_num_threads()}
    with suppress(Exception):  # not in every build
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    return found


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if getattr(torch.version, "hip", None):
        return f"ROCm {torch.version.hip}"
    return "MPS" if torch.backends.mps.is_built() else "CPU"


def devices() -> list[dict[str, Any]]:
    """Return the accelerators that PyTorch sees; one entry with an `error` if asking for them fails."""
    torch, _ = imported("torch")
    if torch is None:
        return []
    try:
        return list(_devices(torch))
    except Exception as error:  # a driver that does not fit
        return [{"error": f"{type(error).__name__}: {error}"}]


def _devices(torch: Any) -> list[dict[str, Any]]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    found = []
    for index in range(torch.accelerator.device_count()):
        one = {"device": f"{kind}:{index}"}
        if kind == "cuda":
            about = torch.cuda.get_device_properties(index)
            one |= {"name": about.name, "memory": f"{about.total_memory / _GB:.1f} GB"}
            one["capability"] = f"{about.major}.{about.minor}"
        found.append(one)
    return found


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None if there is none."""
    said = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0] if said else None


def _said(program: str, *arguments: str) -> str | None:
    """Return what a program prints; None if it is not installed, fails or takes too long."""
    if (path := shutil.which(program)) is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout.strip() or None
    return None
