"""Cells of CSV and TSV: what type a column has, decided by all of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_DIGITS = r"(0|[1-9][0-9]*)"  # "007" is a name
_PATTERNS = {
    "int64": rf"^ *[+-]?{_DIGITS} *$",
    "float64": rf"^ *[+-]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *$",
    "bool": r"^(true|false|True|False|TRUE|FALSE)$",
}
# What a column may still be, after one that does not fit: only an empty cell fits everything.
KINDS = ("int64", "float64", "bool")


def fitting(cells: pa.Array, kinds: set[str]) -> set[str]:
    """Return which of the kinds fit all cells; an empty one fits each."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    there = cells.filter(pc.not_equal(cells, ""))
    fits = {kind for kind in kinds if pc.all(pc.match_substring_regex(there, _PATTERNS[kind]), min_count=0).as_py()}
    if "int64" in fits and pc.any(pc.greater(pc.utf8_length(there), 18)).as_py():
        return set()  # numbers in name only, such as a DOI: a float would lose digits
    return fits


def decide(kinds: set[str]) -> pa.DataType:
    """Return the type of a column from the kinds that fit it: the narrowest, else text."""
    import pyarrow as pa

    if len(kinds) == len(KINDS):
        return pa.null()  # no cell holds anything
    return getattr(pa, next((f"{kind}_" if kind == "bool" else kind for kind in KINDS if kind in kinds), "string"))()


def cast(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return cells as a type that fits them; empty ones are missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
    if pa.types.is_null(kind):
        return pa.nulls(len(cells))
    if pa.types.is_string(kind):
        return cells
    if pa.types.is_boolean(kind):
        return pc.equal(pc.utf8_lower(cells), "true")
    return pc.utf8_ltrim(pc.utf8_trim(cells, " "), "+").cast(kind)
