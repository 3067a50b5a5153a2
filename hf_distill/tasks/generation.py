"""Evaluating models by the texts they generate, on every process a share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.metrics.text import gain_error_of_texts, score_texts, takes_texts
from hf_distill.models.patching import replaced
from hf_distill.tasks.evaluator import LossEvaluator, Predictions
from hf_distill.tasks.language import pad

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"


@dataclass(frozen=True)
class Generator:
    """Has encoder-decoder models generate a text for each row of the eval split.

    Attributes:
        split: The eval split, sorted by length, with `input_ids` and, as text, `reference`.
        tokenizer: Of both models.
        pad_token_id: Stands where there is no token; masked.
        settings: What all models generate with; the rest is each model's own `generation_config`.
    """

    split: Dataset
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The texts of the split that models are to generate."""
        found: list[str] = self.split[REFERENCE][:]
        return found

    def texts(self, model: PreTrainedModel, batch_size: int) -> list[str]:
        """Return what a model generates for each row of the split, in its order, the same on every process."""
        from hf_distill.models.inspection import evaluating

        # Every second row rather than the first half: rows are sorted, and the long ones would all be on one process.
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
    """Have a model generate without its own limit: of two, Transformers says with every batch which one it takes."""
    config = copy.deepcopy(model.generation_config)
    config.max_length = None
    with replaced(model, "generation_config", config):
        yield


@dataclass(frozen=True)
class TextEvaluator(LossEvaluator):
    """From generated texts: ROUGE, BLEU, chrF; beside them the perplexity, which takes no generating.

    Attributes:
        generator: Has a model generate them.
    """

    generator: Generator

    def generate(self, model: PreTrainedModel, batch_size: int) -> Sequence[str]:
        """Return what the model generates for each example of the eval split."""
        return self.generator.texts(model, batch_size)

    def generates(self, metric: str) -> bool:
        """Whether a metric is one of generated texts."""
        return metric in self.names and takes_texts(metric)

    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of the gain; texts are resampled."""
        if not self.generates(self.headline):
            return super().gain_error(student, baseline)
        return gain_error_of_texts(self.headline, student.texts, baseline.texts, self.generator.references)

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the perplexity, where it is among the names, and the metrics of texts, if any were generated."""
        found = super().evaluate(predictions)
        if predictions.texts:
            found |= score_texts(self.names, predictions.texts, self.generator.references)
        return found
