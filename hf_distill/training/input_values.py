"""Inputs that a model cannot read: told with their row before the first step, not by an index inside an embedding."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.data.two_tokenizers import MARK
from hf_distill.models.inspection import base_model, positions_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

# Of very many rows the first ones are looked at.
_MOST = 200_000
_TABLE = re.compile(r"(^|[._])(pos\w*|wpe|\w*positions?)(_?emb\w*)?([._]|$)")


def check_input_values(split: Any, which: str, models: Mapping[str, nn.Module]) -> None:
    """Refuse token numbers past the end of a model's embeddings, and rows longer than its table of positions.

    Args:
        split: A `datasets.Dataset`; of anything else nothing is known before it is read.
        which: What to call it: `train_dataset`.
        models: `student` -> the student, and every teacher that runs beside it, which may read tokens of its own
            (`teacher_input_ids`).

    Raises:
        ValueError: Names the row, what is in it, which model cannot read it, and what it takes.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or not len(split):
        return
    first = split.select(range(_MOST)) if len(split) > _MOST else split
    for whose, model in models.items():
        name = MARK if whose != "student" and MARK in split.column_names else "input_ids"
        if name not in split.column_names:
            continue
        found = _first_bad(column(first, name).combine_chunks(), base_model(model))
        if found is not None:
            raise ValueError(f"{which}: row {found[0]} (counted from 0) has {found[1]} the {whose} takes {found[2]}.")


def _first_bad(inputs: Any, model: Any) -> tuple[int, str, str] | None:
    """Return the first row that does not fit, what is wrong with it, and what would be right."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if not hasattr(inputs.type, "value_type") or not pa.types.is_integer(inputs.type.value_type):
        return None
    config = getattr(model, "config", None)
    rows = _tokens(model)
    if rows is not None:
        numbers = pc.list_flatten(inputs).to_numpy(zero_copy_only=False)
        bad = (numbers < 0) | (numbers >= rows)
        if bad.any():
            place = int(bad.argmax())
            row = int(pc.list_parent_indices(inputs)[place].as_py())
            return row, f"the token {numbers[place]};", f"0 to {rows - 1}"
    limit = None if config is None else positions_of(config)
    if limit is None or not _has_table(model, limit):
        return None
    lengths = pc.list_value_length(inputs).to_numpy(zero_copy_only=False)
    long = lengths > limit
    if not long.any():
        return None
    row = int(long.argmax())
    return row, f"{int(lengths[row])} tokens;", f"at most {limit}: cut it (truncation=True, max_length={limit})"


def _tokens(model: Any) -> int | None:
    """Return how many tokens a model has embeddings for; None where it does not say."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # no Transformers model, or one that reads characters
        return None
    return rows if isinstance(rows, int) else None


def _has_table(model: nn.Module, limit: int) -> bool:
    """Whether positions are looked up; rotary ones are computed, for as many as there are."""
    sizes = [
        getattr(part, "num_embeddings", None)
        for name, part in model.named_modules()
        if _TABLE.search(name) and hasattr(part, "num_embeddings")
    ]
    return any(isinstance(size, int) and size >= limit for size in sizes)
