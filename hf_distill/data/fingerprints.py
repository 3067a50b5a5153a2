"""A hash of the content of a data set."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from hf_distill.files.fingerprint import _digest

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset


BATCH_ROWS = 10_000
"""Rows hashed at a time; part of the value of `dataset_fingerprint`."""


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return a hash of a dataset's content: column names, types and every value, in order.

    *Relations*: `dataset._fingerprint` names the way a dataset was made, and changes with the version of a function
    or a random seed while the rows stay equal; this one depends on the rows alone. It does not depend on how the
    table is cut into chunks or on cache files, and follows the indices of `select` and `shuffle`.
    """
    digest = _digest()
    names = sorted(dataset.column_names)
    digest.update(json.dumps([len(dataset), names]).encode())
    if not names:  # `datasets` cannot read selected rows that have no columns
        return digest.hexdigest()
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for name in names:
            _hash_array(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


def _hash_array(digest: hashlib.blake2b, array: pa.Array) -> None:
    """Feed an array to the hash: type, length, which values are null, then the values, nested ones by level.

    Raw buffers will not do: slices share them, and what lies in a null slot is arbitrary.
    """
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if isinstance(array, pa.ChunkedArray):  # several chunks that could not be one, or none at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    digest.update(f"{str(kind).replace('large_', '')}:{len(array)}:{array.null_count};".encode())
    if array.null_count:
        digest.update(pc.is_null(array).to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode())
            _hash_array(digest, child)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype("int64").tobytes())
        _hash_array(digest, array.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        digest.update(array.drop_null().to_numpy(zero_copy_only=False).tobytes())
    else:  # text, bytes, dates, decimals: rare enough in tokenised data for the slow, exact way
        digest.update(repr(array.drop_null().to_pylist()).encode(errors="surrogatepass"))
