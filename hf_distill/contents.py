"""The content of single examples: what a teacher reads of each, as a short hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

# Bytes of the hash of an example.
SIZE = 16
_ROWS = 10_000

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def example_hashes(split: Dataset, columns: Sequence[str]) -> Hashes:
    """Return a hash of the content of every example, `(rows, 2)` of 8 bytes each.

    It depends on the values of the columns and their names alone: not on the place of the example, nor on whether
    integers are stored in 4 bytes or in 8.

    Args:
        split: A tokenised split.
        columns: Which of its columns count.
    """
    names = sorted(columns)
    start = hashlib.blake2b(repr(names).encode(), digest_size=SIZE)
    found = bytearray()
    for table in split.with_format("arrow").iter(batch_size=_ROWS):
        parts = [_bytes(table.column(name).combine_chunks()) for name in names]
        for row in range(len(table)):
            digest = start.copy()
            for values, ends in parts:
                part = values[ends[row] : ends[row + 1]]
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
            found += digest.digest()
    return np.frombuffer(bytes(found), dtype=np.uint64).reshape(-1, 2)


def _bytes(array: pa.Array) -> tuple[memoryview, list[int]]:
    """Return the values of a column one after the other, and where those of each row begin and end."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    kind, ends = array.type, np.arange(len(array) + 1)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not array.null_count:
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        array = array.flatten()
    if not array.null_count and (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        values = array.to_numpy(zero_copy_only=False).astype(np.int64)
    elif not array.null_count and pa.types.is_floating(array.type):
        values = array.to_numpy(zero_copy_only=False).astype(np.float64)
    else:  # texts, nested lists: the slow, exact way
        texts = [repr(value).encode(errors="surrogatepass") for value in array.to_pylist()]
        places = np.concatenate(([0], np.cumsum([len(text) for text in texts], dtype=np.int64)))
        return memoryview(b"".join(texts)), places[ends].tolist()
    return memoryview(values.tobytes()), (ends * 8).tolist()


def find(known: Hashes, wanted: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the row of `known` that each of `wanted` equals, -1 for none."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known[:, 0], kind="stable")
    places = np.searchsorted(known[order, 0], wanted[:, 0]).clip(max=len(known) - 1)
    rows: np.ndarray[Any, np.dtype[np.int64]] = order[places]
    return np.where((known[rows] == wanted).all(-1), rows, -1)
