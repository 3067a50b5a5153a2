"""The error for a column that holds another type than its role wants; names the first row that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.data.reader import describe_type
from hf_distill.errors import UserError
from hf_distill.locations import shorten

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


def misfit(values: pa.ChunkedArray, role: str, split: str, wanted: str, fits: Callable[[Any], bool]) -> UserError:
    """Return the error for a column of the wrong type. Slow, since it reads the values one by one.

    Args:
        values: The column.
        role: Role of the column.
        split: Split that has it: `train` or `eval`.
        wanted: What would fit, and what to do.
        fits: Whether a value fits.
    """
    found = next(((row, value) for row, value in enumerate(_decoded(values)) if not fits(value)), None)
    where = ""
    if found is not None:
        where = f", first in row {found[0]} (counted from 0): {shorten(json.dumps(found[1], default=str), 80)}"
    holds = f"holds {describe_type(values.type)} in the {split} split{where}"
    return UserError(f"the column of the role '{role}' {holds}; wanted {wanted}", key=f"columns.{role}")


def is_text(value: Any) -> bool:
    """Return whether a value is a text, or missing (missing values are reported elsewhere)."""
    return value is None or isinstance(value, str)


def is_list_of_text(value: Any) -> bool:
    """Return whether a value is a list of texts, or missing."""
    return value is None or (isinstance(value, list) and all(map(is_text, value)))


def _decoded(values: pa.ChunkedArray) -> Iterator[Any]:
    """Yield the values; those of `datasets`' type `Json` are decoded."""
    for value in values:
        found = value.as_py()
        yield json.loads(found) if "json" in str(values.type) and isinstance(found, str) else found
