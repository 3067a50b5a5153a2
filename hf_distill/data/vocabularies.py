"""Find the tokens in which two almost equal vocabularies differ."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that do not stand for text: <|box|>, [PAD], <unused7>, <｜end▁of▁sentence｜>.
_CONTROL = re.compile(r"<.*>|\[.*\]", re.DOTALL)
# How many tokens may differ: this share of the vocabulary, or this number if that is more.
SHARE, FEW = 0.01, 16


def differing(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that are not the same token in both vocabularies, ascending."""
    ours, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (one, other))
    return sorted(number for number in ours.keys() | theirs.keys() if ours.get(number) != theirs.get(number))


def left_out(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Return the ids to leave out of a comparison; None if more than special and unused tokens differ."""
    numbers = differing(one, other)
    if len(numbers) > max(FEW, SHARE * min(len(one), len(other))):
        return None
    return tuple(numbers) if all(_is_special(each, numbers) for each in (one, other)) else None


def _is_special(tokenizer: PreTrainedTokenizerBase, numbers: Collection[int]) -> bool:
    """Return whether all of the ids that a tokenizer has are special tokens or do not stand for text."""
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    special = {*tokenizer.all_special_ids, *(number for number, one in _added(tokenizer).items() if one)}
    return all(
        number not in tokens or number in special or _CONTROL.fullmatch(tokens[number]) is not None
        for number in numbers
    )


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, bool]:
    return {number: bool(token.special) for number, token in tokenizer.added_tokens_decoder.items()}


def show_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, numbers: Collection[int]) -> str:
    """Return up to three of the tokens that differ, as text: `[PAD] (38) and 2 more`."""
    ours, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (one, other))
    words = []
    for number in sorted(numbers)[:3]:
        both = [vocabulary[number] for vocabulary in (ours, theirs) if number in vocabulary]
        words.append(f"{' / '.join(both)} ({number})")
    more = len(numbers) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")
