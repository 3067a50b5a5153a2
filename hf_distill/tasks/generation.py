"""Evaluate models by the texts that they generate; processes share the work."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill import parallel
from hf_distill.files.fingerprint import fingerprint
from hf_distill.metrics.bootstrap import Units
from hf_distill.metrics.text import has_units, score_texts, takes_texts, units_of_texts
from hf_distill.models.patching import replaced
from hf_distill.tasks.evaluator import PERPLEXITY, Evaluator, LossEvaluator, Predictions
from hf_distill.tasks.language import pad

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"


@dataclass(frozen=True)
class Generator(ABC):
    """Generates a text for rows of the eval split.

    Attributes:
        split: The eval split, sorted by length.
        tokenizer: Tokenizer of both models.
        rows: For which rows of the split a text is generated, ascending.
    """

    split: Dataset
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[int]

    @property
    @abstractmethod
    def references(self) -> list[Any]:
        """The reference text of each of `rows`; None for a row that has none."""

    @property
    @abstractmethod
    def prompts(self) -> list[str]:
        """What each of `rows` is generated from, as text."""

    @property
    @abstractmethod
    def how(self) -> str:
        """How a text is generated, in words: what decides on its length, and how tokens are chosen."""

    def texts(self, model: PreTrainedModel, batch_size: int) -> list[str | None]:
        """Return the generated text of each row of the split, None for rows without; the same on every process."""
        # Every second row, not the first half: rows are sorted by length, and one process would get all the long ones.
        own = [self.rows[place] for place in parallel.share_of(len(self.rows))]
        texts = self._texts(model, own, batch_size)
        made = dict(chain.from_iterable(parallel.from_all(list(zip(own, texts, strict=True)))))
        return [made.get(row) for row in range(len(self.split))]

    @abstractmethod
    def _texts(self, model: PreTrainedModel, rows: Sequence[int], batch_size: int) -> Sequence[str]:
        """Return the generated text of some rows of the split, in their order."""


@dataclass(frozen=True)
class SourceGenerator(Generator):
    """Generates with an encoder-decoder model from the source of each row.

    Attributes:
        split: The eval split, with `input_ids` and the text `reference`.
        pad_token_id: Id of padding, which the attention mask hides.
        settings: Arguments of `generate` for all models; each model's own `generation_config` sets the rest.
        longest: Number of tokens of the longest reference of the split.
    """

    pad_token_id: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    longest: int = 0

    @property
    def how(self) -> str:
        """Number of beams and largest number of tokens."""
        most = limit(self.settings.get("max_new_tokens"), self.longest)
        return f"num_beams {self.settings.get('num_beams', 1)}, {most}"

    @property
    def references(self) -> list[str]:
        """The targets."""
        every: list[str] = self.split[REFERENCE][:]
        return [every[row] for row in self.rows]

    @property
    def prompts(self) -> list[str]:
        """The sources."""
        ids = self.split.select(self.rows)["input_ids"][:]
        found: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found

    def _texts(self, model: PreTrainedModel, rows: Sequence[int], batch_size: int) -> Sequence[str]:
        from hf_distill.models.inspection import evaluating

        with evaluating(model), _one_limit(model):
            return list(self._generate(model, rows, batch_size))

    def _generate(self, model: PreTrainedModel, rows: Sequence[int], batch_size: int) -> Iterator[str]:
        untyped: Any = model
        for start in range(0, len(rows), batch_size):
            ids = self.split[list(rows[start : start + batch_size])]["input_ids"]
            made = untyped.generate(
                input_ids=pad(ids, self.pad_token_id).to(model.device),
                attention_mask=pad([[1] * len(row) for row in ids], 0).to(model.device),
                do_sample=False,
                **self.settings,
            )
            yield from self.tokenizer.batch_decode(made, skip_special_tokens=True)


def limit(tokens: int | None, longest: int) -> str:
    """Return the largest number of tokens of a generated text, in words that are the same for other tokenizers.

    >>> limit(64, 80), limit(80, 80)
    ('max_new_tokens 64', 'max_new_tokens of the longest reference')
    """
    return f"max_new_tokens {'of the longest reference' if tokens == longest else tokens}"


@contextmanager
def _one_limit(model: PreTrainedModel) -> Iterator[None]:
    """Context manager: remove a model's own `max_length`. With two limits, Transformers logs a line for every batch."""
    config = copy.deepcopy(model.generation_config)
    config.max_length = None
    with replaced(model, "generation_config", config):
        yield


def evenly(number: int, of: int) -> list[int]:
    """Return up to `number` places of `of`, spread evenly and the same each time.

    >>> evenly(3, 10), evenly(5, 2)
    ([0, 4, 9], [0, 1])
    """
    return sorted({round(place) for place in np.linspace(0, of - 1, min(number, of))}) if of else []


@dataclass(frozen=True)
class TextEvaluator(LossEvaluator):
    """Evaluates generated texts (ROUGE, BLEU, exact match), and the perplexity, which needs no generated text.

    Attributes:
        generator: Generates the texts.
    """

    generator: Generator

    def for_other_rows(self) -> TextEvaluator:
        """Return an evaluator without the metrics of generated texts, whose references are those of the eval split."""
        return replace(self, names=tuple(name for name in self.names if not self.generates(name)))

    def on(self, rows: Sequence[int]) -> tuple[Evaluator, Sequence[int]]:
        """Return an evaluator of the perplexity alone, and the rows."""
        return LossEvaluator((PERPLEXITY,), self.classes), rows

    def generate(self, model: PreTrainedModel, batch_size: int) -> Sequence[str | None]:
        """Return the generated text of each example of the eval split; None for those that have none."""
        return self.generator.texts(model, batch_size)

    def conditions(self, split: Dataset) -> dict[str, dict[str, str]]:
        """Return the references of metrics of generated texts, and how these are generated; the perplexity's tokens."""
        texts = [name for name in self.names if self.generates(name)]
        # Sorted, since the order of the rows, and spaces in decoded texts, depend on the tokenizer.
        references = sorted(" ".join(str(one).split()) for one in self.generator.references)
        of_texts = {"references": fingerprint(references), "ways to generate": self.generator.how}
        return super().conditions(split) | dict.fromkeys(texts, of_texts)

    def generates(self, metric: str) -> bool:
        """Whether a metric is computed from generated texts."""
        return metric in self.names and takes_texts(metric)

    @property
    def has_units(self) -> bool:
        """Whether the headline metric is the perplexity, or counted text by text."""
        return has_units(self.headline) if self.generates(self.headline) else super().has_units

    def units(self, predictions: Predictions) -> Units | None:
        """Return the texts, if the headline metric is one of texts."""
        if not self.generates(self.headline):
            return super().units(predictions)
        generator = self.generator
        found = units_of_texts(self.headline, self._made(predictions), generator.references, generator.prompts)
        return None if found is None else found.among(generator.rows, len(generator.split))

    def _made(self, predictions: Predictions) -> list[str]:
        """Return the texts of the generator's rows."""
        return [text for text in predictions.texts if text is not None]

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the perplexity, if it is among the metrics, and the metrics of generated texts, if there are any."""
        found = super().evaluate(predictions)
        if predictions.texts:
            generator = self.generator
            found |= score_texts(self.names, self._made(predictions), generator.references, generator.prompts)
        return found

    def count(self, predictions: Predictions) -> int | None:
        """Return the number of generated texts behind the headline metric, or of examples with a labelled token."""
        return len(self.generator.rows) if self.generates(self.headline) else super().count(predictions)
