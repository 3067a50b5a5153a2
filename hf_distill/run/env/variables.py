"""What is set from outside: launcher, variables, accelerate's default configuration, directories of caches."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_distill.locations import existing

HIDDEN = "set, not shown"
# Beginnings of names that change where a model, a data set or a process comes from.
_BEGINNINGS = (
    *("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_"),
    *("ACCELERATE_", "FSDP_", "DEEPSPEED_", "DS_", "TORCH_", "TORCHELASTIC_", "PYTORCH_", "NCCL_", "GLOO_"),
    *("CUDA_", "HIP_", "ROCR_", "OMP_", "MKL_", "KMP_", "ONEDNN_"),
)
_NAMES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"),
    *("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_CPUS_PER_TASK"),
    *("PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
_LAUNCHERS = (
    ("TORCHELASTIC_RUN_ID", "torchrun, or accelerate launch of several processes"),
    ("ACCELERATE_DYNAMO_BACKEND", "accelerate launch"),
    ("SLURM_PROCID", "srun"),
    ("WORLD_SIZE", "another one that sets WORLD_SIZE"),
)
# Also within a word: a name that this hides in vain costs less than a token in a public issue.
_SECRET = re.compile(r"TOKEN(?!IZERS?_)|SECRET|PASS|CREDENTIAL|COOKIE|AUTH|HEADER|(?<![A-Z])KEY", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_LONGEST_FILE = 20_000


def launcher(variables: Mapping[str, str] = os.environ) -> str:
    """Return what started this process, by the variables that launchers set."""
    return next((words for name, words in _LAUNCHERS if name in variables), "none")


def shown(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that matter to a run, sorted, without the value of any that may be a secret.

    >>> shown({"HF_TOKEN": "hf_abc", "HF_ENDPOINT": "https://me:pa55@hub.example", "EDITOR": "vi"})
    {'HF_ENDPOINT': 'https://...@hub.example', 'HF_TOKEN': 'set, not shown'}
    """
    names = [name for name in sorted(variables) if name.startswith(_BEGINNINGS) or name.upper() in _NAMES]
    return {name: _without_secrets(name, variables[name]) for name in names}


def _without_secrets(name: str, value: str) -> str:
    if _SECRET.search(name) and not name.endswith("_PATH"):
        return HIDDEN
    return _LOGIN.sub("...", value)


def hugging_face(variables: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of Hugging Face's libraries."""
    above = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(variables.get("HF_HOME") or Path(above, "huggingface")).expanduser()


def accelerate_config(variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return path and settings of accelerate's default configuration; both None without one."""
    folder = hugging_face(variables) / "accelerate"
    for path in (folder / "default_config.yaml", folder / "default_config.json"):
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST_FILE]
            except OSError as error:
                text = f"cannot be read: {error.strerror}"
            lines = [_hidden(line) for line in text.splitlines() if line.strip()]
            return {"file": str(path), "settings": lines}
    return {"file": None, "settings": None}


def _hidden(line: str) -> str:
    """Return a line of a configuration file, without the value of a key that may be a secret."""
    key, colon, _ = line.partition(":")
    return f"{key}: {HIDDEN}" if colon and _SECRET.search(key) else _LOGIN.sub("...", line)


def directories(variables: Mapping[str, str] = os.environ) -> dict[str, dict[str, str]]:
    """Return the directories in which models, data and compiled code are cached, and how much room their disks have."""
    home = hugging_face(variables)
    paths = {
        "models": variables.get("HF_HUB_CACHE") or home / "hub",
        "data sets": variables.get("HF_DATASETS_CACHE") or home / "datasets",
        "current directory": ".",
        "temporary files": variables.get("TMPDIR") or "/tmp",
    }
    return {what: _room(Path(path).expanduser()) for what, path in paths.items()}


def _room(path: Path) -> dict[str, str]:
    try:
        there = existing(path)
        free = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free"
        return {"path": str(path.absolute()), "room": free if there == path.absolute() else f"{free}, not there yet"}
    except OSError as error:
        return {"path": str(path), "room": f"cannot be read: {error.strerror}"}
