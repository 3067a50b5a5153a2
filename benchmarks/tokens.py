"""An epoch over real sentences in steps of 64, in micro-batches of a fixed size or of at most so many tokens.

The sentences are those of the quickstart (`python scripts/fetch_quickstart.py`), or of `text`: one a line. The models
have the sizes of the quickstart's and random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.classification import trained
from benchmarks.measure import Variant

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        batch: Examples of an optimiser step.
        examples: Of an epoch.
        longest: Tokens of the longest.
        student: Layers and width of the student, a BERT.
        teacher: Those of the teacher.
        text: File with the texts; where it is not there, made-up words.
    """

    batch: int = 64
    examples: int = 1024
    longest: int = 64
    student: tuple[int, int] = (3, 384)
    teacher: tuple[int, int] = (6, 384)
    text: str = str(ROOT / "data" / "quickstart" / "train.csv")

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(batch=8, examples=32, student=(1, 32), teacher=(2, 32), text="")


def sentences(settings: Settings) -> Any:
    """Return tokenised sentences; a token is a number that stands for a piece of a word."""
    import random
    import re

    from datasets import Dataset

    chance = random.Random(0)
    if settings.text:
        texts = Path(settings.text).read_text(encoding="utf-8").splitlines()[1:]
    else:
        texts = ["word " * chance.randint(3, 40) for _ in range(settings.examples)]
    chance.shuffle(texts)
    pieces = [re.findall(r"\w{1,5}|[^\w\s]", text)[: settings.longest] for text in texts[: settings.examples]]
    # Not `hash`, which is another in every process.
    ids = [[5 + sum(map(ord, piece)) % 900 for piece in one] or [5] for one in pieces]
    labels = [chance.randrange(3) for _ in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "length": list(map(len, ids))})


GROUPED = {"train_sampling_strategy": "group_by_length"}
VARIANTS: dict[str, Variant] = {
    "whole": Variant(trained(rows=sentences), "64 at once, in random order", "kl + labels"),
    "fixed": Variant(
        trained(rows=sentences, per_device_train_batch_size=8, gradient_accumulation_steps=8),
        "8 x 8, in random order",
        "kl + labels",
    ),
    "tokens": Variant(
        trained(rows=sentences, max_tokens_per_batch=512), "at most 512 tokens, in random order", "kl + labels"
    ),
    "grouped_whole": Variant(trained(rows=sentences, **GROUPED), "64 at once, of like length", "kl + labels"),
    "grouped_fixed": Variant(
        trained(rows=sentences, per_device_train_batch_size=8, gradient_accumulation_steps=8, **GROUPED),
        "8 x 8, of like length",
        "kl + labels",
    ),
    "grouped_tokens": Variant(
        trained(rows=sentences, max_tokens_per_batch=512, **GROUPED),
        "at most 512 tokens, of like length",
        "kl + labels",
    ),
}
BASELINE = "fixed"
RATIOS = (
    ("at most 512 tokens, of 8 x 8: time", "fixed", "tokens"),
    ("of like length: the same", "grouped_fixed", "grouped_tokens"),
)
