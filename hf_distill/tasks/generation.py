"""Evaluate models by the texts that they generate; processes share the work."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.metrics.text import has_units, score_texts, takes_texts, units_of_texts
from hf_distill.models.patching import replaced
from hf_distill.tasks.evaluator import LossEvaluator, Predictions
from hf_distill.tasks.language import pad

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.metrics.bootstrap import Units

REFERENCE = "reference"


@dataclass(frozen=True)
class Generator:
    """Generates a text for each row of the eval split with an encoder-decoder model.

    Attributes:
        split: The eval split, sorted by length, with `input_ids` and the text `reference`.
        tokenizer: Tokenizer of both models.
        pad_token_id: Id of padding, which the attention mask hides.
        settings: Arguments of `generate` for all models; each model's own `generation_config` sets the rest.
    """

    split: Dataset
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The reference texts of the split."""
        found: list[str] = self.split[REFERENCE][:]
        return found

    def texts(self, model: PreTrainedModel, batch_size: int) -> list[str]:
        """Return the generated text of each row in the order of the split, the same on every process."""
        from hf_distill.models.inspection import evaluating

        # Every second row, not the first half: rows are sorted by length, and one process would get all the long ones.
        rows = parallel.share_of(len(self.split))
        with evaluating(model), _one_limit(model):
            made = list(zip(rows, self._generate(model, rows, batch_size), strict=True))
        return [text for _, text in sorted(chain.from_iterable(parallel.from_all(made)))]

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


@contextmanager
def _one_limit(model: PreTrainedModel) -> Iterator[None]:
    """Context manager: remove a model's own `max_length`. With two limits, Transformers logs a line for every batch."""
    config = copy.deepcopy(model.generation_config)
    config.max_length = None
    with replaced(model, "generation_config", config):
        yield


@dataclass(frozen=True)
class TextEvaluator(LossEvaluator):
    """Evaluates generated texts (ROUGE, BLEU, chrF), and the perplexity, which needs no generated text.

    Attributes:
        generator: Generates the texts.
    """

    generator: Generator

    def for_other_rows(self) -> TextEvaluator:
        """Return an evaluator without the metrics of generated texts, whose references are those of the eval split."""
        return replace(self, names=tuple(name for name in self.names if not self.generates(name)))

    def generate(self, model: PreTrainedModel, batch_size: int) -> Sequence[str]:
        """Return the generated text of each example of the eval split."""
        return self.generator.texts(model, batch_size)

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
        return units_of_texts(self.headline, predictions.texts, self.generator.references)

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the perplexity, if it is among the metrics, and the metrics of generated texts, if there are any."""
        found = super().evaluate(predictions)
        if predictions.texts:
            found |= score_texts(self.names, predictions.texts, self.generator.references)
        return found
