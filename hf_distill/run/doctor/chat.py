"""Conversations: is there one chat template, does it mark what is learned, and what does an example look like?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.data.label_names import IGNORED
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.text_ends import ends_in_words
from hf_distill.tasks.chat_template import ChatTemplate

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.run.doctor.opened import Opened

NAME = "chat"
SHOWN = 160


def chat(opened: Opened) -> Iterator[Finding]:
    """Yield how texts end, and how conversations become texts, if the task's models write."""
    if not opened.recipe.task.writes:
        return
    for line in ends_in_words(opened.recipe, opened.pair):
        yield Finding(NAME, "warning", line)
    train = opened.splits["train"]
    if any(_is_chat(train, name) for name in ("messages", "conversations", "prompt", "completion")):
        marks = ChatTemplate(opened.pair.tokenizer, {}).marks()
        how = "marks what is learned" if marks else "has no {% generation %}; what is learned is found turn by turn"
        yield Finding(NAME, "ok", f"the chat template {how}")
    yield Finding(NAME, "ok", f"the first example: {_first(opened)}")


def _is_chat(split: Dataset, name: str) -> bool:
    return name in split.column_names and "list" in str(column(split, name).type)


def _first(opened: Opened) -> str:
    """Return the first example as it is read, `[...]` around the part that is learned first, cut in the middle."""
    row: dict[str, Any] = opened.prepared.train[0]
    ids, labels = row["input_ids"], row.get("labels", [])
    start = next((at for at, label in enumerate(labels) if label != IGNORED), len(ids))
    end = next((at for at in range(start, len(labels)) if labels[at] == IGNORED), len(ids))
    before, learned = (_cut(str(opened.pair.tokenizer.decode(part))) for part in (ids[:start], ids[start:end]))
    return f"{before} [learned: {learned}]" if start < end else f"{before} [nothing is learned]"


def _cut(text: str) -> str:
    text = json.dumps(text, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
