"""Checks, before the first step, that the labels of a data set fit the student's head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.loading import chunks_of, column
from hf_distill.models.inspection import RENAMED_LABELS, base_model
from hf_distill.rows.examples import TOLERANCE, ExampleRows
from hf_distill.rows.tokens import TokenRows

if TYPE_CHECKING:
    from torch import nn

    from hf_distill.rows.base import RowLayout

# Number of rows that are checked at most: the first ones.
_MOST = 200_000


def reaches_models(split: Any, collator: Any) -> bool:
    """Return whether the models get the values of a split unchanged.

    A `datasets.Dataset` may have a transform, and a user's own collator may change values: truncate texts, or convert
    labels.

    Args:
        split: A data set of any kind.
        collator: Makes batches of its examples.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or split.format["type"] == "custom":
        return False
    made_by: str = getattr(collator, "__module__", None) or type(collator).__module__
    return made_by.partition(".")[0] in ("transformers", "hf_distill")


def check_label_values(split: Any, which: str, layout: RowLayout, model: nn.Module) -> None:
    """Refuse labels that are not classes of the student's head.

    Without this check, the error would be an index error inside a loss, which does not name the row.

    Args:
        split: A `datasets.Dataset`; other data sets are not checked, since they are not read in advance. Of more than
            200,000 rows the first ones are checked.
        which: Name of the split in messages, such as `train_dataset`.
        layout: Which logits count.
        model: The student.

    Raises:
        ValueError: A label does not fit; the message names the row and its label, and says what was wanted.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or not len(split):
        return
    name = next((name for name in ("labels", *RENAMED_LABELS) if name in split.column_names), None)
    if name is None or type(layout) not in (ExampleRows, TokenRows) or getattr(layout, "kind", "") == "values":
        return
    first = split.select(range(_MOST)) if len(split) > _MOST else split
    for start, chunk in chunks_of(column(first, name)):
        if (found := _first_bad(chunk, layout, base_model(model))) is not None:  # type: ignore[arg-type]
            row, value, wanted = found
            shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
            raise ValueError(f"{which}: row {start + row} (counted from 0) has the label {shown}; wanted {wanted}.")


def _first_bad(labels: Any, layout: ExampleRows | TokenRows, model: Any) -> tuple[int, Any, str] | None:
    """Return row and label of the first label that does not fit, and what was wanted; None if all fit."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    nested = hasattr(labels.type, "value_type")
    kind = labels.type.value_type if nested else labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return 0, labels[0].as_py(), "numbers"
    if labels.null_count:
        return pc.index(pc.is_null(labels), True).as_py(), None, "a label, or -100 for none"
    if isinstance(layout, TokenRows):
        return _outside(
            labels, nested, pa.types.is_integer(kind), *_classes(layout, model), unknown=(IGNORED, UNLABELLED)
        )
    if layout.kind == "classes" and not nested:
        return _outside(labels, False, not pa.types.is_floating(kind), layout.width, "class", unknown=(IGNORED,))
    return _bad_row(labels, nested, layout)


def _classes(layout: TokenRows, model: Any) -> tuple[int, str]:
    head = getattr(model, "get_output_embeddings", None)  # a cached teacher that is evaluated has none
    if layout.classes is None and not layout.shift and (head is None or head() is None):
        return int(model.config.num_labels), "class"
    return int(layout.classes or model.config.get_text_config().vocab_size), "token"


def _outside(
    labels: Any, nested: bool, whole: bool, classes: int, what: str, *, unknown: tuple[int, ...]
) -> tuple[int, Any, str] | None:
    """Return row and value of the first label outside 0 to `classes - 1`, and what was wanted; None if all fit.

    Args:
        labels: An Arrow array.
        nested: Whether a row has a list of labels.
        whole: Whether the labels are integers.
        classes: Number of classes.
        what: `class` or `token`.
        unknown: Numbers that stand for no label.
    """
    import pyarrow.compute as pc

    flat: NDArray[Any] = (pc.list_flatten(labels) if nested else labels).to_numpy(zero_copy_only=False)
    bad = ((flat < 0) | (flat >= classes)) & ~np.isin(flat, unknown)
    bad |= not whole
    if not bad.any():
        return None
    place = int(bad.argmax())
    row = int(pc.list_parent_indices(labels)[place].as_py()) if nested else place
    where = f"the number of a {what}, 0 to {classes - 1}, or {IGNORED} for none"
    return row, flat[place].item(), where if whole else f"{where}; found decimals"


def _bad_row(labels: Any, nested: bool, layout: ExampleRows) -> tuple[int, Any, str] | None:
    """Return the first row that is not a 0 or 1 for each class, or not a distribution over classes; None if all are."""
    import pyarrow.compute as pc

    width = layout.width
    soft = layout.kind == "classes"
    wanted = f"{width} probabilities that sum to 1" if soft else f"one 0 or 1 for each of {width} labels"
    if width == 1 and not layout.soft:
        wanted = "0 or 1. For labels in between pass layout=ExampleRows(kind='binary', width=1, soft=True)"
    if not nested:
        if width > 1:
            return 0, labels[0].as_py(), f"a list, {wanted}"
        each = labels.to_numpy(zero_copy_only=False).astype(float)[:, None]
    else:
        lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False)
        if (lengths != width).any():
            row = int((lengths != width).argmax())
            return row, labels[row].as_py(), wanted
        each = pc.list_flatten(labels).to_numpy(zero_copy_only=False).reshape(-1, width).astype(float)
    known = ~np.isnan(each).any(-1)
    if soft:
        bad = (each < 0).any(-1) | (np.abs(each.sum(-1) - 1) > TOLERANCE)
    elif layout.soft:
        bad = ((each < 0) | (each > 1)).any(-1)
    else:
        bad = (~np.isin(each, (0, 1))).any(-1)
    bad &= known
    return (int(bad.argmax()), labels[int(bad.argmax())].as_py(), wanted) if bad.any() else None
