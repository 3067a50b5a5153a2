"""What a student may cost, as a recipe asks for it: `size: 0.5`, `parameters: 20M`, `latency: 0.5`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hf_distill.errors import UserError

Kind = Literal["size", "parameters", "latency"]

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """What a student may cost at most.

    Attributes:
        kind: `size`: a share of the teacher's parameters; `parameters`: a number of them; `latency`: a share of the
            teacher's time for a forward pass.
        value: The value as the recipe gives it.
    """

    kind: Kind
    value: float | int | str

    @property
    def limit(self) -> float:
        """The value as a number."""
        return number_of(self.value) if isinstance(self.value, str) else self.value

    def __str__(self) -> str:
        """Return `size 0.5`."""
        return f"{self.kind} {self.value}"


def number_of(text: str) -> int:
    """Return a number of parameters from its text.

    >>> number_of("20M"), number_of("1.2B"), number_of("20_000_000"), number_of("350 k")
    (20000000, 1200000000, 20000000, 350000)

    Raises:
        UserError: The text is not a number with K, M or B.
    """
    match = _NUMBER.fullmatch(text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise UserError(f"wanted a number of parameters, such as 20M, 1.2B or 20_000_000; found '{text}'.")
    return round(float(match[1]) * _FACTORS[match[2].upper()])
