"""Texts as tokens, of which some are learned: those that have a character in a span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from hf_distill.tasks.chat_template import ChatText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ids, whether each is learned, and whether one of those learned begins before its span.
Spanned = tuple[list[int], list[bool], bool]


def spanned(tokenizer: PreTrainedTokenizerBase, texts: Sequence[ChatText]) -> Iterator[Spanned]:
    """Yield the tokens of each text; no special token is added, the template writes its own."""
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
                # A token of white space alone can be of no width, at its end.
                if last > start and (first < end or first == last <= end):
                    learned[index] = True
                    merged = merged or first < start
                place = next(places, None)
        yield ids, learned, merged


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, one: ChatText) -> Spanned:
    """Return the tokens of a text from a tokenizer that does not tell where they are in it."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    ids, merged = tokens(one.text), False
    learned: list[bool] = []
    for start, end in one.spans:
        first, exact = _shared(tokens(one.text[:start]), ids)
        last, _ = _shared(tokens(one.text[:end]), ids)
        learned += [False] * (first - len(learned))
        # Where the end of a turn and what follows make one token, it is not of the turn.
        learned += [True] * (last - len(learned))
        merged = merged or not exact
    return ids, learned + [False] * (len(ids) - len(learned)), merged


def _shared(prefix: list[int], ids: list[int]) -> tuple[int, bool]:
    """Return how many tokens of a prefix are also the first of the whole, and whether all are."""
    number = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, ids, strict=False)))
    return number, number == len(prefix)
