"""Compare label names: classes of two models are matched by name, never by number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What Transformers and torch use for a position without a label.
IGNORED = -100
# Ours: a position that counts and whose label is not known. The teacher has a prediction there.
UNLABELLED = -1


def label_names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Return the label names of a configuration in order; None if they only number the classes (`LABEL_0`, ...)."""
    id2label = config.id2label or {}
    return real_names(str(name) for _, name in sorted(id2label.items()))


def real_names(names: Iterable[str]) -> tuple[str, ...] | None:
    """Return the names; None if they only give the position (`LABEL_0`, `LABEL_1` or `0`, `1`).

    >>> real_names(["LABEL_0", "LABEL_1"])
    >>> real_names(["1", "0"])
    ('1', '0')
    """
    given = tuple(names)
    return None if all(name in (f"LABEL_{at}", str(at)) for at, name in enumerate(given)) else given


def label_numbers(names: Iterable[str]) -> tuple[int, ...] | None:
    """Return the number in each name; None unless every name has one and all numbers differ.

    A name may begin with its number, or end with it after words that are the same in all names. `true` and `false`
    are 1 and 0. Ranges (`18-25`) and decimals (`1.5`) do not count as numbers.

    >>> label_numbers(["1 star", "2 stars"]), label_numbers(["grade 2", "grade 1"]), label_numbers(["True", "False"])
    ((1, 2), (2, 1), (1, 0))
    >>> label_numbers(["18-25", "26-35"]), label_numbers(["T5", "GPT2"])
    (None, None)
    """
    given = [name.strip() for name in names]
    if {name.casefold() for name in given} == {"true", "false"}:
        return tuple(int(name.casefold() == "true") for name in given)
    found = [_BEGINS.match(name) for name in given]
    if not all(found):
        found = [_ENDS.fullmatch(name) for name in given]
        if len({match["before"] for match in found if match}) != 1:
            return None
    numbers = tuple(int(match["number"]) for match in found if match)
    return numbers if 0 < len(given) == len(numbers) == len(set(numbers)) else None


_BEGINS = re.compile(r"(?P<number>[-+]?[0-9]+)(?!\w|[.,][0-9]|\s*[-\u2013]\s*[0-9])")
_ENDS = re.compile(r"(?P<before>\D*?[\s_:#-]|\D*[^\W\d_]\s?)(?P<number>[0-9]+)")


def tidy(name: str) -> str:
    """Return a name without invisible differences: outer and repeated spaces, other forms of Unicode.

    >>> tidy(" very  good ")
    'very good'
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def positions(wanted: Sequence[str], found: Sequence[str], *, whose: str) -> tuple[int, ...]:
    """Return, for each wanted name, its position among the found names.

    Case and outer spaces are ignored (`NEGATIVE` is `negative`), unless two names differ only in them. Names that
    begin with numbers are equal if the numbers are (`1 star`, `1`).

    Args:
        wanted: Names in the order wanted.
        found: Names in the order found.
        whose: Who has the found names, for the message.

    Raises:
        UserError: The two do not have the same names.

    >>> positions(["negative", "positive"], ["POSITIVE", "NEGATIVE"], whose="the teacher")
    (1, 0)
    >>> positions(["1 star", "2 stars"], ["2", "1"], whose="the teacher")
    (1, 0)
    """
    spellings: list[tuple[Sequence[str | int], Sequence[str | int]]] = [
        ([spell(name) for name in wanted], [spell(name) for name in found]) for spell in (str, tidy, folded)
    ]
    ours, theirs = label_numbers(wanted), label_numbers(found)
    if ours and theirs:
        spellings.append((ours, theirs))
    for keys, others in spellings:
        at = {key: index for index, key in enumerate(others)}
        if len(at) == len(found) == len(keys) and set(at) == set(keys):
            return tuple(at[key] for key in keys)
    raise UserError(
        f"label names differ: wanted {shorten(wanted)}, but {whose} has {shorten(found)}. "
        "The order may differ, the names may not."
    )


def folded(name: str) -> str:
    """Return a tidy name in lower case, for comparisons."""
    return tidy(name).casefold()


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """Return the names as `[a, b, c, ... 200 in all]`."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"[{shown}]" if len(names) <= limit else f"[{shown}, ... {len(names)} in all]"


# Where sentence-transformers writes the activation of a cross-encoder: key of new versions, key of old ones.
_ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")


def activation(config: PretrainedConfig | None) -> str | None:
    """Return the activation that sentence-transformers applies to a cross-encoder's output; None if not configured.

    >>> from transformers import BertConfig
    >>> activation(BertConfig(sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"}))
    'Sigmoid'
    """
    new_style = getattr(config, _ACTIVATION_KEYS[0], None)
    old_style = getattr(config, _ACTIVATION_KEYS[1], None)
    path = new_style.get("activation_fn") if isinstance(new_style, dict) else old_style
    return path.rpartition(".")[2] if isinstance(path, str) else None


def activation_settings(config: PretrainedConfig | None) -> dict[str, Any]:
    """Return the settings of the activation, to be copied to a student whose output means the same."""
    return {key: value for key in _ACTIVATION_KEYS if (value := getattr(config, key, None)) is not None}
