"""What the loss costs as the vocabulary and the number of tokens grow, and a training as its epochs do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Series:
    """One size that grows.

    Attributes:
        name: Of the setting.
        values: Its values.
        others: The other settings.
        variants: What is compared.
        benchmark: Whose variants and settings they are.
    """

    name: str
    values: tuple[int, ...]
    others: tuple[tuple[str, int], ...] = ()
    variants: tuple[str, ...] = ("naive", "dense", "sparse")
    benchmark: str = "loss"

    def sizes(self, quick: bool) -> Iterator[dict[str, Any]]:
        """Yield the settings of every point; tiny ones if quick."""
        for value in self.values:
            sizes = {**dict(self.others), self.name: value}
            if quick and self.benchmark == "epochs":
                yield {**sizes, "examples": 8, "tiny": True}
            elif quick:
                yield {**sizes, "width": 32, "vocabulary": 500, "tokens": max(16, value // 256)}
            else:
                yield sizes


SERIES = (
    Series("vocabulary", (8000, 32000, 128000), (("tokens", 1024),)),
    Series("tokens", (512, 1024, 2048, 4096, 8192), (("vocabulary", 32000),)),
    Series(
        "epochs",
        (1, 2, 3, 4, 5),
        variants=("online", "cached", "online_language", "cached_language"),
        benchmark="epochs",
    ),
)
