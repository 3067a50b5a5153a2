"""Refuse targets that are NaN or infinite, both from a teacher and in a stored cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.cache.format import SPARSE, Kept
from hf_distill.errors import NotFinite

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

Array = np.ndarray[Any, Any]


def is_fit(values: Array, *, ruled_out: bool) -> bool:
    """Whether targets can be trained on: they are finite, or -inf where that is allowed.

    Args:
        values: Targets of any shape.
        ruled_out: Whether -inf is allowed, as the logit or log-probability of a class with probability 0.

    >>> is_fit(np.array([0.0, -np.inf]), ruled_out=True), is_fit(np.array([0.0, np.nan]), ruled_out=True)
    (True, False)
    """
    if not values.size:
        return True
    least, most = (float(one) for one in torch.from_numpy(values).aminmax())  # NaN if any value is
    return most < math.inf and (ruled_out or least > -math.inf)


def check_recorded(columns: Mapping[str, Sequence[Any]], kept: Kept, ruled_out: bool, rows: Sequence[str]) -> None:
    """Refuse a batch of the teacher's targets that are not finite.

    Args:
        columns: Columns from `Recorder`; hidden states are checked there already.
        kept: What the columns hold.
        ruled_out: Whether -inf is allowed, as in `is_fit`.
        rows: Name of each example, such as `row 3 of the train split`.

    Raises:
        NotFinite: Some targets are not finite; the message names the first example.
    """
    bad = []
    for at, name in enumerate(rows):
        for column in kept.answers:
            values = columns[column][at]
            if column != SPARSE[0] and not is_fit(_numbers(values, kept), ruled_out=ruled_out):
                bad.append(name)
                break
    if bad:
        more = f", and for {len(bad) - 1} more examples of its batch" if len(bad) > 1 else ""
        raise NotFinite(
            f"the teacher's targets for {bad[0]} are NaN or infinite{more}: they cannot be trained on and "
            "are not cached. Load the teacher with dtype: float32 or bfloat16."
        )


def _numbers(values: Any, kept: Kept) -> Array:
    # A copy, because torch warns about read-only memory.
    return np.frombuffer(values, kept.precision).copy() if isinstance(values, bytes) else np.asarray(values)


def check_shards(path: Path, held: Mapping[str, Any], kept: Kept, ruled_out: bool, shards: Sequence[int]) -> None:
    """Refuse a stored cache with targets that are not finite; other code may have written it.

    Args:
        path: Directory of the cache.
        held: Content of its `cache.json`.
        kept: What the cache holds.
        ruled_out: Whether -inf is allowed, as in `is_fit`.
        shards: Numbers of the shards to check.

    Raises:
        NotFinite: Some targets are not finite; the message says where the first one is.
    """
    from datasets import Dataset

    for index in shards:
        file = path / held["shards"][index]["file"]
        table = Dataset.from_file(str(file)).data.table
        start = 0
        for batch in table.select([name for name in kept.names if name != SPARSE[0]]).to_batches():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                of_classes = ruled_out and name in kept.answers
                if is_fit(_flat(column, kept), ruled_out=of_classes):
                    continue
                row = next(
                    at
                    for at in range(len(column))
                    if not is_fit(_flat(column[at : at + 1], kept), ruled_out=of_classes)
                )
                raise NotFinite(
                    f"the cache holds targets that are NaN or infinite: {file}, row {start + row}, column {name}. "
                    "Remove this file, and the same command computes only this shard again.",
                    key="path",
                )
            start += len(batch)


def _flat(column: pa.Array, kept: Kept) -> Array:
    """Return all numbers of a column as one flat array."""
    import pyarrow as pa

    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return np.frombuffer(b"".join(column.to_pylist()), kept.precision).copy()
    while not pa.types.is_floating(column.type):
        column = column.flatten()
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers if numbers.flags.writeable else numbers.copy()
