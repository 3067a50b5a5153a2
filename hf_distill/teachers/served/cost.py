"""What it costs to ask a server about all texts of a run, before it is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.cache.cache import amount
from hf_distill.data.example_columns import PROMPT_LENGTH
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
    train = list(_texts(prepared.train, completions.max_new_tokens, written=written))
    others = list(_texts(prepared.eval, completions.max_new_tokens, written=False))
    if not written:  # equal texts are asked about once; those that are drawn are hardly ever equal
        line = _cost({*train, *others}, top)
    else:
        when = "for each pass over the train rows" if completions.in_training else "for the texts that are written"
        many = 1 if completions.in_training else completions.per_prompt
        line = f"{when} {_cost(train * many, top)}; to evaluate {_cost(set(others), top)}"
    return f"server      {line}. --check does not contact it"


# Tokens of an example or of its prompt, how many tokens the whole text has, and how many of them are learned; the
# numbers are upper bounds where the completion has still to be written (`True`).
_Text = tuple[tuple[int, ...], int, int, bool]


def _cost(texts: Collection[_Text], top: int) -> str:
    """Return requests, tokens, bytes and seconds of some texts."""
    tokens, learned = sum(one for _, one, _, _ in texts), sum(one for _, _, one, _ in texts)
    most = "at most " if any(written for *_, written in texts) else ""
    return (
        f"{len(texts):,} requests for {most}{count(tokens)} tokens, {count(learned)} of them learned: about "
        f"{amount(tokens * (top + 1) * ENTRY_BYTES)} of answers and {_duration(tokens / TOKENS_A_SECOND)} at "
        f"{TOKENS_A_SECOND:,} tokens a second (assumed)"
    )


def _texts(split: Dataset, new: int, *, written: bool) -> Iterator[_Text]:
    """Yield the examples of a split.

    Args:
        split: Tokenised.
        new: Most tokens of a completion that a model writes.
        written: Whether a model writes the completions of all rows, not only of those that are a prompt alone.
    """
    names = [name for name in ("input_ids", "labels", PROMPT_LENGTH) if name in split.column_names]
    for table in split.with_format("arrow").select_columns(names).iter(batch_size=1000):
        columns: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in names}
        for row, ids in enumerate(columns["input_ids"]):
            prompt = columns[PROMPT_LENGTH][row] if PROMPT_LENGTH in columns else None
            if prompt is not None and (written or len(ids) <= prompt):
                most = max(new, len(ids) - prompt)
                yield tuple(ids[:prompt]), prompt + most, most, True
                continue
            labels = columns["labels"][row] if "labels" in columns else ids
            yield tuple(ids), len(ids), sum(one != IGNORED for one in labels), False


def _duration(seconds: float) -> str:
    """Return a time in words.

    >>> _duration(5), _duration(600), _duration(9000)
    ('5 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
