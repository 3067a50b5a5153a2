"""Targets that are given as data, put where a cache has a teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.kept import Kept
from hf_distill.cache.replay import ROW, Replay, Targets, with_targets
from hf_distill.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.tasks import Prepared

Array = NDArray[Any]


def numbered(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return the splits with the number of every row, which a task keeps while it reads and sorts them."""
    return {name: split.add_column(ROW, np.arange(len(split))) for name, split in splits.items()}


def replaying(
    prepared: Prepared, logits: Mapping[str, Array], config: PretrainedConfig
) -> tuple[Prepared, tuple[Prepared, Replay]]:
    """Return the data as it is without a teacher; and with the targets in every batch, and a teacher that gives them.

    Args:
        prepared: Data whose rows are `numbered`.
        logits: Split -> targets by number of the row, float32 `(rows, classes)`.
        config: What stands for the teacher's.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    whole = np.concatenate([logits["train"], logits["eval"]])
    rows = {"train": np.array(prepared.train[ROW]), "eval": np.array(prepared.eval[ROW]) + len(logits["train"])}
    offsets = np.arange(len(whole) + 1, dtype=np.int64) * whole.shape[1]
    column = pa.LargeListArray.from_arrays(offsets, whole.reshape(-1)).cast(pa.list_(pa.float32()))
    kept = Kept(outputs=("logits",))
    targets = Targets(Dataset(pa.table({"logits": column})), kept, prepared.layout)
    plain = replace(prepared, train=prepared.train.remove_columns(ROW), eval=prepared.eval.remove_columns(ROW))
    replay = Replay(config, kept, fingerprint(whole.shape, blake2b(whole.tobytes()).hexdigest()))
    return plain, (with_targets(plain, targets, rows), replay)
