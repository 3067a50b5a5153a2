"""Read plain text: each line is an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from typing_extensions import override

from hf_distill.data.reader import Reader, chunks
from hf_distill.data.texts import lines

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class PlainText(Reader):
    """Reads the lines of a file as the column `text`; empty lines are rows too."""

    @override
    def scan(self) -> pa.Schema:
        import pyarrow as pa

        self.rows = sum(1 for _ in self.limited(lines(self.file)))
        return pa.schema([("text", pa.string())])

    @override
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        for chunk in chunks(self.limited(line for _, line in lines(self.file))):
            yield pa.table([pa.array(chunk, pa.string())], schema=schema)
