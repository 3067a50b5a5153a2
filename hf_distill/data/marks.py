"""What quotation marks look like in a TSV: evidence of whether they follow the rule of CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hf_distill.errors import UserError


class Marks:
    """How a TSV looks in one reading: how many rows, and which cells stand between quotation marks.

    Args:
        records: Of the file, read with the rule or without it; a `UserError` where it cannot be read this way.

    Attributes:
        rows: How many there are.
        width: Cells of a row.
        marked: Whether a cell begins with a mark.
        needless: Cells between marks that the rule does not ask for.
        first: Line of the first such cell.
        error: Why the file cannot be read this way; None where it can.
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
        """Whether a column has either all its texts between marks or none, as with pandas' QUOTE_ALL."""
        return not self._bare & set(self._cells)

    def _count(self, record: Record) -> None:
        for index, cell in enumerate(record.cells):
            if cell.startswith('"'):
                self.marked = True
                self._cells[index] += 1
                if '"' not in cell[1:-1]:  # the rule asks for marks where there is one inside, or a tab or line end
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
