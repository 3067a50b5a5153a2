"""Tokenise texts and find the tokens to learn: those with a character in a span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from hf_distill.tasks.chat_messages import ChatText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Token ids; for each whether it is learned; whether a learned token begins before its span.
Spanned = tuple[list[int], list[bool], bool]


def spanned(tokenizer: PreTrainedTokenizerBase, texts: Sequence[ChatText]) -> Iterator[Spanned]:
    """Yield the tokens of each text. No special tokens are added: the chat template writes its own."""
    if not texts:
        return
    if not tokenizer.is_fast:
        for one in texts:
            yield _by_prefixes(tokenizer, one)
        return
    made = tokenizer([one.text for one in texts], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for one, ids, offsets in zip(texts, made["input_ids"], made["offset_mapping"], strict=True):
        learned, merged = [False] * len(ids), False
        places = iter(enumerate(offsets))
        place = next(places, None)
        for start, end in one.spans:
            while place is not None:
                index, (first, last) = place
                if first >= end and last > end:
                    break
                # A token of only white space can have width 0.
                if last > start and (first < end or first == last <= end):
                    learned[index] = True
                    merged = merged or first < start
                place = next(places, None)
        yield ids, learned, merged


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, one: ChatText) -> Spanned:
    """Return the tokens of a text from a slow tokenizer, which does not give their positions in the text."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    ids, merged = tokens(one.text), False
    learned: list[bool] = []
    for start, end in one.spans:
        first, exact = _shared(tokens(one.text[:start]), ids)
        last, _ = _shared(tokens(one.text[:end]), ids)
        learned += [False] * (first - len(learned))
        # If the end of a turn and the text after it make one token, the token is not part of the turn.
        learned += [True] * (last - len(learned))
        merged = merged or not exact
    return ids, learned + [False] * (len(ids) - len(learned)), merged


def _shared(prefix: list[int], ids: list[int]) -> tuple[int, bool]:
    """Return the number of tokens that both lists have in common at the start, and whether it is all of `prefix`."""
    number = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, ids, strict=False)))
    return number, number == len(prefix)
