"""How fast the teacher writes alone, and with the student as its draft model (speculative decoding)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Tokens a second of the teacher, one text at a time.

    Attributes:
        alone: Of the teacher alone.
        assisted: Of the teacher with the student as draft.
        same: Share of the texts that are the same in both ways; None where tokens are drawn.
    """

    alone: float
    assisted: float
    same: float | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast the teacher is with the draft."""
        return self.assisted / self.alone


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) with the student as draft.

    Attributes:
        prompts: Number of prompts.
        new_tokens: Largest number of tokens of a text.
        greedy: With the likeliest token each time.
        sampled: With tokens drawn at temperature 1.
    """

    prompts: int
    new_tokens: int
    greedy: Rates
    sampled: Rates
