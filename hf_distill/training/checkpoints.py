"""Checkpoints that are whole, so that a training can go on from them."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARDED = ("pytorch_model_fsdp_0", "global_step*")  # directories that FSDP and DeepSpeed write


def last_complete_checkpoint(directory: str | os.PathLike[str]) -> str | None:
    """Return the newest `checkpoint-N` of a run from which training can resume, or None.

    `Trainer` writes `trainer_state.json` last, so a checkpoint counts when that file can be read and the weights and
    optimizer files are whole. A process killed while saving leaves a newer directory that `Trainer`'s own
    `get_last_checkpoint` would return; here it is skipped, with a warning.

    Args:
        directory: `output_dir` of the run; it need not exist.
    """
    root = Path(directory)
    steps = {}
    for folder in root.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if number.isascii() and number.isdigit() and folder.is_dir():
            steps[int(number)] = folder
    for step in sorted(steps, reverse=True):
        fault = _checkpoint_fault(steps[step])
        if fault is None:
            return str(steps[step])
        logger.warning("%s is not complete (%s); not resuming from it", steps[step], fault)
    return None


def _checkpoint_fault(folder: Path) -> str | None:
    """Return what is missing or broken in a checkpoint, or None."""
    try:
        state = json.loads((folder / "trainer_state.json").read_bytes())
        step = state["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable trainer_state.json"
    if not isinstance(step, int):
        return "no global_step in trainer_state.json"
    weights = list(_weight_files(folder))
    if not weights:
        return "no weights"
    for file in [*weights, *folder.glob("*.pt"), *folder.glob("*.pth")]:
        if not _is_whole(file):
            return f"{file.relative_to(folder)} is missing, empty or cut off"
    return None


def _weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files that hold a checkpoint's weights, those named in a shard index included."""
    for name in _INDEXES:
        if (folder / name).is_file():
            try:
                shards = set(json.loads((folder / name).read_bytes())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                shards = {name}  # as a weight file it fails `_is_whole`
            yield from (folder / shard for shard in sorted(shards))
    yield from (folder / name for name in _WEIGHTS if (folder / name).exists())
    for pattern in _SHARDED:
        yield from (file for file in folder.glob(f"{pattern}/*") if file.is_file() and not file.name.startswith("."))


def _is_whole(file: Path) -> bool:
    """Return whether a file ends where its own header or directory says that it ends."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)  # torch.save writes a zip, whose directory comes last
    if file.suffix != ".safetensors":
        return not file.name.endswith(".index.json")
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            return False
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return bool(file.stat().st_size == 8 + length + end)
