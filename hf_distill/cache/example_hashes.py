"""Identify examples by a hash of what the teacher reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.collators import drawn
from hf_distill.data.example_columns import EXAMPLE_COLUMNS
from hf_distill.data.label_names import IGNORED
from hf_distill.data.two_tokenizers import ALIGNED_AT, APART
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    from hf_distill.cache.format import Kept
    from hf_distill.cache.replay import TrainingData
    from hf_distill.models.layers import States
    from hf_distill.tasks import Prepared

# Columns that no model reads. Labels are left out of the hash unless they choose what is stored.
NOT_READ = ("length", *EXAMPLE_COLUMNS)
_LABELS = ("labels", "start_positions", "end_positions")
# Size of a hash in bytes.
SIZE = 16
_ROWS = 10_000
# How many are collated to see whether their batch is always the same.
_SHOWN = 16

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def example_hashes(split: Dataset, columns: Sequence[str]) -> Hashes:
    """Return a hash of the content of every example, uint64 `(rows, 2)`.

    The hash depends only on the names and values of the columns: not on the position of the example or on other
    examples, and not on whether integers are stored in 4 or 8 bytes.

    Args:
        split: A tokenised split.
        columns: The columns to hash.
    """
    names = sorted(columns)
    start = hashlib.blake2b(repr(names).encode(), digest_size=SIZE)
    found = bytearray()
    for table in split.with_format("arrow").iter(batch_size=_ROWS):
        parts = [_bytes(table.column(name).combine_chunks()) for name in names]
        for row in range(len(table)):
            digest = start.copy()
            for values, ends, exceptions in parts:
                part = exceptions.get(row, values[ends[row] : ends[row + 1]])
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
            found += digest.digest()
    return np.frombuffer(bytes(found), dtype=np.uint64).reshape(-1, 2)


def _bytes(array: pa.Array) -> tuple[memoryview, list[int], dict[int, bytes]]:
    """Return the values of a column as bytes, the offsets of the rows in them, and the bytes of exceptional rows.

    Exceptional rows have missing values. They are hashed apart, so that the bytes of other rows do not depend on them.
    """
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    column, ends, missing = array, np.arange(len(array) + 1), _missing(array)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        array = array.flatten()
        inside = np.concatenate(([0], np.cumsum(_missing(array), dtype=np.int64)))[ends]
        missing = missing | (inside[1:] > inside[:-1])
    exceptions = {row: repr(column[row].as_py()).encode() for row in np.flatnonzero(missing).tolist()}
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        values = _numbers(array).astype(np.int64)
    elif pa.types.is_floating(array.type):
        values = _numbers(array).astype(np.float64)
    else:  # texts and nested lists: slower
        texts = [repr(value).encode(errors="surrogatepass") for value in array.to_pylist()]
        places = np.concatenate(([0], np.cumsum([len(text) for text in texts], dtype=np.int64)))
        return memoryview(b"".join(texts)), places[ends].tolist(), exceptions
    return memoryview(values.tobytes()), (ends * 8).tolist(), exceptions


def _missing(array: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found: np.ndarray[Any, np.dtype[np.bool_]] = array.is_null().to_numpy(zero_copy_only=False)
    return found


def _numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    filled = array.fill_null(False if str(array.type) == "bool" else 0) if array.null_count else array
    numbers: np.ndarray[Any, Any] = filled.to_numpy(zero_copy_only=False)
    return numbers


def find(known: Hashes, wanted: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, for each hash in `wanted`, its row in `known`; -1 if it is not there."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known[:, 0], kind="stable")
    places = np.searchsorted(known[order, 0], wanted[:, 0]).clip(max=len(known) - 1)
    rows: np.ndarray[Any, np.dtype[np.int64]] = order[places]
    return np.where((known[rows] == wanted).all(-1), rows, -1)


@dataclass(frozen=True)
class Contents:
    """The distinct examples of all splits, in the order in which the teacher runs on them: by length.

    Attributes:
        splits: The splits with the teacher's tokens.
        hashes: Split -> hash of every example, `(rows, 2)`.
        order: Split and row of each distinct example.
        known: Hash of each distinct example, `(examples, 2)`.
        counts: Number of positions of each distinct example that a sparse cache stores.
        tokens: Length of each distinct example in tokens.
    """

    splits: Mapping[str, Dataset]
    hashes: Mapping[str, Hashes]
    order: list[tuple[str, int]]
    known: Hashes
    counts: np.ndarray[Any, np.dtype[np.int64]]
    tokens: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def of(cls, data: Prepared | TrainingData, kept: Kept) -> Contents:
        """Return the distinct examples of the data.

        Args:
            data: The data with the teacher's tokens.
            kept: What is stored. If rows of a vocabulary are stored, labels choose them.

        Raises:
            UserError: The inputs change from epoch to epoch.
        """
        if hasattr(data.collator, "set_epoch") and "labels" not in data.train.column_names:
            raise UserError(
                "the masks of this task change with every epoch, so stored targets would not fit them. Freeze the "
                "masks (teacher: {name: cached, frozen_masks: true, ...}), or run the teacher in training (without "
                "cached)."
            )
        splits = {"train": data.train, "eval": data.eval}
        for split in splits.values():
            _check_collator(split, data.collator)
        # Labels choose the positions that are stored, for rows of a vocabulary and for a decoder's hidden states.
        labels = kept.is_sparse or any(one.states.part == "decoder" for one in kept.states)
        left_out = NOT_READ if labels else (*NOT_READ, *_LABELS)
        hashes, lengths, counts = {}, [], []
        for name, split in splits.items():
            columns = [column for column in split.column_names if column not in left_out]
            hashes[name] = example_hashes(split, columns)
            lengths.append(_column(split, "length"))
            counts.append(_learned(split) if kept.is_sparse else lengths[-1])
        places = [(name, row) for name in splits for row in range(len(splits[name]))]
        every, length = np.concatenate([*hashes.values()]), np.concatenate(lengths)
        _, first = np.unique(every, axis=0, return_index=True)
        order = first[np.lexsort((first, length[first]))]
        return cls(
            splits,
            hashes,
            [places[index] for index in order],
            every[order],
            np.concatenate(counts)[order],
            length[order],
        )

    @property
    def key(self) -> str:
        """Fingerprint of all distinct examples."""
        return hashlib.blake2b(self.known.tobytes(), digest_size=SIZE).hexdigest()

    def size(self, kept: Kept, config: Any) -> int:
        """Return the size of the cache's rows in bytes, approximately."""
        if kept.is_sparse:
            values = int(self.counts.sum()) * kept.row_bytes()
        else:
            from hf_distill.models.sentence_files import width_of

            vectors = width_of(config) if "sentence_embedding" in kept.outputs else 0
            width = {"sentence_embedding": vectors, "logits": config.num_labels}
            each = sum(width.get(name, 1) for name in kept.outputs) * np.dtype(kept.precision).itemsize
            each *= len(kept.means) or 1
            each += 4 * (self.dims(kept) - 1)  # offsets of the inner lists
            rows = self._total(_texts) if vectors else len(self.order)
            values = each * (int(self.tokens.sum()) if kept.by_token else rows)
        values += sum(one.vector_bytes * self.vectors(one.states) for one in kept.states)
        # Plus the hash, and an offset in every column.
        return values + len(self.order) * (SIZE + 4 * (1 + len(kept.names)))

    def vectors(self, states: States) -> int:
        """Return the number of vectors of a layer that are stored for all examples."""
        return self._total(_texts if states.of != "tokens" else _learned if states.part == "decoder" else _read_tokens)

    def _total(self, count: Callable[[Dataset], np.ndarray[Any, Any]]) -> int:
        """Return the sum of `count` over the distinct examples."""
        counts = {name: count(split) for name, split in self.splits.items()}
        return int(sum(counts[name][row] for name, row in self.order))

    def dims(self, kept: Kept) -> int:
        """Return the number of dimensions of an output for one example."""
        if kept.outputs == ("sentence_embedding",):
            return 1 + _several(self.splits["train"])
        return 2 if kept.by_token and kept.outputs == ("logits",) else 1


def _check_collator(split: Dataset, collate: Any) -> None:
    """Refuse a collator that makes another batch of the same examples each time."""
    rows = split.remove_columns([name for name in NOT_READ if name in split.column_names])
    name = drawn(collate, rows.select(range(min(_SHOWN, len(rows)))).to_list()) if len(rows) else None
    if name is not None:
        raise UserError(
            f"the collator makes other {name} of the same examples each time, as one that draws masks does, so that "
            "stored targets would belong to other inputs. Take the teacher itself, or a collator without chance: for "
            "masks that stay, write them into the data once (map)."
        )


def _column(split: Dataset, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(split.with_format("numpy")[name][:], dtype=np.int64)


def _several(split: Dataset) -> bool:
    """Whether examples are lists of texts."""
    ids: Any = split.features["input_ids"]
    return hasattr(ids.feature, "feature")


def _texts(split: Dataset) -> np.ndarray[Any, Any]:
    """Return the number of texts of each example."""
    return _lengths(split) if _several(split) else np.ones(len(split), dtype=np.int64)


def _read_tokens(split: Dataset) -> np.ndarray[Any, Any]:
    """Return the number of tokens of each example, summed over its texts."""
    return _lengths(split, within=_several(split))


def _lengths(split: Dataset, *, within: bool = False) -> np.ndarray[Any, Any]:
    """Return the length of every list in `input_ids`; with `within`, the summed length of its inner lists."""
    found = []
    for table in split.with_format("arrow").iter(batch_size=_ROWS):
        lists = table.column("input_ids").combine_chunks()
        ends = np.cumsum([0, *lists.value_lengths().to_numpy(zero_copy_only=False)])
        if within:
            tokens = np.cumsum([0, *lists.flatten().value_lengths().to_numpy(zero_copy_only=False)])
            ends = tokens[ends]
        found.append(np.diff(ends))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _learned(split: Dataset) -> np.ndarray[Any, Any]:
    """Return the number of labels of each example that the teacher is compared at; its length without labels."""
    if "labels" not in split.column_names:
        return _column(split, "length")
    name, nothing = (ALIGNED_AT, APART) if ALIGNED_AT in split.column_names else ("labels", IGNORED)
    found = [
        [sum(one != nothing for one in values) for values in table.column(name).to_pylist()]
        for table in split.with_format("arrow").iter(batch_size=1000)
    ]
    return np.asarray([count for part in found for count in part], dtype=np.int64)
