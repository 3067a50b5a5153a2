"""A student without the tokens that the data never uses: tokenizer and embeddings are cut together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from hf_distill.component import component
from hf_distill.errors import UserError, did_you_mean, under
from hf_distill.models.cut_tokenizer import Cut, cut_tokenizer
from hf_distill.models.token_parts import Pieces
from hf_distill.students.around import AroundStudent
from hf_distill.students.base import Made, Student
from hf_distill.students.cut_vocabulary import cut_model, rows_of, special_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.loading import Head
    from hf_distill.models.token_counts import TokenCounts


@component
class PruneVocabulary(AroundStudent):
    """Another student, with the tokens alone that the data uses.

    Tokenizer, embeddings and output head are cut together, and saved together. A token stays if it occurs in the train
    split or in `data.transfer`; and always if it is a special token, or if some text could not be written without it:
    single characters or bytes, and what a token is merged from. So any text can still be read, and rare words are
    split into smaller tokens. The texts that were counted are split as before.

    Attributes:
        student: The student to start from. Default: the teacher, whole.
        at_least: How often a token must occur to stay. With 0 all tokens stay.
        tokens: Number of tokens of the student: the most frequent ones, among those that occur `at_least` so often.
            Default: no limit.
        keep: Tokens that stay although they are rarer, as the tokenizer writes them, such as `##ness`. Default: none.
    """

    name: ClassVar[str] = "prune_vocabulary"

    at_least: Annotated[int, Field(ge=0)] = 1
    tokens: Annotated[int, Field(ge=1)] | None = None
    keep: list[str] = Field(default_factory=list)

    @field_validator("student")
    @classmethod
    def _can_be_cut(cls, student: Student) -> Student:
        for one in student.every_entry():
            if isinstance(one, PruneVocabulary):
                raise ValueError("its vocabulary is cut already. Keep one prune_vocabulary")
        return student

    def cut(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, count: Callable[[], TokenCounts]
    ) -> Cut | None:
        """Return the part of a vocabulary that stays; None if nothing is left out.

        Raises:
            UserError: The tokenizer or the model cannot be cut, `keep` has an unknown token, or `tokens` is fewer
                than must stay.
        """
        with under("name"):
            pieces, rows = Pieces.of(tokenizer), rows_of(config)
        wanted = self._wanted(pieces)
        if self.at_least == 0 and self.tokens is None:
            return None
        counts = count()
        always = pieces.needed() | {number for number in special_ids(config) if number in pieces.tokens}
        always = _with_parts(pieces, (*always, *wanted))
        often = np.flatnonzero(counts.train >= max(self.at_least, 1))
        frequent = often[np.argsort(-counts.train[often], kind="stable")].tolist()
        if self.at_least == 0:
            frequent = [*frequent, *sorted(set(pieces.tokens).difference(frequent))]
        kept = sorted(self._within_size(pieces, always, frequent))
        if len(kept) >= min(len(pieces.tokens), rows):
            return None
        here = np.zeros(len(counts.eval), dtype=bool)
        here[kept] = True
        split = float(counts.eval[~here].sum() / max(counts.eval.sum(), 1))
        with under("name"):
            return Cut(tuple(kept), cut_tokenizer(tokenizer, kept), len(pieces.tokens), split)

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Return the inner student with the rows of the tokens that stay.

        Raises:
            UserError: The model cannot be cut.
        """
        cut = rows.cut
        made = self.inner(teacher, head if cut is None else _uncut(head, cut), rows.uncut())
        if cut is None:
            return Made(made.model, {**made.facts, "vocabulary": "all tokens stay"})
        smaller = cut_model(made.model, cut.kept)
        facts = {
            "tokens": {"before": cut.whole, "after": len(cut.kept)},
            "parameters": {"before": made.model.num_parameters(), "after": smaller.num_parameters()},
            "of the embeddings": {"before": _embeddings(made.model), "after": _embeddings(smaller)},
            "share of eval tokens that are left out, and split into smaller ones": round(cut.split, 4),
        }
        return Made(smaller, {**made.facts, "vocabulary": facts})

    def _wanted(self, pieces: Pieces) -> list[int]:
        """Return the ids of the tokens in `keep`."""
        for index, token in enumerate(self.keep):
            if token not in pieces.ids:
                hint = did_you_mean(token, pieces.ids)
                raise UserError(
                    f"the tokenizer has no token {token!r}.{hint if hint.startswith(' Did') else ''}",
                    key=f"keep[{index}]",
                )
        return [pieces.ids[token] for token in self.keep]

    def _within_size(self, pieces: Pieces, always: set[int], frequent: Iterable[int]) -> set[int]:
        """Return the tokens that stay: those that must, and the most frequent ones with their parts."""
        if self.tokens is None:
            return always | _with_parts(pieces, frequent)
        if self.tokens < len(always):
            raise UserError(
                f"{self.tokens:,} tokens are too few: {len(always):,} must stay, so that any text can be written. Give "
                f"at least {len(always):,}.",
                key="tokens",
            )
        kept = set(always)
        for number in frequent:
            if len(kept) >= self.tokens:
                break
            more = pieces.with_parts(number) - kept
            if len(kept) + len(more) <= self.tokens:
                kept |= more
        return kept


def _with_parts(pieces: Pieces, numbers: Iterable[int]) -> set[int]:
    return {part for number in numbers for part in pieces.with_parts(number)}


def _uncut(head: Head, cut: Cut) -> Head:
    """Return the head with the ids that special tokens have in the whole vocabulary."""
    ids = {
        key: cut.kept[value]
        for key, value in head.settings.items()
        if key.endswith("_token_id") and isinstance(value, int)
    }
    return replace(head, settings={**head.settings, **ids})


def _embeddings(model: PreTrainedModel) -> int:
    untyped: Any = model
    return int(untyped.get_input_embeddings().weight.numel())
