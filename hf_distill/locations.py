"""Resolve Hub ids, local paths and `package:NAME/PATH`, and check which packages are installed."""

from __future__ import annotations

import importlib.util
import os
import re
from difflib import SequenceMatcher
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.formatting import readable

PACKAGE = "package:"
NAME_BYTES, PATH_LENGTH = 255, 4000
# `name` or `user/name`; anything else, or a name with the ending of a file, is a path.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE = re.compile(
    r"\.(csv|tsv|jsonl?|parquet|txt|arrow|gz|bz2|xz|zst|zip|py|ya?ml|safetensors|gguf|bin|pth?)", re.IGNORECASE
)
# Least similarity for "did you mean": `trian` is similar enough to `train`, `dev` is not.
_ALIKE = 0.65


def resolve(location: str, key: str = "model") -> str:
    """Return a location as `from_pretrained` and `load_dataset` understand it.

    `package:NAME/PATH` becomes the path inside the installed package (the package is located, not imported);
    a local path must exist; anything else is taken as a Hub id.

    Raises:
        UserError: The package is not installed, or the path does not exist or is too long for a file system.
    """
    check_lengths(location, key)
    if location.startswith(PACKAGE):
        return _in_package(location.removeprefix(PACKAGE), key)
    path = os.path.expanduser(location)
    if location and os.path.exists(path):
        return path
    if _looks_like_path(location):
        raise UserError(
            f"no such file or directory: '{shorten(location, 120)}' (looked from {Path.cwd()}).{sibling(path)}", key=key
        )
    return location


def shorten(text: str, length: int) -> str:
    """Return a text cut to at most `length` characters, with `...` in place of its middle."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-(length // 2 - 3) :]}"


def check_lengths(location: str, key: str) -> None:
    """Refuse a path that is too long for file systems, or holds a null byte: every call on it would fail.

    Raises:
        UserError: The path is one of these.
    """
    longest = max((len(part.encode("utf-8", "surrogatepass")) for part in re.split(r"[/\\]", location)), default=0)
    shown = readable(location, limit=100)
    if "\0" in location:
        raise UserError(f"'{shown}' has a null byte in it, which a path cannot have.", key=key)
    if longest > NAME_BYTES:
        raise UserError(f"'{shown}' has a name of {longest:,} bytes; a file can have at most {NAME_BYTES}.", key=key)
    if len(location) > PATH_LENGTH:
        raise UserError(f"'{shown}' has {len(location):,} characters; a path can have {PATH_LENGTH:,}.", key=key)


def _in_package(location: str, key: str) -> str:
    package, _, inside = location.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("-", "_")
        hint = f" In Python its name may be '{name}'." if name != package and name.isidentifier() else ""
        raise UserError(f"no Python package '{package}' is installed here. Install it with pip.{hint}", key=key)
    if os.path.isabs(inside) or ".." in Path(inside).parts:
        raise UserError(f"'{PACKAGE}{location}' leads out of the package. Name a path inside it.", key=key)
    paths = [Path(place) / inside for place in spec.submodule_search_locations]
    for path in paths:
        if path.exists():
            return str(path)
    raise UserError(f"the package '{package}' has no '{inside}' inside (looked for {paths[0]}).", key=key)


def _looks_like_path(location: str) -> bool:
    return _HUB_ID.fullmatch(location) is None or _FILE.fullmatch(Path(location).suffix) is not None


def sibling(path: str, having: str = "") -> str:
    """Return `" Did you mean 'x'?"` if the same folder has an entry with a similar name, else "".

    Args:
        path: The path that does not exist.
        having: If given, only directories that have a file of this name are considered.
    """
    folder, name = os.path.split(path.rstrip("/\\"))
    try:
        there = sorted(os.listdir(folder or "."))
    except OSError:
        return ""
    if having:
        there = [one for one in there if os.path.exists(os.path.join(folder, one, having))]

    def likeness(other: str) -> tuple[float, float]:
        return _likeness(_stem(name), _stem(other)), _likeness(name, other)

    closest = max(there, key=likeness, default=None)
    if closest is None or likeness(closest)[0] < _ALIKE:
        return ""
    return f" Did you mean '{os.path.join(folder, closest)}'?"


def _stem(name: str) -> str:
    """Return a name without the ending of a file, which is the same for all files of one format."""
    while _FILE.fullmatch(Path(name).suffix):
        name = Path(name).stem
    return name


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


def existing(folder: Path) -> Path:
    """Return a directory, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


# Module -> what to install with pip, if that is not the module's name with dashes. The extras are this project's.
PIP = {
    **dict.fromkeys(("rouge_score", "sacrebleu"), "'hf-distill[text]'"),
    **dict.fromkeys(("torchao", "bitsandbytes"), "'hf-distill[quantization]'"),
    "fairlearn": "'hf-distill[fairness]'",
    "dp_accounting": "'hf-distill[privacy]'",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "'hf-distill[onnx]'"),
    "gguf": "'hf-distill[gguf]'",
    "httpx2": "'hf-distill[served]'",
    "azure_ml": "azureml-sdk",
    "flyte": "flytekit",
    "galore_torch": "git+https://github.com/jiaweizzhao/GaLore",
    "apollo_torch": "git+https://github.com/zhuhanqing/APOLLO",
    "torchdistx": "git+https://github.com/pytorch/torchdistx",
}


def is_here(package: str) -> bool:
    """Return whether a package is installed, in a version that Transformers accepts if it requires one."""
    from transformers import utils

    test = getattr(utils, f"is_{package}_available", None)
    return importlib.util.find_spec(package) is not None if test is None else bool(test())


def missing(package: str, by: str) -> str:
    """Return the message about a package that is not installed.

    >>> missing("wandb", "'wandb'")
    "'wandb' needs the package wandb, which is not installed here: pip install wandb"
    """
    name = package.replace("_", "-")
    return f"{by} needs the package {name}, which is not installed here: pip install {PIP.get(package, name)}"


def require(package: str, by: str, key: str = "") -> None:
    """Raise an error if a package is not installed.

    Args:
        package: Name of its module.
        by: What needs it, in the recipe's words.
        key: Recipe key at fault.

    Raises:
        UserError: It is not installed; the message says what to install.
    """
    if not is_here(package):
        raise UserError(missing(package, by), key=key)
