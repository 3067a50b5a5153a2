"""Label names: two models agree on what class 0 is by its name, never by its number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Transformers' and torch's mark of a position without label.
IGNORED = -100
# Ours, beside it: a position that counts, of which the label is not known. The teacher has an answer there.
UNLABELLED = -1


def label_names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return a head's label names in order, or None where they only number the classes (`LABEL_0`, ...)."""
    id2label = config.id2label or {}
    return real_names(str(name) for _, name in sorted(id2label.items()))


def real_names(names: Iterable[str]) -> tuple[str, ...] | None:
    """Return the names, or None where they say nothing but the position (`LABEL_0`, `LABEL_1` or `0`, `1`).

    >>> real_names(["LABEL_0", "LABEL_1"])
    >>> real_names(["1", "0"])
    ('1', '0')
    """
    given = tuple(names)
    return None if all(name in (f"LABEL_{at}", str(at)) for at, name in enumerate(given)) else given


def positions(wanted: Sequence[str], found: Sequence[str], *, whose: str) -> tuple[int, ...]:
    """Return, for each wanted name, its position among the found ones.

    Case is ignored (`NEGATIVE` is `negative`), unless two of the names differ in nothing else.

    Args:
        wanted: Names in the order wanted.
        found: Names in the order found.
        whose: Who has the found names, for the message.

    Raises:
        UserError: The two are not the same set.

    >>> positions(["negative", "positive"], ["POSITIVE", "NEGATIVE"], whose="the teacher")
    (1, 0)
    """
    for spell in (str, str.casefold):
        at = {spell(name): index for index, name in enumerate(found)}
        keys = [spell(name) for name in wanted]
        if len(at) == len(found) == len(keys) and set(at) == set(keys):
            return tuple(at[key] for key in keys)
    raise UserError(
        f"label names differ: wanted {shorten(wanted)}, but {whose} has {shorten(found)}. "
        "They may stand in another order, but must be the same names."
    )


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """Return the names as `[a, b, c, ... 200 in all]`."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"[{shown}]" if len(names) <= limit else f"[{shown}, ... {len(names)} in all]"
