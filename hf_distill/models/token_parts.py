"""Which tokens a tokenizer needs: to encode any text, and to make one of its tokens out of smaller ones."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.tokenizers import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SentencePiece writes a space as this character. It is no text, so it cannot be written in bytes.
_SPACE = "▁"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def state_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the JSON state of a tokenizer whose vocabulary can be cut.

    Raises:
        UserError: It is not a fast tokenizer, comes with code of its own, or its model cannot spell unknown words.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whose = f"the tokenizer ({tokenizer_name(tokenizer)})"
    if backend is None:
        raise UserError(f"{whose} has no tokenizer.json, so its vocabulary cannot be cut. Wanted a fast tokenizer.")
    if type(tokenizer).__module__.partition(".")[0] != "transformers":
        raise UserError(f"{whose} is a class from outside of Transformers, so its vocabulary cannot be cut.")
    state: dict[str, Any] = json.loads(backend.to_str())
    kind = state["model"]["type"]
    if kind not in _KINDS:
        raise UserError(
            f"the vocabulary of a {kind} tokenizer cannot be cut: a word that is left out could not be spelled. Wanted "
            f"one of {', '.join(_KINDS)}."
        )
    return state


class Pieces(ABC):
    """The tokens of a tokenizer, and what they are made of.

    Args:
        tokenizer: The tokenizer.

    Attributes:
        ids: Token -> id.
        tokens: Id -> token.
        special: Ids of special and added tokens, and of those around every text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        state = state_of(tokenizer)
        self.tokenizer, self.model = tokenizer, state["model"]
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.tokens = {number: token for token, number in self.ids.items()}
        added = (token["id"] for token in state["added_tokens"])
        self.special = {*tokenizer.all_special_ids, *added, *ids_around(state["post_processor"])}
        if (unknown := self.model.get("unk_token")) in self.ids:
            self.special.add(self.ids[unknown])

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Pieces:
        """Return the tokens of a tokenizer.

        Raises:
            UserError: Its vocabulary cannot be cut.
        """
        return _KINDS[state_of(tokenizer)["model"]["type"]](tokenizer)

    def needed(self) -> set[int]:
        """Return the ids without which some text could not be encoded, or would decode to another text."""
        return self.special | {self.ids[token] for token in self.spelling() if token in self.ids}

    @abstractmethod
    def spelling(self) -> Iterable[str]:
        """Return the tokens with which any text can be spelled that the whole vocabulary can spell."""

    def with_parts(self, number: int) -> set[int]:
        """Return a token and all tokens that the tokenizer makes on the way to it, as ids."""
        return {number}

    @property
    def has_bytes(self) -> bool:
        """Whether a character that is not in the vocabulary is written in bytes."""
        return bool(self.model.get("byte_fallback")) and self.ids.keys() >= _BYTES


class WordPieces(Pieces):
    """Tokens of WordPiece: the longest piece that fits, from left to right."""

    def spelling(self) -> Iterator[str]:
        """Yield single characters, and pieces with a character that the vocabulary does not have alone."""
        for token in self.ids:
            letters = [*self._letters(token)]
            if len(letters) == 1 or (not self.ids.keys() >= set(letters) and self._is_word(token)):
                yield token

    def _letters(self, token: str) -> Iterator[str]:
        prefix = self.model["continuing_subword_prefix"]
        inside = token.startswith(prefix) and token != prefix
        for place, letter in enumerate(token.removeprefix(prefix) if inside else token):
            yield f"{prefix}{letter}" if inside or place else letter

    def _is_word(self, token: str) -> bool:
        """Return whether a token can be (part of) a word: not [unused7], whose brackets are words of their own."""
        text = token.removeprefix(self.model["continuing_subword_prefix"])
        splitter = self.tokenizer.backend_tokenizer.pre_tokenizer
        return splitter is None or [piece for piece, _ in splitter.pre_tokenize_str(text)] == [text]


class Merged(Pieces):
    """Tokens of byte-pair encoding: neighbours are merged, those of the lowest rank first."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.prefix = self.model.get("continuing_subword_prefix") or ""
        self.suffix = self.model.get("end_of_word_suffix") or ""
        self.ranks = {pair: rank for rank, pair in enumerate(map(pair_of, self.model["merges"]))}
        self.made_of: dict[str, list[tuple[str, str]]] = {}
        for one, other in self.ranks:
            self.made_of.setdefault(one + other.removeprefix(self.prefix), []).append((one, other))

    def spelling(self) -> Iterator[str]:
        """Yield the bytes, or single characters where there are none."""
        if self.has_bytes:
            yield from (*_BYTES, _SPACE)
            return
        for token in self.ids:
            if len(token.removeprefix(self.prefix).removesuffix(self.suffix) or token) == 1:
                yield token
        yield from _BYTES

    def with_parts(self, number: int) -> set[int]:
        """Return a token and those that are merged on the way to it."""
        token = self.tokens[number]
        seen = self._on_the_way(token)
        if token not in seen:  # such as a token that only stands inside of a word: all ways to it
            seen, waiting = {token}, [token]
            while waiting:
                parts = {part for pair in self.made_of.get(waiting.pop(), ()) for part in pair} - seen
                seen |= parts
                waiting += parts
        return {number, *(self.ids[one] for one in seen if one in self.ids)}

    def _on_the_way(self, token: str) -> set[str]:
        """Return all symbols that the tokenizer makes of a token's text. Its neighbours in a word change nothing."""
        symbols = [*token.removesuffix(self.suffix)]
        if self.suffix and symbols and token.endswith(self.suffix):
            symbols[-1] += self.suffix
        seen = set(symbols)
        while True:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)), default=None)
            if best is None or best not in self.ranks:
                return seen
            place = pairs.index(best)
            symbols[place : place + 2] = [best[0] + best[1].removeprefix(self.prefix)]
            seen.add(symbols[place])


class ScoredPieces(Pieces):
    """Tokens of a unigram model: the pieces of a text whose scores have the highest sum."""

    def spelling(self) -> Iterator[str]:
        """Yield single characters, pieces with a character that is nowhere alone, and the least likely piece."""
        entries = self.model["vocab"]
        yield entries[self.model["unk_id"]][0]
        # The penalty of an unknown character counts from the lowest score, so that must stay where it is.
        yield min(entries, key=lambda entry: entry[1])[0]
        if self.has_bytes:
            yield from (*_BYTES, _SPACE)
            return
        single = {token for token, _ in entries if len(token) == 1}
        yield from (token for token, _ in entries if len(token) == 1 or not set(token) <= single)


_KINDS: dict[str, type[Pieces]] = {"WordPiece": WordPieces, "BPE": Merged, "Unigram": ScoredPieces}


def pair_of(merge: str | list[str]) -> tuple[str, str]:
    """Return both parts of a merge, which older files write as one text."""
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


def ids_around(node: Any) -> Iterator[int]:
    """Yield the ids of the tokens that a post-processor puts around texts."""
    for place in tokens_around(node):
        yield from place["ids"] if isinstance(place, dict) else [place[1]]


def tokens_around(node: Any) -> Iterator[Any]:
    """Yield the parts of a post-processor's state that hold ids: `{"ids": [...], ...}` or `[token, id]`."""
    if not isinstance(node, dict):
        return
    if "ids" in node:
        yield node
    yield from (node[key] for key in ("sep", "cls") if isinstance(node.get(key), list))
    for inner in (*node.get("processors", ()), *(node.get("special_tokens") or {}).values()):
        yield from tokens_around(inner)
