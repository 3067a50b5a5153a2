"""Find the type of a CSV or TSV column from all of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_DIGITS = r"(0|[1-9][0-9]*)"  # "007" is text: as a number it would lose its zeros
_PATTERNS = {
    "int64": rf"^ *[+-]?{_DIGITS} *$",
    "float64": rf"^ *[+-]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *$",
    "bool": r"^(true|false|True|False|TRUE|FALSE)$",
}
# Types a column can have, narrowest first; a column that fits none of them is text.
KINDS = ("int64", "float64", "bool")


def fitting(cells: pa.Array, kinds: set[str]) -> set[str]:
    """Return which of the types fit all cells; an empty cell fits every type."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    there = cells.filter(pc.not_equal(cells, ""))
    fits = {kind for kind in kinds if pc.all(pc.match_substring_regex(there, _PATTERNS[kind]), min_count=0).as_py()}
    if "int64" in fits and pc.any(pc.greater(pc.utf8_length(there), 18)).as_py():
        return set()  # identifiers such as account numbers: a float would lose digits
    return fits


def decide(kinds: set[str]) -> pa.DataType:
    """Return the narrowest of the types that fit a column; text if none fits, null if all cells are empty."""
    import pyarrow as pa

    if len(kinds) == len(KINDS):
        return pa.null()
    return getattr(pa, next((f"{kind}_" if kind == "bool" else kind for kind in KINDS if kind in kinds), "string"))()


def cast(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the cells converted to a type that fits them; empty cells become null."""
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
