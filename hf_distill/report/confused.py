"""Where student and teacher differ, of more classes than a matrix can show: the pairs that are confused most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.report.text import percent
from hf_distill.report.written import Section

if TYPE_CHECKING:
    from hf_distill.report.calibration import Confusion

# Classes in a matrix that can be read on a phone.
LARGEST = 8
PAIRS = 8


def confused(confusion: Confusion | None) -> Section | None:
    """Return the pairs of classes that are confused most; None where the matrix is small enough to be read."""
    if confusion is None or len(confusion.names) <= LARGEST:
        return None
    names, counts = confusion.names, confusion.counts
    pairs = [
        (count, place, other)
        for place, row in enumerate(counts)
        for other, count in enumerate(row)
        if place != other and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if not pairs:
        return None
    rows = tuple(
        (names[teacher], names[student], f"{count:,}", percent(count / max(sum(counts[teacher]), 1)))
        for count, teacher, student in pairs[:PAIRS]
    )
    notes = ["The share is of the rows for which the teacher says that class."]
    if len(pairs) > PAIRS:
        notes.append(f"{len(pairs) - PAIRS:,} other pairs are confused as well.")
    if confusion.left_out:
        notes.append(f"Among the {len(names)} classes they differ on most; {confusion.left_out:,} more are not shown.")
    head = ("teacher says", "student says", "rows", "share")
    return Section("Where they differ most", head, rows, tuple(notes), texts=True)
