"""Label names: two models agree on what class 0 is by its name, never by its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def label_names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return a head's label names in order, or None when they are Transformers' placeholders (`LABEL_0`, ...)."""
    id2label: dict[int, str] = config.id2label or {}
    names = tuple(str(id2label[index]) for index in sorted(id2label))
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return names


def positions(wanted: Sequence[str], found: Sequence[str], *, whose: str) -> tuple[int, ...]:
    """Return, for each wanted name, its position among the found ones. Case is ignored (`NEGATIVE` is `negative`).

    Args:
        wanted: Names in the order wanted.
        found: Names in the order found.
        whose: Who has the found names, for the message.

    Raises:
        UserError: The two are not the same set.

    >>> positions(["negative", "positive"], ["POSITIVE", "NEGATIVE"], whose="the teacher")
    (1, 0)
    """
    at = {name.casefold(): index for index, name in enumerate(found)}
    keys = [name.casefold() for name in wanted]
    if len(at) != len(found) or set(at) != set(keys) or len(set(keys)) != len(keys):
        raise UserError(
            f"label names differ: wanted {shorten(wanted)}, but {whose} has {shorten(found)}. "
            "They may stand in another order, but must be the same names."
        )
    return tuple(at[key] for key in keys)


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """Return the names as `[a, b, c, ... 200 in all]`."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"[{shown}]" if len(names) <= limit else f"[{shown}, ... {len(names)} in all]"
