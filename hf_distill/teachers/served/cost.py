"""What it costs to ask a server about all texts of a run, before it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.cache.cache import amount
from hf_distill.data.label_names import IGNORED
from hf_distill.formatting import count

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.completions.section import Completions
    from hf_distill.tasks import Prepared

# Bytes of JSON that vLLM writes for one log-probability, and tokens that it scores in a second, as others measured on a
# small model.
ENTRY_BYTES = 78
TOKENS_A_SECOND = 1000


def cost_in_words(prepared: Prepared, top: int, completions: Completions) -> str:
    """Return a line for `--check`: requests, tokens, bytes and seconds.

    Args:
        prepared: The tokenised data.
        top: How many of the likeliest tokens are asked for.
        completions: Who writes the texts.
    """
    written = completions.by != "data"
    splits = [prepared.eval] if written else [prepared.train, prepared.eval]
    texts = {text for split in splits for text in _texts(split)}
    tokens = sum(len(ids) for ids, _ in texts)
    learned = sum(rows for _, rows in texts)
    what = (
        f"{len(texts):,} requests for {count(tokens)} tokens, {count(learned)} of them learned: about "
        f"{amount(tokens * (top + 1) * ENTRY_BYTES)} of answers and {_duration(tokens / TOKENS_A_SECOND)} at "
        f"{TOKENS_A_SECOND:,} tokens a second (assumed)"
    )
    if written:
        what = f"one request for every text that is written, and to evaluate {what}"
    return f"server      {what}. --check does not contact it"


def _texts(split: Dataset) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the tokens of each example, and how many of them are learned."""
    names = [name for name in ("input_ids", "labels") if name in split.column_names]
    for table in split.with_format("arrow").select_columns(names).iter(batch_size=1000):
        columns: list[list[Any]] = [table.column(name).to_pylist() for name in names]
        for ids, *labels in zip(*columns, strict=True):
            yield tuple(ids), sum(one != IGNORED for one in labels[0]) if labels else len(ids)


def _duration(seconds: float) -> str:
    """Return a time in words.

    >>> _duration(5), _duration(600), _duration(9000)
    ('5 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
