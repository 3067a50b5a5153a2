"""Count quotation marks in a TSV, to decide whether it is quoted as CSV is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hf_distill.errors import UserError


class Marks:
    """Counts of a TSV that was read in one of the two ways: quoted as CSV, or with marks as part of the texts.

    Args:
        records: The records of the file; raises `UserError` if it cannot be read this way.

    Attributes:
        rows: Number of rows.
        width: Cells in a row.
        marked: Whether a cell begins with a quotation mark.
        needless: Cells between marks that CSV would not have to quote.
        first: Line of the first such cell.
        error: Why the file cannot be read this way; None if it can.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.rows = self.needless = self.width = self.first = 0
        self.marked = False
        self.error: UserError | None = None
        self._cells: Counter[int] = Counter()
        self._bare: set[int] = set()
        try:
            for record in records:
                self.rows += 1
                self.width = len(record.cells)
                self._count(record)
        except UserError as error:
            self.error = error

    @property
    def fully_quoted(self) -> bool:
        """Whether each column has either all of its texts quoted or none, as pandas' QUOTE_ALL writes."""
        return not self._bare & set(self._cells)

    def _count(self, record: Record) -> None:
        for index, cell in enumerate(record.cells):
            if cell.startswith('"'):
                self.marked = True
                self._cells[index] += 1
                if '"' not in cell[1:-1]:  # CSV has to quote only a cell with a mark, a tab or a line end inside
                    self.needless += 1
                    self.first = self.first or record.first
            elif cell:
                self._bare.add(index)


@dataclass(frozen=True)
class Record:
    """Cells of one record, its first and last line (from 1), and the lines themselves, at most the first 40."""

    first: int
    last: int
    cells: list[str]
    lines: list[str] = field(repr=False)
