"""Checks, before the first step, that a model has embeddings for all tokens and positions of a data set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hf_distill.data.loading import chunks_of, column
from hf_distill.data.two_tokenizers import MARK
from hf_distill.models.inspection import base_model, positions_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

# Number of rows that are checked at most: the first ones.
_MOST = 200_000
_TABLE = re.compile(r"(^|[._])(pos\w*|wpe|\w*positions?)(_?emb\w*)?([._]|$)")


def check_input_values(split: Any, which: str, models: Mapping[str, nn.Module]) -> None:
    """Refuse token ids for which a model has no embedding, and rows longer than its table of positions.

    Without this check, the error would be an index error inside an embedding, which does not name the row.

    Args:
        split: A `datasets.Dataset`; other data sets are not checked, since they are not read in advance.
        which: Name of the split in messages, such as `train_dataset`.
        models: The `student` and every teacher that runs beside it, by name. A teacher may read tokens of its own
            (`teacher_input_ids`).

    Raises:
        ValueError: A model cannot read a row; the message names both, and says what the model takes.
    """
    import datasets

    if not isinstance(split, datasets.Dataset) or not len(split):
        return
    first = split.select(range(_MOST)) if len(split) > _MOST else split
    for whose, model in models.items():
        name = MARK if whose != "student" and MARK in split.column_names else "input_ids"
        if name not in split.column_names:
            continue
        for start, chunk in chunks_of(column(first, name)):
            if (found := _first_bad(chunk, base_model(model))) is not None:
                row = start + found[0]
                raise ValueError(f"{which}: row {row} (counted from 0) has {found[1]} the {whose} takes {found[2]}.")


def _first_bad(inputs: Any, model: Any) -> tuple[int, str, str] | None:
    """Return the first row that the model cannot read, what is in it, and what the model takes; None if all fit."""
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
    """Return how many tokens a model has embeddings for; None if that is not known."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # not a Transformers model, or one that reads characters
        return None
    return rows if isinstance(rows, int) else None


def _has_table(model: nn.Module, limit: int) -> bool:
    """Return whether a model has a table of position embeddings; rotary ones are computed, for any length."""
    sizes = [
        getattr(part, "num_embeddings", None)
        for name, part in model.named_modules()
        if _TABLE.search(name) and hasattr(part, "num_embeddings")
    ]
    return any(isinstance(size, int) and size >= limit for size in sizes)
