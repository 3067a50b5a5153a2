"""Language models, tags and answers: how much of the tokens is learned, and does the end of a text count?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.example_columns import PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED
from hf_distill.data.labelled import has_label
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.sampling import flat, of_rows, sample
from hf_distill.run.text_ends import ends_of

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.run.doctor.opened import Opened

NAME = "learned"
# Share of examples without a label from which it is worth a warning.
SILENT = 0.01


def tokens(opened: Opened) -> Iterator[Finding]:
    """Yield how many tokens (or windows) of the train split have a label, for tasks with several labels an example."""
    kind, train = opened.recipe.task.head_kind, opened.prepared.train
    if (
        "labels" not in train.column_names
        or not isinstance(train[0]["labels"], list)
        or PROMPT_LENGTH in train.features
    ):
        return
    values = flat(train, "labels")
    if np.issubdtype(values.dtype, np.floating):
        return
    own = train.select(range(len(train) - opened.prepared.transfer_rows))
    silent = int((~has_label(own)).sum())
    unit = "windows" if kind == "spans" else "examples"
    if silent > SILENT * len(own):
        yield Finding(
            NAME,
            "warning",
            f"{silent:,} of {len(own):,} train {unit} have nothing to learn: the answer, or the completion, is cut off "
            "or missing",
            "Raise data.max_length, or drop them.",
        )
    if kind == "spans":
        yield Finding(NAME, "ok", f"{len(own) - silent:,} of {len(own):,} train windows have a labelled answer")
        return
    what = "words" if kind == "labels" else "tokens"
    share = float((values != IGNORED).mean())
    yield Finding(NAME, "ok", f"{share:.0%} of the train tokens have a label ({np.sum(values != IGNORED):,} {what})")
    if kind == "labels":
        every = getattr(opened.recipe.task, "label_all_subwords", False)
        yield Finding(
            NAME, "ok", "labels are on every sub-word" if every else "labels are on the first sub-word of a word"
        )
    elif opened.recipe.task.writes:
        yield _ends(opened, own)


def _ends(opened: Opened, train: Dataset) -> Finding:
    """Return how many examples teach where a text ends."""
    source = opened.recipe.student.source
    ends = set() if source is None else ends_of(opened.pair.student, source)
    ends |= {opened.pair.tokenizer.eos_token_id} - {None}
    rows = sample(train)
    taught = sum(not ends.isdisjoint(one) for one in rows["labels"])
    text = f"an end of text is learned in {taught:,} of {of_rows(train)}"
    if taught:
        return Finding(NAME, "ok", text)
    return Finding(
        NAME,
        "warning",
        text,
        "The student learns no end, and writes on to max_new_tokens. Are all examples cut at data.max_length?",
    )
