"""TinyBERT's data augmentation: words are replaced by what a masked language model expects in their place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hf_distill import parallel
from hf_distill.augmentations.masked_words import MaskedWords, Word
from hf_distill.augmentations.word_vectors import WordVectors
from hf_distill.component import component
from hf_distill.data.augmentation import Augmentation, Rewrite, Row
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.locations import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_AUTO_CLASS = "AutoModelForMaskedLM"


@component
class TinyBertAugmentation(Augmentation):
    """Replace words by what a masked language model expects in their place (Jiao et al. 2020, arXiv 1909.10351).

    Each of the `copies` replaces each word with probability `p` by one of its candidates, drawn at random; copies that
    are equal are one. Words that are not of letters alone, and English stop words, stay. Of a pair, first one text is
    rewritten and then, beside its last copy, the other, as in the published code.

    Attributes:
        model: The masked language model: Hub id, local directory or `package:NAME/PATH`.
        copies: How many copies of each text are made.
        p: Probability that a word is replaced.
        candidates: How many of the most likely words are drawn from.
        embeddings: File with word vectors as text, such as `glove.6B.300d.txt`: words that the model's tokenizer cuts
            into pieces are replaced by their nearest words. Default: such words stay.
        seed: Seed of what is drawn at random.
    """

    name: ClassVar[str] = "tinybert"

    model: str = "google-bert/bert-base-uncased"
    copies: Annotated[int, Field(ge=1)] = 20
    p: Annotated[float, Field(gt=0, le=1)] = 0.4
    candidates: Annotated[int, Field(ge=1)] = 15
    embeddings: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def in_words(self) -> str:
        """Return what will be made."""
        near = f"; words of several pieces by the nearest in {self.embeddings}" if self.embeddings else ""
        return f"up to {self.copies} rows for each text of a row, words replaced by what {self.model} expects{near}"

    def check(self) -> str | None:
        """Refuse a model that is not a masked language model, and word vectors that are not there."""
        if self.embeddings is not None and not Path(self.embeddings).expanduser().is_file():
            raise UserError(f"no such file: '{self.embeddings}'.", key="embeddings")
        if not os.path.exists(resolve(self.model)):
            return f"{self.model}: no such directory, so taken as a Hub id; --check downloads nothing"
        self._opened()
        return None

    def _opened(self) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        """Return configuration and tokenizer of the model.

        Raises:
            UserError: It is not a masked language model, or its tokenizer does not say where words begin.
        """
        from hf_distill.models.loading import open_config, open_tokenizer

        config = open_config(self.model)
        names = config.architectures or []
        if names and not any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names):
            raise UserError(
                f"'{self.model}' is not a masked language model but a {', '.join(names)}. Wanted one with the head "
                "that predicts masked tokens, such as google-bert/bert-base-uncased.",
                key="model",
            )
        tokenizer = open_tokenizer(self.model, key="model")
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            what = "has no mask token" if tokenizer.is_fast else "is not a fast one, which says where words begin"
            raise UserError(f"the tokenizer of '{self.model}' {what}.", key="model")
        return config, tokenizer

    def open(self) -> tuple[Rewrite, str]:
        """Load the masked language model."""
        from hf_distill.models.fingerprint import model_fingerprint
        from hf_distill.models.loading import Head, load_model
        from hf_distill.models.tokenizers import longest_input, tokenizer_state

        config, tokenizer = self._opened()
        model, new = load_model(self.model, Head(_AUTO_CLASS))
        if new:
            raise UserError(f"'{self.model}' lacks the head that predicts masked tokens ({new[0]}).", key="model")
        vectors = WordVectors.read(Path(self.embeddings).expanduser()) if self.embeddings else None
        identity: list[Any] = [model_fingerprint(model), tokenizer_state(tokenizer)]
        if vectors is not None:
            identity += [vectors.words, vectors.vectors.tobytes().hex()]
        model.to(parallel.device())  # type: ignore[arg-type]
        words = MaskedWords(model, tokenizer, longest_input([config], [tokenizer]), self.candidates, vectors)

        def rewrite(rows: Sequence[Row]) -> list[list[Row]]:
            texts = list(dict.fromkeys(text for row in rows for text in row.values()))
            known = dict(zip(texts, words.of(texts), strict=True))
            return [self.rows_of(row, known) for row in rows]

        return rewrite, fingerprint(identity)

    def rows_of(self, row: Row, words: Mapping[str, Sequence[Word]]) -> list[Row]:
        """Return the new rows of a row.

        Args:
            row: Its texts by role.
            words: Text -> its words that may be replaced.
        """
        # Of its own for each row, so that what is drawn does not depend on the other rows.
        chance = Random("\0".join((str(self.seed), *row.values())))
        made: list[Row] = []
        last = dict(row)
        for role, text in row.items():
            for copy in copies_of(text, words[text], self.copies, self.p, chance):
                last = {**last, role: copy}
                made.append(last)
        return made


def copies_of(text: str, words: Sequence[Word], number: int, p: float, chance: Random) -> list[str]:
    """Return the copies of a text that differ from it and from each other (algorithm 1 of Jiao et al. 2020).

    Args:
        text: The text.
        words: Its words that may be replaced, in order.
        number: How many copies are made.
        p: Probability that a word is replaced.
        chance: What is drawn from: for each word a candidate, then whether the candidate takes its place.
    """
    made: dict[str, None] = {text: None}
    for _ in range(number):
        parts, end = [], 0
        for word in words:
            candidate = chance.choice(word.candidates)
            if chance.random() < p:
                parts += [text[end : word.start], candidate]
                end = word.end
        made["".join((*parts, text[end:]))] = None
    return list(made)[1:]
