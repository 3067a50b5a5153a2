"""Whether a generated text is the right answer: the same text, the same words, or the same number."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from hf_distill.errors import UserError
from hf_distill.metrics.answers import normalise

# A sign counts only where no word or number ends: 3-5 is not a difference. Commas stand between groups of three digits.
_NUMBER = re.compile(r"(?P<sign>(?<![\w.])-)?\$?(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
NUMBER = "exact_match_number"


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, which is where a worked solution has its answer; None without any.

    >>> last_number("He pays 3 x $6 = $18.00."), last_number("#### 1,234"), last_number("-7"), last_number("none")
    (Decimal('18.00'), Decimal('1234'), Decimal('-7'), None)
    """
    found = list(_NUMBER.finditer(text))
    return Decimal((found[-1]["sign"] or "") + found[-1]["digits"].replace(",", "")) if found else None


def _same_answer(predicted: str, true: str) -> bool:
    return normalise(predicted) == normalise(true)


def _same_text(predicted: str, true: str) -> bool:
    return predicted.strip() == true.strip()


def _same_number(predicted: str, true: str) -> bool:
    return last_number(predicted) == last_number(true)


# Metric -> whether a text is right. Their formulas: without case, punctuation and articles (as SQuAD's script); without
# spaces at both ends; by the value of the last number.
SAME: Mapping[str, Callable[[str, str], bool]] = {
    "exact_match": _same_answer,
    "exact_match_plain": _same_text,
    NUMBER: _same_number,
}


def check_numbers(references: Sequence[str]) -> None:
    """Refuse references without a number, which every text without one would equal.

    Raises:
        UserError: There are some.
    """
    without = [row for row, text in enumerate(references) if last_number(text) is None]
    if without:
        raise UserError(
            f"{NUMBER} compares the last number of each text, and {len(without):,} of {len(references):,} references "
            f"of the eval split have none, such as {references[without[0]][-60:]!r}. Use exact_match.",
            key="metrics",
        )
