"""Which completions of a teacher are learned, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_distill.completions.sampling import Completion
from hf_distill.completions.section import Completions

EMPTY, SHORT, CUT, DUPLICATE = "empty", "too short", "cut", "duplicate"


@dataclass
class CompletionFilter:
    """Counts what becomes of completions.

    Attributes:
        completions: The section of the recipe, which says what is dropped.
        written: Number of completions.
        kept: Number of those that are learned.
        cut: Number of those that are learned and were cut, so that they have no end.
        tokens: Number of their tokens.
        dropped: Reason -> number of those that are not learned.
    """

    completions: Completions
    written: int = 0
    kept: int = 0
    cut: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def of_rows(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[Completion]]
    ) -> list[list[Completion]]:
        """Return those completions of each prompt that are learned; equal ones of equal prompts are learned once."""
        seen: set[tuple[tuple[int, ...], Completion]] = set()
        return [
            [one for one in found if self._is_kept(tuple(prompt), one, seen)]
            for prompt, found in zip(prompts, written, strict=True)
        ]

    def _is_kept(self, prompt: tuple[int, ...], one: Completion, seen: set[tuple[tuple[int, ...], Completion]]) -> bool:
        self.written += 1
        words = len(one.ids) - one.ended
        reason = ""
        if words < self.completions.min_tokens:
            reason = SHORT if words else EMPTY
        elif self.completions.drop_cut and not one.ended:
            reason = CUT
        elif (prompt, one) in seen:
            reason = DUPLICATE
        if reason:
            self.dropped[reason] += 1
            return False
        seen.add((prompt, one))
        self.kept += 1
        self.cut += not one.ended
        self.tokens += len(one.ids)
        return True

    def facts(self) -> dict[str, Any]:
        """Return the counts for the report."""
        return {
            "written": self.written,
            "kept": self.kept,
            "tokens": self.tokens,
            "cut (kept without an end)": self.cut,
            **({"dropped": dict(sorted(self.dropped.items()))} if self.dropped else {}),
        }

    def in_words(self, what: str = "learned") -> str:
        """Return the counts in a line; `what` is done with those that are not dropped."""
        text = f"{self.kept:,} of {self.written:,} completions are {what}, {self.tokens:,} tokens"
        if self.cut:
            text += f"; {self.cut:,} were cut after {self.completions.max_new_tokens:,} tokens and have no end to learn"
        if self.dropped:
            text += f"; dropped: {', '.join(f'{number:,} {reason}' for reason, number in sorted(self.dropped.items()))}"
        return text
