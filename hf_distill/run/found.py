"""Finds out what the directory of a training holds: nothing, an unfinished training, or the finished model."""

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
    """What the directory of a training holds.

    Attributes:
        record: The record of the training (`training.json`); empty if there is none, or if it cannot be read.
        damage: What differs from what was written, as text; None if nothing does, or if nothing is there.
        checkpoint: The checkpoint from which the training resumes; None to start from the beginning.
    """

    record: Mapping[str, Any]
    damage: str | None = None
    checkpoint: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the finished model is there, as it was saved."""
        return bool(self.record.get("finished")) and self.damage is None


def look(directory: Path, key: str, processes: int) -> Found:
    """Return what the directory of a training holds. Files are hashed, at 1 to 2 GB a second.

    Args:
        directory: Directory of the training; it need not exist.
        key: Fingerprint of the training.
        processes: Number of processes of this run.

    Raises:
        UserError: The directory holds another training, or one that this number of processes cannot resume.
    """
    record = read_record(directory) or {}
    if record and record["key"] != key:
        raise UserError(
            f"{directory} holds a training with other models, data or settings. Start over with --restart, or "
            "choose another training.output_dir."
        )
    damage = None
    if record.get("finished"):
        sums = record.get("files")  # records of earlier versions have none
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
    """Return the record of the training in a directory; None if there is none, or if it is damaged."""
    record = records.read_record(directory / TRAINING)
    return record if record is not None and {"key", "finished", "seconds", "history"} <= record.keys() else None
