"""Read CSV and TSV; every record is checked against the header, and cells are read exactly as written."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from hf_distill.data.cells import KINDS, cast, decide, fitting
from hf_distill.data.marks import Marks, Record
from hf_distill.data.reader import Reader, chunks
from hf_distill.data.texts import File, check_nul, opened
from hf_distill.errors import UserError
from hf_distill.formatting import counted
from hf_distill.locations import shorten

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_DELIMITERS = (",", ";", "\t", "|")
_LONG = 40


class Delimited(Reader):
    """Reads CSV and TSV.

    CSV follows RFC 4180: a text that contains a delimiter, a line end or a quotation mark is put between quotation
    marks, and marks inside it are doubled. Most TSV files have no such rule: a quotation mark is part of the text. But
    pandas and spreadsheets quote TSV as they quote CSV. All lines of the file decide which of the two it is. Only an
    empty cell is a missing value.

    Args:
        file: The file.
        header: Whether the first line names the columns. Without a header they are called "0", "1", ...
        limit: Rows after which to stop.
    """

    def __init__(self, file: File, *, header: bool = True, limit: int | None = None) -> None:
        super().__init__(file, limit)
        self.header = header
        self.tabs = file.endings[0] == ".tsv"
        self.delimiter, self.quoted = "\t" if self.tabs else ",", not self.tabs

    @override
    def scan(self) -> pa.Schema:
        import pyarrow as pa

        if self.tabs:
            self.quoted = self._follows_rule()
        names = self._first_line()
        if not self.header:
            self._check_first_line()
        kinds, self.rows = [set(KINDS) for _ in names], 0
        for chunk in chunks(self._rows()):
            self.rows += len(chunk)
            for index, kind in enumerate(kinds):
                if kind:
                    kind &= fitting(pa.array([row[index] for row in chunk], pa.string()), kind)
        return pa.schema([(name, decide(kind)) for name, kind in zip(names, kinds, strict=True)])

    @override
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        places = {name: index for index, name in enumerate(self._first_line())}
        for chunk in chunks(self._rows()):
            cells = (pa.array([row[places[name]] for row in chunk], pa.string()) for name in schema.names)
            yield pa.table([cast(one, field.type) for one, field in zip(cells, schema, strict=True)], schema=schema)

    def common(self, name: str, kinds: Iterable[pa.DataType], error: Exception) -> pa.Field:
        """Return text as the common type: in the file, every cell is text."""
        import pyarrow as pa

        return pa.field(name, pa.string())

    def _delimiter(self) -> str:
        """Return the delimiter of a CSV: a comma if the first line has one, else the sign that gives most cells."""
        with opened(self.file) as stream:
            line = next((line for line in stream if line.strip()), "")
        cells = {sign: len(next(csv.reader([line], delimiter=sign), [])) for sign in _DELIMITERS}
        return "," if cells[","] > 1 else max(_DELIMITERS, key=lambda sign: cells[sign])

    def _check_first_line(self) -> None:
        """Refuse a header if the recipe numbers the columns: the header would become an example.

        Raises:
            UserError: A column holds text in the first row and numbers in all others.
        """
        import pyarrow as pa

        first, *rows = islice(self._rows(), 1_000)
        for index, cell in enumerate(first):
            cells = pa.array([row[index] for row in rows if row[index]], pa.string())
            if cell and len(cells) and fitting(cells, {"float64"}) and not fitting(pa.array([cell]), {"float64"}):
                raise UserError(
                    f"its first line looks like a header: column {index} holds '{shorten(cell, 40)}' and then numbers. "
                    "Write the names of columns instead of numbers, or remove the line"
                )

    # ---- Records -----------------------------------------------------------------------------------------------------

    def _first_line(self) -> list[str]:
        """Return the cells of the first line, and set the delimiter of a CSV."""
        if not self.tabs:
            self.delimiter = self._delimiter()
        first = next(self._records(self.quoted), None)
        if first is None:
            raise UserError("it is empty")
        return _names(first.cells) if self.header else [str(index) for index in range(len(first.cells))]

    def _records(self, quoted: bool) -> Iterator[Record]:
        """Yield each record, the header included; empty lines are skipped.

        Raises:
            UserError: A quotation mark is never closed, or text follows a closing one.
        """
        csv.field_size_limit(sys.maxsize)
        rule: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        with opened(self.file, newline="") as stream:
            read = _Lines(stream)
            reader = csv.reader(read, delimiter=self.delimiter, quoting=rule, strict=True)
            while True:
                read.begin()
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise _stray(read.first, read.number, error) from error
                if cells:
                    yield Record(read.first, read.number, cells, read.lines)

    def _rows(self) -> Iterator[list[str]]:
        return (record.cells for record in self.checked(self.quoted))

    def checked(self, quoted: bool) -> Iterator[Record]:
        """Yield the records below the header, each with as many cells as the header.

        Raises:
            UserError: A record has more or fewer cells.
        """
        width = 0
        for record in islice(self._records(quoted), self.limit and self.limit + self.header):
            found = len(record.cells)
            if width and found > width and not any(record.cells[width:]):
                del record.cells[width:]  # delimiters at the end of the line
            elif width and found != width:
                raise _ragged(record.first, found, width, quoted)
            if not width:
                width = found
                if self.header:
                    continue
            if quoted and record.first < record.last and width > 1:
                self._suspect(record, width)
            yield record

    def _suspect(self, record: Record, width: int) -> None:
        """Add a note if a record has several lines and each could be a row: a stray mark may have joined them."""
        if all(len(one.rstrip("\r\n").split(self.delimiter)) == width for one in record.lines) and len(self.notes) < 3:
            self.notes.append(
                f"lines {record.first} to {record.last} are read as one row, since a quotation mark opens in the "
                "first and closes in the last. Each line looks like a row: if they are, remove the stray marks."
            )

    # ---- Is a TSV quoted by the rule? --------------------------------------------------------------------------------

    def _follows_rule(self) -> bool:
        """Return whether a TSV is quoted as CSV is; if not, its quotation marks are part of the texts.

        Raises:
            UserError: Neither way gives every record as many cells as the header has.
        """
        plain = Marks(self.checked(False))
        if not plain.marked and not plain.error:
            return False
        ruled = Marks(self.checked(True))
        self.notes.clear()
        if plain.error:
            if ruled.error:
                raise plain.error
            return True
        if ruled.error:
            return False
        if ruled.rows != plain.rows:
            if plain.width > 1:
                return self._weigh(plain, ruled)
            raise UserError(
                "cannot tell whether its quotation marks enclose texts of several lines or are part of the texts. "
                "Rename it to .csv if it is quoted as CSV is, to .txt if every line is a text"
            )
        if not plain.needless or plain.fully_quoted:
            return True
        self.notes.append(
            f"{plain.needless} cells stand between quotation marks, the first in line {plain.first}; the marks are "
            "read as part of the text. If the file was written with quoting, rename it to .csv."
        )
        return False

    def _weigh(self, plain: Marks, ruled: Marks) -> bool:
        """Decide a file that can be read both ways, with fewer rows when it is read as quoted.

        Args:
            plain: The file read with marks as part of the texts.
            ruled: The file read as quoted.
        """
        header = next(self._records(False)).cells
        if all(len(cell) > 1 and cell.startswith('"') and cell.endswith('"') for cell in header):
            return True  # all cells are between marks
        self.notes.append(
            f"every line is read as a row, {plain.rows} in all, and quotation marks as part of the texts. If the file "
            f"was written with quoting it has {ruled.rows} rows, some of several lines: then rename it to .csv."
        )
        return False


class _Lines:
    """Iterates over the lines of a file and remembers those of the current record."""

    def __init__(self, stream: Iterable[str]) -> None:
        self._stream = iter(stream)
        self.number, self.first = 0, 1
        self.lines: list[str] = []

    def begin(self) -> None:
        self.first, self.lines = self.number + 1, []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        check_nul(line, self.number)
        if len(self.lines) < _LONG:
            self.lines.append(line)
        return line


def _ragged(line: int, found: int, width: int, quoted: bool) -> UserError:
    hint = "A text that contains the delimiter or a line end stands between double quotes."
    if not quoted:
        hint = "A text in a TSV file cannot contain a tab or a line end."
    return UserError(f"line {line} has {counted(found, 'field')}, the lines above it {width}. {hint}")


def _stray(first: int, last: int, error: csv.Error) -> UserError:
    if "unexpected end" in str(error):
        return UserError(
            f"the quotation mark that opens a text in line {first} is never closed. Remove it, or put the whole text "
            "between marks and double those inside."
        )
    where = f"line {first}" if last <= first else f"the text that a quotation mark opens in line {first}"
    return UserError(
        f"{where} goes on after its closing quotation mark (line {last}). A text that begins with a mark ends with "
        "one, and those inside are doubled."
    )


# ---- Columns ---------------------------------------------------------------------------------------------------------


def _names(cells: list[str]) -> list[str]:
    """Return the names of columns as pandas makes them: all different, none empty."""
    names: list[str] = []
    for index, cell in enumerate(cells):
        base = name = cell or f"Unnamed: {index}"
        repeat = 0
        while name in names:
            repeat += 1
            name = f"{base}.{repeat}"
        names.append(name)
    return names
