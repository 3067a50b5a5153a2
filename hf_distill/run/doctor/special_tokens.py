"""Are there padding, begin and end tokens, each once; and how much of the texts does the tokenizer not know?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.sampling import of_rows, sample, token_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hf_distill.run.doctor.opened import Opened

NAME = "special"
# Largest share of unknown tokens that is usual: single rare characters.
UNKNOWN = 0.01


def special_tokens(opened: Opened) -> Iterator[Finding]:
    """Yield what is special among the tokens of the train split, for each tokenizer."""
    views = [("", opened.prepared, opened.pair.tokenizer)]
    if opened.prepared.for_teacher is not None and opened.pair.teacher_tokenizer is not None:
        views.append(("the teacher's tokens: ", opened.prepared.for_teacher, opened.pair.teacher_tokenizer))
    for whose, prepared, tokenizer in views:
        if "input_ids" in prepared.train.column_names:
            yield from _of_split(whose, prepared.train, tokenizer)


def _of_split(whose: str, split: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    texts = list(token_ids(sample(split)))
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(NAME, "ok", f"{whose}padding is the end of text, {tokenizer.eos_token}; it is masked by position")
    else:
        yield Finding(NAME, "ok", f"{whose}padding is {tokenizer.pad_token}")
    for token, edge, twice in (
        (tokenizer.bos_token, "begin", sum(_twice(ids[:2], tokenizer.bos_token_id) for ids in texts)),
        (tokenizer.eos_token, "end", sum(_twice(ids[-2:], tokenizer.eos_token_id) for ids in texts)),
    ):
        if twice:
            yield Finding(
                NAME,
                "warning",
                f"{whose}{twice:,} of {len(texts):,} texts {edge} with {token} twice: once from the data or the chat "
                "template, once from the tokenizer",
                "Remove it from the texts: the models were not trained on two.",
            )
    yield _unknown(whose, split, texts, tokenizer)


def _twice(ids: list[int], token: int | None) -> bool:
    return token is not None and ids == [token, token]


def _unknown(whose: str, split: Dataset, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> Finding:
    unknown, total = tokenizer.unk_token_id, sum(map(len, texts))
    # Some tokenizers of bytes give the end of text as the unknown token, which none of their texts needs.
    if unknown is None or unknown == tokenizer.eos_token_id or not total:
        return Finding(NAME, "ok", f"{whose}no token is unknown")
    share = sum(ids.count(unknown) for ids in texts) / total
    text = f"{whose}{share:.2%} of the tokens of train are unknown ({tokenizer.unk_token}), in {of_rows(split)}"
    if share <= UNKNOWN:
        return Finding(NAME, "ok", text)
    return Finding(
        NAME, "warning", text, "The models read nothing there. Is this the tokenizer for the language of the data?"
    )
