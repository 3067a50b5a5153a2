"""Read columns of class targets as logits. Every row is checked, because a wrong target would be learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.replay import LEAST
from hf_distill.data import column
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

Array = NDArray[Any]
KEY = "columns"
# How far the sum of a row's rounded probabilities may be from 1.
_ROUNDED = 0.01


def read_targets(
    split: Dataset,
    name: str,
    columns: str | Sequence[str],
    classes: int,
    what: Literal["probabilities", "logits"],
    *,
    exclusive: bool,
) -> Array:
    """Return the teacher's logits of every row, float32 `(rows, classes)`.

    Probabilities p become `log p` if each example has one class (the logits of a softmax up to a constant), and
    `log p - log(1 - p)` if each class is a yes/no label. A probability of 0 is read as e^-80.

    Args:
        split: A split with the columns.
        name: Name of the split.
        columns: One column of lists, or one column for each class.
        classes: Number of classes.
        what: Whether the columns hold probabilities or logits.
        exclusive: Whether each example has exactly one class.

    Raises:
        UserError: A column is missing; or a row has no targets, a wrong number of them, or impossible ones.
    """
    if isinstance(columns, str):
        values = _lists(_column(split, name, columns), name, columns, classes)
    else:
        values = np.stack([_numbers(_column(split, name, one), name, one) for one in columns], -1)
    _refuse(~np.isfinite(values).all(-1), values, name, "a number for every class; drop rows that the teacher left out")
    if what == "logits":
        _check_logits(values, name)
        return values.astype(np.float32)
    _refuse((values < 0).any(-1), values, name, "probabilities, which are not negative")
    _refuse((values > 1 + _ROUNDED).any(-1), values, name, "probabilities, at most 1 each (of percent, a hundredth)")
    if exclusive:
        apart = np.abs(values.sum(-1) - 1) > _ROUNDED
        _refuse(apart, values, name, "probabilities that sum to 1")
        values = values / values.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        logits = np.log(values) if exclusive else np.log(values) - np.log1p(-np.minimum(values, 1))
    return np.clip(logits, LEAST, None if exclusive else -LEAST).astype(np.float32)


def _column(split: Dataset, name: str, wanted: str) -> pa.Array:
    if wanted not in split.column_names:
        raise UserError(
            f"the {name} split has no column '{wanted}' with the teacher's targets; wanted it in train and eval.",
            key=KEY,
        )
    return column(split, wanted).combine_chunks()


def _numbers(values: pa.Array, name: str, wanted: str) -> Array:
    """Return a column of numbers; NaN for missing values."""
    import pyarrow as pa

    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise UserError(
            f"the column '{wanted}' holds {values.type} in the {name} split; wanted one number a row.", key=KEY
        )
    found: Array = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return found


def _lists(values: pa.Array, name: str, wanted: str, classes: int) -> Array:
    """Return a column of lists as a table `(rows, classes)`; lists may be text, as in a CSV file: "[0.2, 0.8]"."""
    import pyarrow as pa

    if (whole := as_table(values, classes)) is not None:
        return whole
    rows = values.to_pylist()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        rows = [_parsed(text) for text in rows]
    for at, row in enumerate(rows):
        numbers = isinstance(row, list) and all(isinstance(one, int | float) for one in row)
        if not numbers or len(row) != classes:
            found = f"{len(row)} of them" if numbers else repr(row)[:60]
            raise UserError(
                f"row {at} (counted from 0) of the {name} split has {found} in '{wanted}'; wanted a list of {classes} "
                "numbers, one for each class in labels.",
                key=KEY,
            )
    return np.array(rows, dtype=np.float64).reshape(len(rows), classes)


def as_table(values: pa.Array, classes: int) -> Array | None:
    """Return lists of `classes` numbers as a table, without Python objects; None if a list is different."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    kind = getattr(values.type, "value_type", None)
    if kind is None or values.null_count or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return None
    flat = values.flatten()
    if flat.null_count or pc.any(pc.not_equal(pc.list_value_length(values), classes)).as_py():
        return None
    numbers: Array = flat.to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers.reshape(len(values), classes)


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return text


def _check_logits(values: Array, name: str) -> None:
    """Refuse probabilities that are called logits: a softmax over them would be almost uniform."""
    if len(values) > 1 and (values >= 0).all() and (np.abs(values.sum(-1) - 1) < 1e-3).all():
        raise UserError(
            f"every row of the {name} split sums to 1, as probabilities do and logits do not. Wanted columns: "
            "{probabilities: ...}.",
            key=KEY,
        )


def _refuse(wrong: Any, values: Array, name: str, wanted: str) -> None:
    if not wrong.any():
        return
    at = int(wrong.argmax())
    shown = ", ".join(f"{one:g}" for one in values[at][:8])
    sums = f", which sums to {values[at].sum():.4g}" if "sum" in wanted else ""
    more = f" ({int(wrong.sum()):,} rows are like this)" if wrong.sum() > 1 else ""
    raise UserError(
        f"row {at} (counted from 0) of the {name} split has the targets [{shown}]{sums}{more}; wanted {wanted}.",
        key=KEY,
    )
