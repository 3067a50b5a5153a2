"""What the loss costs as the vocabulary and the number of tokens grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """One size that grows.

    Attributes:
        name: Of the setting.
        values: Its values.
        others: The other settings.
        variants: What is compared.
    """

    name: str
    values: tuple[int, ...]
    others: tuple[tuple[str, int], ...]
    variants: tuple[str, ...] = ("naive", "dense", "sparse")

    def sizes(self, quick: bool) -> Iterator[dict[str, int]]:
        """Yield the settings of every point; tiny ones if quick."""
        for value in self.values:
            sizes = {**dict(self.others), self.name: value}
            yield {**sizes, "width": 32, "vocabulary": 500, "tokens": max(16, value // 256)} if quick else sizes


SERIES = (
    Series("vocabulary", (8000, 32000, 128000), (("tokens", 1024),)),
    Series("tokens", (512, 1024, 2048, 4096, 8192), (("vocabulary", 32000),)),
)
