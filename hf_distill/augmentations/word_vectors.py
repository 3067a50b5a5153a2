"""Nearest words by their vectors, read from a text file such as GloVe's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_distill.errors import UserError

# The most frequent words come first in such files. The published code of TinyBERT reads as many.
WORDS = 100_000


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words and their vectors.

    Attributes:
        words: The words.
        vectors: Theirs, of length 1, `(words, dimensions)`.
    """

    words: tuple[str, ...]
    vectors: NDArray[np.float32]

    @classmethod
    def read(cls, file: Path) -> WordVectors:
        """Return the first 100,000 words of a file with a word and its numbers in each line, separated by spaces.

        Raises:
            UserError: The file does not exist, or a line is not of that form.
        """
        if not file.is_file():
            raise UserError(f"no such file: '{file}'. Wanted word vectors as text, such as GloVe's.", key="embeddings")
        words: list[str] = []
        rows: list[NDArray[np.float32]] = []
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip().split(" ")
                if number == 1 and len(numbers) == 1:  # the header of word2vec's form: how many words and dimensions
                    continue
                rows.append(_vector(numbers, len(rows[0]) if rows else None, f"{file}, line {number}"))
                words.append(word)
                if len(words) == WORDS:
                    break
        if not rows:
            raise UserError(f"'{file}' has no word in it.", key="embeddings")
        vectors = np.stack(rows)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return cls(tuple(words), np.asarray(vectors / lengths, dtype=np.float32))

    def nearest(self, word: str, number: int) -> list[str]:
        """Return the words of the highest cosine, the nearest first and without the word itself; none if unknown.

        A word that is not there as it is written is looked up in lower case; the words found then begin with a capital
        where the word does.
        """
        place = self._places.get(word, self._places.get(word.lower()))
        if place is None:
            return []
        cosines = self.vectors @ self.vectors[place]
        cosines[place] = -np.inf
        found = [self.words[index] for index in np.argsort(-cosines, kind="stable")[:number] if index != place]
        return [one.title() for one in found] if word.istitle() else found

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


def _vector(numbers: list[str], wanted: int | None, place: str) -> NDArray[np.float32]:
    try:
        vector = np.array(numbers, dtype=np.float32)
    except ValueError:
        vector = np.zeros(0, dtype=np.float32)
    if not len(vector) or len(vector) != (wanted or len(vector)) or not np.isfinite(vector).all():
        of = f" of {wanted}" if wanted else ""
        raise UserError(
            f"{place}: wanted a word and the numbers{of} of its vector, with spaces between.", key="embeddings"
        )
    return vector
