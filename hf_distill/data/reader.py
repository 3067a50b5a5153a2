"""The base class of file readers: first the types of the columns, then the rows as Arrow tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from hf_distill.data.texts import File
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

T = TypeVar("T")

CHUNK = 5_000
"""Rows in a table."""


class Reader(ABC):
    """Reads one file twice: `scan` reads all of it to find columns and types, `tables` returns the rows.

    Args:
        file: The file.
        limit: Rows after which to stop; None for the whole file.

    Attributes:
        rows: Number of rows; set by `scan`.
        notes: What the user should know about how the file was read; filled by `scan`.
    """

    def __init__(self, file: File, limit: int | None = None) -> None:
        self.file = file
        self.limit = limit
        self.rows = 0
        self.notes: list[str] = []

    @abstractmethod
    def scan(self) -> pa.Schema:
        """Return names and types of the columns, from all rows.

        Raises:
            UserError: The file cannot be read in its format; the message has the line if there is one.
        """

    @abstractmethod
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows with the columns and types of `schema`, which may be wider than this file needs."""

    def unify(self, schemas: Sequence[pa.Schema]) -> pa.Schema:
        """Return a schema that fits several files of one split; all have the same column names.

        Raises:
            UserError: The types of a column have no common type.
        """
        import pyarrow as pa

        fields = []
        for field in schemas[0]:
            kinds = [schema.field(field.name) for schema in schemas]
            try:
                found = pa.unify_schemas([pa.schema([kind]) for kind in kinds], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                found = [self.common(field.name, [kind.type for kind in kinds], error)]
            fields += list(found)
        return pa.schema(fields, metadata=schemas[0].metadata)

    def common(self, name: str, kinds: Sequence[pa.DataType], error: Exception) -> pa.Field:
        """Return a field for types that Arrow cannot unify; readers with such a type override this.

        Raises:
            UserError: There is no common type.
        """
        found = " and ".join(dict.fromkeys(describe_type(kind) for kind in kinds))
        raise UserError(f"the column '{name}' holds {found} in the files of one split") from error

    def limited(self, rows: Iterator[T]) -> Iterator[T]:
        """Return the rows up to the limit."""
        return islice(rows, self.limit)


def chunks(rows: Iterator[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Yield lists of up to `size`."""
    while chunk := list(islice(rows, size)):
        yield chunk


def describe_type(kind: pa.DataType) -> str:
    """Return what a column of an Arrow type holds, in words.

    >>> import pyarrow as pa
    >>> describe_type(pa.list_(pa.string())), describe_type(pa.int64())
    ('lists of text', 'whole numbers')
    """
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind) if "json" not in str(kind) else kind
    tests = {
        "is_integer": "whole numbers",
        "is_floating": "numbers",
        "is_decimal": "numbers",
        "is_boolean": "true and false",
        "is_string": "text",
        "is_large_string": "text",
        "is_null": "nothing",
        "is_struct": "mappings",
        "is_temporal": "dates or times",
        "is_binary": "bytes",
        "is_large_binary": "bytes",
    }
    for test, words in tests.items():
        if getattr(pa.types, test)(kind):
            return words
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"lists of {describe_type(kind.value_type)}"
    return "text, numbers or lists mixed" if "json" in str(kind) else str(kind)
