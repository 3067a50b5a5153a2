"""Checkpoints that are whole, so that a training can go on from them and end as if it had never stopped."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.files.durable import checksums, fault, sync, sync_tree
from hf_distill.files.ownership import CHECKPOINT
from hf_distill.files.records import read_record, write_record

logger = logging.getLogger(__name__)

# Written last into a checkpoint: what it consists of, and of which training it is.
SEAL = "_files.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARDED = ("pytorch_model_fsdp_0", "global_step*")  # directories that FSDP and DeepSpeed write


def seal(folder: Path, key: str, processes: int) -> None:
    """Force a checkpoint that was saved to disk, then write down what it consists of.

    Takes what the disk takes, and a second for each 1 to 2 GB that are hashed. For one process only.
    """
    (folder / SEAL).unlink(missing_ok=True)  # of an earlier one with its name
    sync_tree(folder)
    write_record(folder / SEAL, {"key": key, "processes": processes, "files": checksums(folder)})
    sync(folder.parent)


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a training, the newest first."""
    found = [one for one in directory.glob("checkpoint-*") if CHECKPOINT.fullmatch(one.name) and one.is_dir()]
    return sorted(found, key=lambda one: int(one.name.removeprefix("checkpoint-")), reverse=True)


def remove_checkpoints(directory: Path, keep: str | os.PathLike[str] | None = None) -> None:
    """Remove the checkpoints of a training from its directory, or those that are newer than the one to keep."""
    for one in checkpoints(directory):
        if keep is not None and one == Path(keep):
            break
        shutil.rmtree(one, ignore_errors=True)


def last_complete_checkpoint(
    directory: str | os.PathLike[str], key: str | None = None, *, sealed: bool = False
) -> str | None:
    """Return the newest `checkpoint-N` of a run from which training can resume, or None.

    Every file of it must be there as it was written (size and sha256, in `_files.json`), and all that decides how the
    training goes on: weights, optimizer, schedule, random numbers. A process killed while saving, or a damaged disk,
    leaves a newer one that `Trainer`'s own `get_last_checkpoint` would return; here it is skipped, with a warning.

    Args:
        directory: `output_dir` of the run; it need not exist.
        key: Of the training, as `Fitter.key` gives it; checkpoints of another one do not count.
        sealed: Whether one without `_files.json` does not count; versions before wrote none.
    """
    for folder in checkpoints(Path(directory)):
        reason = _checkpoint_fault(folder, key, sealed)
        if reason is None:
            return str(folder)
        logger.warning("%s is not complete (%s); not resuming from it", folder, reason)
    return None


def damaged(folder: Path) -> str | None:
    """Return what of a sealed checkpoint is not as it was written, or None; also where it was never sealed."""
    record = read_record(folder / SEAL)
    return None if record is None else fault(folder, record.get("files", {}))


def check_processes(checkpoint: str, processes: int) -> None:
    """Refuse to go on with another number of processes than a checkpoint was made with.

    Raises:
        UserError: Order and random numbers would be others, and so would the weights in the end.
    """
    record = read_record(Path(checkpoint) / SEAL)
    if record is not None and record.get("processes") != processes:
        raise UserError(
            f"{checkpoint} was made by {record.get('processes')} process(es), and this run has {processes}: it would "
            "not end with the same weights. Start as many as before, or start over with --restart."
        )


def _checkpoint_fault(folder: Path, key: str | None, sealed: bool) -> str | None:
    """Return what is missing or broken in a checkpoint, or None."""
    record = read_record(folder / SEAL)
    if record is None and (sealed or (folder / SEAL).exists()):
        return f"no readable {SEAL}, which is written last"
    if record is not None:
        if key is not None and record.get("key") != key:
            return "it is of another training"
        if damage := fault(folder, record.get("files", {})):
            return damage
    try:
        state = json.loads((folder / "trainer_state.json").read_bytes())
        step = state["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable trainer_state.json"
    if not isinstance(step, int):
        return "no global_step in trainer_state.json"
    if damage := weights_fault(folder):
        return damage
    if any(True for pattern in _SHARDED for _ in folder.glob(pattern)):
        return None
    return _lacking(folder) or _best_fault(folder, state.get("best_model_checkpoint"))


def weights_fault(folder: Path) -> str | None:
    """Return which file of weights is not whole as far as its own header tells, or None."""
    weights = list(_weight_files(folder))
    if not weights:
        return "no weights"
    for file in [*weights, *folder.glob("*.pt"), *folder.glob("*.pth")]:
        if not _is_whole(file):
            return f"{file.relative_to(folder)} is missing, empty or cut off"
    return None


def _best_fault(folder: Path, best: str | None) -> str | None:
    """Return what is wrong with the best model until a checkpoint, which may be loaded in the end."""
    other = folder if best is None else folder.parent / Path(best).name
    if other == folder:
        return None
    damage = weights_fault(other) or damaged(other)
    return None if damage is None else f"the best model until then, {other.name}, is damaged: {damage}"


def _lacking(folder: Path) -> str | None:
    """Return what a checkpoint lacks without which a training goes on as another one, or None."""
    for pattern in ("optimizer.*", "scheduler.pt", "rng_state*.pth"):
        if not any(folder.glob(pattern)):
            return f"no {pattern}, as with save_only_model"
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
