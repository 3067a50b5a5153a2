"""How a task's models are evaluated: their metrics, the noise of a gain, and what a guesser scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hf_distill.metrics.bootstrap import gain_error, gain_error_of_means
from hf_distill.metrics.chance import Chance, find_chance, uniform
from hf_distill.metrics.score import greater_is_better, score
from hf_distill.metrics.table import AGREEMENT, Undefined

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hf_distill.metrics.answers import Questions

    Array = NDArray[Any]

PERPLEXITY = "perplexity"
# The figure of an evaluation that the perplexity follows from: the mean loss of a label.
LABEL_LOSS = "objective/labels"


@dataclass(frozen=True)
class Predictions:
    """What a model predicts on the eval split, in the order of the split.

    Attributes:
        logits: `(rows, ...)`, classes in the student's order; None for an evaluator that does not need them.
        labels: `(rows, ...)`; None where the split has none, or logits are not needed.
        losses: Sum of the label losses of each example and how many labels it has, float64 `(examples, 2)`.
        texts: Generated, one for each example; empty for an evaluator that generates none.
    """

    logits: Array | None = None
    labels: Array | None = None
    losses: Array = field(default_factory=lambda: np.zeros((0, 2)))
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluator(ABC):
    """Evaluates the models of a task on its eval split.

    Attributes:
        names: Metrics, the headline first; empty where the eval split has no labels and only agreement can be reported.
        needs_logits: Whether `evaluate` takes the logits of the whole split. Where it does not they are never kept.
    """

    needs_logits: ClassVar[bool] = False

    names: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The first metric, or `"agreement"`."""
        return (*self.names, AGREEMENT)[0]

    @property
    def greater_is_better(self) -> bool:
        """Whether a better model has more of the headline metric."""
        return self.headline == AGREEMENT or greater_is_better(self.headline)

    @abstractmethod
    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics by name; NaN (`metrics.table.Undefined`, with the reason) where one has no value."""

    @abstractmethod
    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of `student - baseline` in the headline metric, on an eval split of this size.

        By a paired bootstrap (`metrics.bootstrap.gain_error`). None where it is not known.
        """

    @abstractmethod
    def chance(self, predictions: Predictions) -> Chance | None:
        """Return what a guesser scores in the headline metric; None where that is not known.

        Args:
            predictions: The teacher's, which give a guesser its answers.
        """

    @abstractmethod
    def count(self, predictions: Predictions) -> int | None:
        """Return on how many labelled rows (questions, texts) the metrics are computed; None without labels."""

    def generate(self, model: PreTrainedModel, batch_size: int) -> Sequence[str]:
        """Return the texts that `evaluate` needs of a model, one for each example of the eval split; often none.

        Called on every process at once, each with the whole model; returns the same on all.
        """
        return ()

    def generates(self, metric: str) -> bool:
        """Whether `evaluate` computes a metric from generated texts."""
        return False

    @property
    def in_training(self) -> tuple[str, ...]:
        """The metrics that can tell the best model of a training."""
        return tuple(name for name in self.names if self.needs_logits or self.generates(name))

    def logged(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Return the metrics, and other figures, that follow from those an evaluation during training has logged."""
        return figures


@dataclass(frozen=True)
class LogitsEvaluator(Evaluator):
    """From the logits of the whole eval split: classes, several labels, numbers, tags.

    Attributes:
        kind: What is predicted; see `metrics.score.score`.
        label_names: Of the classes; None where nothing names them.
    """

    needs_logits: ClassVar[bool] = True

    kind: Literal["classes", "binary", "values", "tags"]
    label_names: tuple[str, ...] | None = None

    def score(self, logits: Array, labels: Array) -> Mapping[str, float]:
        """Return the metrics of some rows."""
        return score(self.names, logits, labels, self.kind, self.label_names)

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of all rows that have a label."""
        if not self.names or predictions.logits is None or predictions.labels is None:
            return {}
        return dict(self.score(predictions.logits, predictions.labels))

    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of the gain; rows are resampled."""
        if not self.names or student.logits is None or baseline.logits is None or student.labels is None:
            return None
        return gain_error(self.score, self.headline, student.logits, baseline.logits, student.labels)

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the better of one answer to every row and the teacher's answers to other rows."""
        if not self.names or predictions.logits is None or predictions.labels is None:
            return None
        return find_chance(
            self.score,
            self.headline,
            predictions.logits,
            predictions.labels,
            kind="classes" if self.kind == "tags" else self.kind,
            names=self.label_names,
            greater_is_better=self.greater_is_better,
        )

    def count(self, predictions: Predictions) -> int | None:
        """Return how many rows (words, values) have a label; None where the split has no labels."""
        return None if predictions.labels is None else int(predictions.losses[:, 1].sum())


@dataclass(frozen=True)
class SpanEvaluator(Evaluator):
    """From the start and end logits of windows: exact match and F1 of the answers to questions.

    Attributes:
        questions: Of the eval split, and the windows that ask them.
    """

    needs_logits: ClassVar[bool] = True

    questions: Questions

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the means over the questions whose answer is known."""
        if not self.names or predictions.logits is None:
            return {}
        return self.questions.metrics(predictions.logits)

    def _scores(self, predictions: Predictions) -> Array:
        """Return the headline metric of each question, NaN where it has none."""
        assert predictions.logits is not None
        return self.questions.scores(predictions.logits)[self.headline]

    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of the gain; questions are resampled, whatever their windows."""
        if not self.names:
            return None
        own, other = self._scores(student), self._scores(baseline)
        known = ~np.isnan(own + other)
        return gain_error_of_means(own[known], other[known])

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the better of the same positions in every window and the teacher's positions in other windows."""
        if not self.names or predictions.logits is None or predictions.labels is None:
            return None
        return find_chance(
            self.questions.metrics,
            self.headline,
            predictions.logits,
            predictions.labels,
            kind="spans",
            greater_is_better=self.greater_is_better,
            shuffles=3,  # text by text, which takes its time
        )

    def count(self, predictions: Predictions) -> int | None:
        """Return how many questions the headline metric is defined for; None where the split has no labels."""
        if predictions.labels is None:
            return None
        return int((~np.isnan(self._scores(predictions))).sum()) if self.names else 0


@dataclass(frozen=True)
class LossEvaluator(Evaluator):
    """From the mean loss of a labelled token: the perplexity of a language model, whose logits are too many to keep.

    Attributes:
        classes: Tokens that the head can choose from.
    """

    classes: int

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the perplexity, where it is among the names."""
        if PERPLEXITY not in self.names:
            return {}
        total, labels = predictions.losses.sum(0).tolist()
        return {PERPLEXITY: perplexity(total / labels if labels else None)}

    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of the gain in perplexity; examples are resampled with all their tokens."""
        if self.headline != PERPLEXITY:
            return None

        def metrics(losses: Array, _: Array) -> Mapping[str, float]:
            return self.evaluate(Predictions(losses=losses))

        return gain_error(metrics, PERPLEXITY, student.losses, baseline.losses, student.losses)

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the perplexity of all tokens equally likely."""
        return uniform(self.classes) if self.headline == PERPLEXITY else None

    def count(self, predictions: Predictions) -> int | None:
        """Return how many examples have a token to learn."""
        return int((predictions.losses[:, 1] > 0).sum())

    def logged(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Add the perplexity, which follows from the mean loss of a label."""
        return {**figures, PERPLEXITY: perplexity(figures.get(LABEL_LOSS))}


def perplexity(loss: float | None) -> float:
    """Return the perplexity from the mean loss of a labelled token; None where no token has a label.

    >>> perplexity(0.0)
    1.0
    """
    if loss is None:
        return Undefined("no token has a label")
    if math.isnan(loss):
        return Undefined("of some tokens of the data the log-probability is not given")
    try:
        return math.exp(loss)
    except OverflowError:
        return Undefined("it is too large for a number: the mean loss of a token is above 709")
