"""Read several labels from one text cell: with a separator between them, or as a list written as text."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def as_lists(splits: Mapping[str, Dataset], separator: str | None, role: str = "label") -> dict[str, Dataset]:
    """Return the splits with lists in place of texts that hold several labels.

    Args:
        splits: Splits; one without the column, or with a column that is not text, is returned unchanged.
        separator: Text between the labels of a row, from the recipe. Without it, texts are read as lists if every
            text is a list in JSON or Python notation.
        role: Role of the label column.

    Raises:
        UserError: There is a separator but the labels are not text; or some texts are lists and some are not.
    """
    texts = {name: split for name, split in splits.items() if role in split.column_names and _is_text(split, role)}
    if separator is not None:
        _check_separator(splits, texts, role)
        return {
            name: _replaced(split, role, {text: _parts(text, separator) for text in _distinct(split, role)})
            if name in texts
            else split
            for name, split in splits.items()
        }
    distinct = {name: _distinct(split, role) for name, split in texts.items()}
    every = [text for found in distinct.values() for text in found]
    lists = {text: parsed for text in every if (parsed := _list(text)) is not None}
    if not lists:
        return dict(splits)
    other = next((text for text in every if text not in lists), None)
    if other is not None:
        raise UserError(
            f"some labels are lists written as text, such as {next(iter(lists))!r}, and others are not, such as "
            f"{other!r}. Write all as lists, in JSON or Parquet for example, or none.",
            key=f"columns.{role}",
        )
    logger.warning("the labels are lists written as text, such as %s: read as lists", repr(every[0]))
    return {name: _replaced(split, role, lists) if name in texts else split for name, split in splits.items()}


def _is_text(split: Dataset, role: str) -> bool:
    return (
        str(split.features[role].dtype) in ("string", "large_string")
        if hasattr(split.features[role], "dtype")
        else False
    )


def _distinct(split: Dataset, role: str) -> list[str]:
    return [text for text in column(split, role).unique().to_pylist() if text is not None]


def _check_separator(splits: Mapping[str, Dataset], texts: Mapping[str, Dataset], role: str) -> None:
    if not any(role in split.column_names for split in splits.values()):
        raise UserError("there are no labels to split.", key="label_separator")
    if not texts:
        kind = next(str(column(split, role).type) for split in splits.values() if role in split.column_names)
        raise UserError(
            f"it splits labels that are text, but the column holds {kind}. Leave it out.", key="label_separator"
        )


def _parts(text: str, separator: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))


def _list(text: str) -> list[Any] | None:
    """Return the list that a text is in JSON or Python notation; None if it is not a list.

    >>> _list("['joy', 'love']"), _list("[0, 1]"), _list("[sic]")
    (['joy', 'love'], [0, 1], None)
    """
    if not (text.strip().startswith("[") and text.strip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list) and all(isinstance(item, str | int | float) for item in found):
            return found
    return None


def _replaced(split: Dataset, role: str, lists: Mapping[str, list[Any]]) -> Dataset:
    """Return the split with a list in place of each text."""
    from datasets import Features, List, Value

    items = [item for found in lists.values() for item in found]
    kind = "string"
    if items and not any(isinstance(item, str) for item in items):
        kind = "bool" if all(isinstance(item, bool) for item in items) else "int64"
        kind = "float64" if any(isinstance(item, float) for item in items) else kind
    features = Features({**split.features, role: List(Value(kind))})

    def replace(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {role: [None if text is None else lists[text] for text in batch[role]]}

    return split.map(
        replace,
        batched=True,
        features=features,
        desc="Reading labels",
        new_fingerprint=fingerprint(__version__, split._fingerprint, role, sorted(lists.items())),
    )
