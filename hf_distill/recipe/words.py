"""Parts of a recipe for people to read: what `--check` plans, and where two recipes differ."""

from __future__ import annotations

from typing import Any

from hf_distill.formatting import masked
from hf_distill.objectives.schedule import in_words, is_schedule


def words(values: dict[str, Any]) -> str:
    """Return `kl (weight 0.5, temperature 2.0)` for an entry, `key value, ...` for another mapping.

    >>> words({"name": "cached", "teacher": {"name": "pretrained", "model": "big"}, "push": True})
    'cached (teacher pretrained (model big), push true)'
    """
    rest = ", ".join(f"{key} {shown(value)}" for key, value in values.items() if key != "name")
    if "name" not in values:
        return rest
    return f"{values['name']} ({rest})" if rest else str(values["name"])


def shown(value: Any) -> str:
    """Return a value as a recipe would give it, of a long one its start.

    >>> shown([1, None]), shown({"start": 4.0, "end": 1.0}), shown({"num_cycles": 0.5})
    ('[1, nothing]', '4 to 1 over the training', '(num_cycles 0.5)')
    """
    if isinstance(value, dict) and not is_schedule(value):
        return words(value) if "name" in value else f"({words(value)})"
    if isinstance(value, list | tuple):
        return _short(f"[{', '.join(map(shown, value))}]")
    if value is None:
        return "nothing"
    return _short(str(value).lower() if isinstance(value, bool) else in_words(value))


def _short(text: str, limit: int = 60) -> str:
    # Masked before it is cut, as half a token is one that no pattern knows; and a text may have lines of its own.
    line = " ".join(masked(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
