"""Read Parquet and Arrow files, with column types that `datasets` knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from hf_distill.data.reader import CHUNK, Reader
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class Tables(Reader):
    """Reads Parquet files, and Arrow in its file or stream format."""

    @override
    def scan(self) -> pa.Schema:
        import pyarrow as pa

        with self._batches() as (schema, batches):
            self.rows = self._count(batches)
            # `datasets` stores class names under this key; metadata of pandas would describe the types before `plain`.
            metadata = {key: value for key, value in (schema.metadata or {}).items() if key == b"huggingface"}
            return pa.schema([field.with_type(plain(field.type)) for field in schema], metadata=metadata or None)

    @override
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        with self._batches() as (_, batches):
            left = self.rows
            for batch in batches:
                table = pa.Table.from_batches([batch]).select(schema.names).slice(0, max(left, 0))
                columns = [_cast(one, field.type) for one, field in zip(table.columns, schema, strict=True)]
                yield pa.table(columns, schema=schema)
                left -= len(batch)
                if left <= 0:
                    return

    def _count(self, batches: Iterator[pa.RecordBatch]) -> int:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        parquet = self.file.endings[0] == ".parquet"
        rows = pq.read_metadata(self.file.path).num_rows if parquet else sum(len(batch) for batch in batches)
        return min(rows, self.limit or rows)

    @contextmanager
    def _batches(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if self.file.endings[0] == ".parquet":
                with pq.ParquetFile(self.file.path) as parquet:
                    yield parquet.schema_arrow, map(_valid, parquet.iter_batches(CHUNK))
                return
            with pa.memory_map(self.file.path) as source:
                try:
                    stream = pa.ipc.open_stream(source)
                    yield stream.schema, map(_valid, stream)
                    return
                except pa.ArrowInvalid:
                    source.seek(0)
                whole = pa.ipc.open_file(source)
                yield whole.schema, map(_valid, map(whole.get_batch, range(whole.num_record_batches)))
        except pa.ArrowInvalid as error:
            kind = self.file.endings[0].removeprefix(".")
            raise UserError(
                f"it is not a {kind} file, or a damaged one ({' '.join(str(error).split())[:120]})"
            ) from error


def _valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch that is what its header says: Arrow does not look, and would read beyond the end of its memory.

    Raises:
        ArrowInvalid: It is not, or a text in it is not UTF-8.
    """
    batch.validate(full=True)
    return batch


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that holds the same values and that `datasets` knows.

    >>> import pyarrow as pa
    >>> str(plain(pa.dictionary(pa.int8(), pa.string_view()))), str(plain(pa.decimal128(5, 2)))
    ('string', 'double')
    """
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind) or types.is_large_binary(kind):
        return pa.binary()
    if types.is_decimal(kind):
        return pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind) or _is_view(kind):
        return pa.list_(plain(kind.value_type))
    return kind


def _is_view(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, test, lambda _: False)(kind) for test in ("is_list_view", "is_large_list_view"))


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    if values.type == kind:
        return values
    if pa.types.is_dictionary(values.type):
        return _cast(values.cast(values.type.value_type), kind)
    return values.cast(kind)
