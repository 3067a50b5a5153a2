"""What the directory of a training holds: nothing, a beginning, or the finished model, as it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files import records
from hf_distill.files.durable import fault
from hf_distill.files.ownership import TRAINING
from hf_distill.training.checkpoints import check_processes, last_complete_checkpoint, weights_fault


@dataclass(frozen=True)
class Found:
    """What is there of a training.

    Attributes:
        record: What was written down of it; empty where nothing was, or nothing that can be read.
        damage: What is not as it was written, in words; None where all is, or nothing is there.
        checkpoint: From which it goes on.
    """

    record: Mapping[str, Any]
    damage: str | None = None
    checkpoint: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the model is there as it was saved."""
        return bool(self.record.get("finished")) and self.damage is None


def look(directory: Path, key: str, processes: int) -> Found:
    """Return what a directory holds of a training. Hashes what it finds (1 to 2 GB a second).

    Args:
        directory: Of the training; it need not be there.
        key: Of the training.
        processes: Of this run.

    Raises:
        UserError: Another training is there, or one that this number of processes cannot go on with.
    """
    record = read_record(directory) or {}
    if record and record["key"] != key:
        raise UserError(
            f"{directory} holds a training with other models, data or settings. Start over with --restart, or "
            "choose another training.output_dir."
        )
    damage = None
    if record.get("finished"):
        sums = record.get("files")  # none in records of the version before
        damage = weights_fault(directory) if sums is None else fault(directory, sums)
    elif not record and (directory / TRAINING).exists():
        damage = f"{TRAINING} cannot be read"
    if record.get("finished") and damage is None:
        return Found(record)
    checkpoint = last_complete_checkpoint(directory, key, sealed=not record or record.get("sealed", False))
    if checkpoint is not None:
        check_processes(checkpoint, processes)
    return Found(record, damage, checkpoint)


def read_record(directory: Path) -> dict[str, Any] | None:
    """Return what was written down of the training in a directory; None where it is not there or damaged."""
    record = records.read_record(directory / TRAINING)
    return record if record is not None and {"key", "finished", "seconds", "history"} <= record.keys() else None
