"""Finding and checking complete checkpoints, from which a training resumes and ends with the same weights."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.files.durable import checksums, fault, sync, sync_tree
from hf_distill.files.ownership import CHECKPOINT
from hf_distill.files.records import read_record, write_record

logger = logging.getLogger(__name__)

# Written last into a checkpoint: its files with checksums, and the key of its training.
SEAL = "_files.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARDED = ("pytorch_model_fsdp_0", "global_step*")  # directories that FSDP and DeepSpeed write
# What resuming needs besides weights; FSDP and DeepSpeed may write it into directories of their own.
_NEEDED = (("optimizer.*", "optimizer_0/*", "global_step*/*"), ("scheduler.pt", "global_step*/*"), ("rng_state*.pth",))


def seal(folder: Path, key: str, processes: int) -> None:
    """Flush a saved checkpoint to disk, then write the list of its files with their checksums. Call it in one process.

    Hashing takes a second for each 1 to 2 GB.

    Args:
        folder: The checkpoint.
        key: Fingerprint of the training, as `Fitter.key` returns it.
        processes: Number of processes of the training.
    """
    (folder / SEAL).unlink(missing_ok=True)  # left by an earlier checkpoint of the same name
    sync_tree(folder)
    write_record(folder / SEAL, {"key": key, "processes": processes, "files": checksums(folder)})
    sync(folder.parent)


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in the directory of a training, the newest first."""
    found = [one for one in directory.glob("checkpoint-*") if CHECKPOINT.fullmatch(one.name) and one.is_dir()]
    return sorted(found, key=lambda one: int(one.name.removeprefix("checkpoint-")), reverse=True)


def remove_checkpoints(directory: Path, keep: str | os.PathLike[str] | None = None) -> None:
    """Remove the checkpoints of a training from its directory, or only those that are newer than `keep`."""
    for one in checkpoints(directory):
        if keep is not None and one == Path(keep):
            break
        shutil.rmtree(one, ignore_errors=True)


def last_complete_checkpoint(
    directory: str | os.PathLike[str],
    key: str | None = None,
    *,
    sealed: bool = False,
    hashed: bool = True,
    among: Container[str] | None = None,
) -> str | None:
    """Return the newest `checkpoint-N` of a run from which training can resume, or None.

    All its files must be as they were written (size and sha256, in `_files.json`), and nothing that resuming needs may
    be missing: weights, optimizer, schedule, random numbers. An incomplete checkpoint, from a process killed while
    saving or a damaged disk, is skipped with a warning; `Trainer`'s own `get_last_checkpoint` would return it.

    Args:
        directory: `output_dir` of the run; it need not exist.
        key: Fingerprint of the training, as `Fitter.key` returns it; checkpoints of other trainings are skipped.
        sealed: Skip checkpoints without `_files.json`, which earlier versions did not write. Without it, one of several
            processes is skipped anyhow: nothing says which files each of them must have written.
        hashed: Whether to compare the files with their checksums, which takes a second for 1 to 2 GB.
        among: Names of the folders that count; None for all.
    """
    for folder in checkpoints(Path(directory)):
        if among is not None and folder.name not in among:
            continue
        reason = _checkpoint_fault(folder, key, sealed, hashed)
        if reason is None:
            return str(folder)
        logger.warning("%s is not complete (%s); not resuming from it", folder, reason)
    return None


def damaged(folder: Path) -> str | None:
    """Return what differs in a checkpoint from what was written; None if nothing does, or if it has no checksums."""
    record = read_record(folder / SEAL)
    return None if record is None else fault(folder, record.get("files", {}))


def check_processes(checkpoint: str, processes: int) -> None:
    """Refuse to resume with another number of processes than the checkpoint was made with.

    Raises:
        UserError: The numbers differ: data order and random numbers would change, and so would the final weights.
    """
    record = read_record(Path(checkpoint) / SEAL)
    if record is not None and record.get("processes") != processes:
        raise UserError(
            f"{checkpoint} was made by {record.get('processes')} process(es), and this run has {processes}: it would "
            "not end with the same weights. Start the same number of processes, or start over with --restart."
        )


def _checkpoint_fault(folder: Path, key: str | None, sealed: bool, hashed: bool) -> str | None:
    """Return what is missing or broken in a checkpoint, or None."""
    record = read_record(folder / SEAL)
    if record is None and (sealed or (folder / SEAL).exists()):
        return f"no readable {SEAL}, which is written last"
    if record is not None:
        if key is not None and record.get("key") != key:
            return "it belongs to another training"
        if hashed and (damage := fault(folder, record.get("files", {}))):
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
    if record is None and _any(folder, *_SHARDED, "rng_state_*.pth"):
        return f"no readable {SEAL}, and nothing else says which files each process must have written"
    lacking = _lacking(folder, 1 if record is None else record.get("processes", 1))
    return lacking or _best_fault(folder, state.get("best_model_checkpoint"))


def _any(folder: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def weights_fault(folder: Path) -> str | None:
    """Return which weight file is missing, empty or cut off according to its own header; None if all are complete."""
    weights = list(_weight_files(folder))
    if not weights:
        return "no weights"
    for file in [*weights, *folder.glob("*.pt"), *folder.glob("*.pth")]:
        if not _is_whole(file):
            return f"{file.relative_to(folder)} is missing, empty or cut off"
    return None


def _best_fault(folder: Path, best: str | None) -> str | None:
    """Return what is wrong with the best model so far, which may be loaded at the end; None if nothing is."""
    other = folder if best is None else folder.parent / Path(best).name
    if other == folder:
        return None
    damage = weights_fault(other) or damaged(other)
    return None if damage is None else f"the best model until then, {other.name}, is damaged: {damage}"


def _lacking(folder: Path, processes: int) -> str | None:
    """Return which file is missing without which a resumed training would end with other weights, or None."""
    for pattern, *others in _NEEDED:
        if not _any(folder, pattern, *others):
            return f"no {pattern}, as with save_only_model"
    if processes > 1:
        for rank in range(processes):
            if not (folder / f"rng_state_{rank}.pth").is_file():
                return f"no rng_state_{rank}.pth, which process {rank} of {processes} writes"
    return None


def _weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files that hold a checkpoint's weights, including those that a shard index names."""
    for name in _INDEXES:
        if (folder / name).is_file():
            try:
                shards = set(json.loads((folder / name).read_bytes())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                shards = {name}  # `_is_whole` then reports the index itself as damaged
            yield from (folder / shard for shard in sorted(shards))
    yield from (folder / name for name in _WEIGHTS if (folder / name).exists())
    for pattern in _SHARDED:
        yield from (file for file in folder.glob(f"{pattern}/*") if file.is_file() and not file.name.startswith("."))


def _is_whole(file: Path) -> bool:
    """Return whether a file ends where its own header says that it ends."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)  # torch.save writes a zip, whose table of contents comes last
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
