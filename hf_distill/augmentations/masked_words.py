"""The candidates for each word of a text: what a masked language model expects in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.augmentations.stop_words import stop_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.augmentations.word_vectors import WordVectors

# Bytes of the logits of a batch, which has a row of the vocabulary for every token.
LOGITS_BYTES = 2**28
# What the first piece of a word begins with, in vocabularies that do not mark the other pieces.
_FIRST = ("Ġ", "▁")


@dataclass(frozen=True)
class Word:
    """A word that may be replaced.

    Attributes:
        start: Its place in the text, in characters.
        end: One past it.
        candidates: What may take its place; the word itself where nothing was found.
    """

    start: int
    end: int
    candidates: Sequence[str]


@dataclass(frozen=True)
class _Asked:
    """A word that the model is asked about.

    Attributes:
        text: Number of the text.
        word: Number of the word in the list of its text.
        inputs: Inputs of the model, with the word itself in them.
        position: Position of its only piece.
    """

    text: int
    word: int
    inputs: Mapping[str, list[int]]
    position: int


@dataclass(frozen=True, eq=False)
class MaskedWords:
    """Finds candidates for the words of texts.

    Attributes:
        model: A masked language model, in eval mode.
        tokenizer: Its tokenizer, a fast one with a mask token.
        max_length: Most tokens that the model takes; None for no limit.
        top: How many of the most likely pieces, or of the nearest words, to look at.
        vectors: Word vectors, for words of several pieces; None if there are none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    top: int
    vectors: WordVectors | None = None

    def of(self, texts: Sequence[str]) -> list[list[Word]]:
        """Return the words of each text that may be replaced, in order, with their candidates.

        These are words of letters that are not stop words, within what the model takes. A word of one piece gets those
        of the `top` most likely pieces in its place that begin a word; one of several pieces the nearest words by their
        vectors. The model reads the text with the word masked and, as a second text, all of it.
        """
        found: list[list[Word]] = []
        asked: list[_Asked] = []
        for number, text in enumerate(texts):
            inputs, pieces = self._read(text)
            words = [word for word in _words(text, pieces) if not _is_left(text[slice(*word[0])])]
            found.append([Word(*span, self._kept_or_near(text[slice(*span)], places)) for span, places in words])
            single = (index for index, (_, places) in enumerate(words) if len(places) == 1)
            asked += [_Asked(number, index, inputs, words[index][1][0]) for index in single]
        asked.sort(key=lambda one: len(one.inputs["input_ids"]))  # little padding; the same batches each time
        for batch in self._batches(asked):
            for one, ids in zip(batch, self._likeliest(batch), strict=True):
                word = found[one.text][one.word]
                candidates = self._whole_words(ids, one.inputs["input_ids"][one.position])
                found[one.text][one.word] = Word(word.start, word.end, candidates or word.candidates)
        return found

    def _read(self, text: str) -> tuple[dict[str, list[int]], list[tuple[int, tuple[int, int], int]]]:
        """Return the inputs of a text, twice if it fits twice; and of its first copy: word, place and position."""
        length = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        room = self.max_length is None or length + self.tokenizer.num_special_tokens_to_add(pair=True) < self.max_length
        cut: Any = {"truncation": "only_second" if room else "longest_first", "max_length": self.max_length}
        read: Any = self.tokenizer(
            text,
            text if room else None,
            return_offsets_mapping=True,
            return_token_type_ids=None,
            **(cut if self.max_length else {}),
        )
        places = zip(read.word_ids(), read.sequence_ids(), read.pop("offset_mapping"), strict=True)
        pieces = [(word, span, at) for at, (word, side, span) in enumerate(places) if side == 0 and word is not None]
        return dict(read), pieces

    def _kept_or_near(self, word: str, places: Sequence[int]) -> list[str]:
        near = self.vectors.nearest(word, self.top) if self.vectors is not None and len(places) > 1 else []
        return near or [word]

    def _batches(self, asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
        row = 4 * int(self.model.config.get_text_config().vocab_size)
        batch: list[_Asked] = []
        for one in asked:
            if batch and (len(batch) + 1) * len(one.inputs["input_ids"]) * row > LOGITS_BYTES:
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _likeliest(self, batch: Sequence[_Asked]) -> list[list[int]]:
        """Return the `top` most likely pieces in place of each word, the likeliest first."""
        import torch

        rows = [{name: [*values] for name, values in one.inputs.items()} for one in batch]
        for row, one in zip(rows, batch, strict=True):
            row["input_ids"][one.position] = self.tokenizer.mask_token_id
        padded: Any = self.tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**padded).logits
        here = torch.arange(len(batch), device=logits.device)
        masked = logits[here, torch.tensor([one.position for one in batch], device=logits.device)]
        found: list[list[int]] = masked.topk(min(self.top, masked.shape[-1])).indices.tolist()
        return found

    def _whole_words(self, ids: Sequence[int], replaced: int) -> list[str]:
        """Return the texts of those pieces that can be a word by themselves in place of another piece."""
        tokenizer: Any = self.tokenizer
        pieces = tokenizer.convert_ids_to_tokens([one for one in ids if one not in tokenizer.all_special_ids])
        inside = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
        if inside:
            pieces = [piece for piece in pieces if not piece.startswith(inside)]
        else:
            first = tokenizer.convert_ids_to_tokens(replaced).startswith(_FIRST)
            pieces = [piece for piece in pieces if piece.startswith(_FIRST) == first]
        texts = [tokenizer.convert_tokens_to_string([piece]).strip() for piece in pieces]
        return [text for text in texts if text and len(text.split()) == 1]


def _words(text: str, pieces: Sequence[tuple[int, tuple[int, int], int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """Return the place of each word in the text, without spaces around it, and the positions of its pieces."""
    spans: dict[int, tuple[int, int]] = {}
    places: dict[int, list[int]] = {}
    for word, (start, end), position in pieces:
        spans[word] = (spans.get(word, (start, end))[0], end)
        places.setdefault(word, []).append(position)
    return [(_stripped(text, *spans[word]), places[word]) for word in spans]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    word = text[start:end]
    return start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip())


def _is_left(word: str) -> bool:
    return not word.isalpha() or word.lower() in stop_words()
