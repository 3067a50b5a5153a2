"""Which rows of a split have a label."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.label_names import UNLABELLED
from hf_distill.data.loading import column

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset


def has_label(split: Dataset) -> np.ndarray[Any, Any]:
    """Return which rows have a label, bool `(rows,)`; of several labels (tokens, classes, values), at least one.

    In a split without a column of labels every row counts: labels are made with the batches (masked tokens), or there
    are none at all.
    """
    if "labels" not in split.column_names:
        return np.ones(len(split), dtype=bool)
    chunks = column(split, "labels").chunks
    return np.concatenate([known_values(chunk) for chunk in chunks]) if chunks else np.zeros(0, dtype=bool)


def fingerprint_of_labels(split: Dataset) -> str:
    """Return a hash of the labels of a split, lists of token ids; tokens without a label count as the same."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    labels = column(split, "labels")
    lengths = pc.fill_null(pc.list_value_length(labels), 0).to_numpy().astype("int64")
    tokens = pc.max_element_wise(pc.list_flatten(labels), UNLABELLED).to_numpy().astype("int64")
    digest = hashlib.blake2b(lengths.tobytes(), digest_size=16)
    digest.update(tokens.tobytes())
    return digest.hexdigest()


def known_values(values: pa.Array) -> np.ndarray[Any, Any]:
    """Return which labels are known, bool `(rows,)`; of a list of labels, whether any is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        known = np.zeros(len(values), dtype=bool)
        known[pc.list_parent_indices(values).to_numpy()[known_values(values.flatten())]] = True
        return known
    # Class and token ids are 0 or more: -100 means no label, and -1 (`label_names.UNLABELLED`) an unknown one.
    floats = pa.types.is_floating(values.type)
    known = pc.invert(pc.is_nan(values)) if floats else pc.greater_equal(values, 0)
    found: np.ndarray[Any, Any] = pc.fill_null(known, False).to_numpy(zero_copy_only=False)
    return found
