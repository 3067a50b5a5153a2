"""What a benchmark ran on: absolute times mean nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "accelerate", "trl", "hf-distill")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, str]:
    """Return name and value of everything worth knowing."""
    import psutil

    processor, flags = platform.processor() or platform.machine(), ""
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        known = {name.strip(): value.strip() for name, value in lines.items()}
        processor, flags = known.get("model name", processor), known.get("flags", "")
    has = ", ".join(flag for flag in _FLAGS if flag in flags.split())
    return {
        "processor": f"{processor}, {os.cpu_count()} cores" + (f" ({has})" if has else ""),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(filter(None, map(_version, _PACKAGES))),
        "commit": _commit(),
        "load": f"{os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "not known",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the commit that is measured; marked where the code is another one, which the results may be."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{head}{'-dirty' if changed else ''}" if head else "not known"


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
