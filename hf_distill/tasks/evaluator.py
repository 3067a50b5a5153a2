"""How a task's models are evaluated: metrics, the standard error of a gain, and the score of a trivial guesser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hf_distill.data.labelled import fingerprint_of_labels
from hf_distill.metrics.bootstrap import Units, gain_error
from hf_distill.metrics.chance import Chance, find_chance, uniform
from hf_distill.metrics.score import greater_is_better, row_scores, score
from hf_distill.metrics.table import AGREEMENT, OF_CLASSES, Undefined

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hf_distill.metrics.answers import Questions

    Array = NDArray[Any]

PERPLEXITY = "perplexity"
# Key of the mean loss of a label in an evaluation; the perplexity is computed from it.
LABEL_LOSS = "objective/labels"


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on the eval split, in the order of the split.

    Attributes:
        logits: `(rows, ...)`, classes in the student's order; None if the evaluator does not need them.
        labels: `(rows, ...)`; None if the split has no labels or the evaluator needs no logits.
        losses: Sum of the label losses of each example and its number of labels, float64 `(examples, 2)`.
        texts: Generated texts, one for each example, None where none was generated; empty if the evaluator generates
            none.
    """

    logits: Array | None = None
    labels: Array | None = None
    losses: Array = field(default_factory=lambda: np.zeros((0, 2)))
    texts: Sequence[str | None] = ()


@dataclass(frozen=True)
class Evaluator(ABC):
    """Evaluates the models of a task on its eval split.

    Attributes:
        names: Metrics, the headline metric first; empty if the eval split has no labels (only agreement is reported).
        needs_logits: Whether `evaluate` needs the logits of the whole split. If not, they are never stored.
    """

    needs_logits: ClassVar[bool] = False

    names: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The first metric; `"agreement"` without metrics."""
        return (*self.names, AGREEMENT)[0]

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher value of the headline metric is better."""
        return self.headline == AGREEMENT or greater_is_better(self.headline)

    @abstractmethod
    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics by name; NaN (`metrics.table.Undefined`, with the reason) if a metric has no value."""

    @property
    def has_units(self) -> bool:
        """Whether `units` returns something, so that the headline metric can be reported by group."""
        return False

    def units(self, predictions: Predictions) -> Units | None:
        """Return what the headline metric is computed from, unit by unit, in the order of `Prepared.groups`.

        From this follow the metric of each group of the eval split, and the noise of all differences. None if it cannot
        be computed from parts of the split.
        """
        return None

    @property
    def chooses_classes(self) -> bool:
        """Whether `choices` returns something: each row has classes or labels."""
        return False

    def choices(self, predictions: Predictions) -> tuple[Array, Array] | None:
        """Return which classes are predicted, and which are true; None if the task does not choose among classes.

        Returns:
            Two arrays, bool `(units, classes)`.
        """
        return None

    def gain_error(self, student: Predictions, baseline: Predictions) -> float | None:
        """Return the standard error of `student - baseline` in the headline metric, on an eval split of this size.

        Computed by a paired bootstrap over units (`metrics.bootstrap.gain_error`). None if it cannot be computed.
        """
        own, other = self.units(student), self.units(baseline)
        return None if own is None or other is None else gain_error(own, other)

    def resampled(self, predictions: Predictions) -> tuple[float, ...]:
        """Return the headline metric on resampled eval splits of this size; empty if it cannot be computed.

        All models that are evaluated on the same rows are resampled in the same way, so that the differences of two
        such lists are those of a paired bootstrap, as in `gain_error`.
        """
        units = self.units(predictions)
        values = [] if units is None else units.resampled().tolist()
        return tuple(values) if all(map(math.isfinite, values)) else ()

    @abstractmethod
    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the headline metric of a trivial guesser; None if it cannot be computed.

        Args:
            predictions: The teacher's predictions, from which the guesser takes its own.
        """

    @abstractmethod
    def count(self, predictions: Predictions) -> int | None:
        """Return the number of labelled rows (questions, texts) behind the metrics; None without labels."""

    def conditions(self, split: Dataset) -> dict[str, dict[str, str]]:
        """Return what metrics depend on beside the rows, so that two runs are compared only where it is the same.

        Args:
            split: The tokenised eval split.

        Returns:
            Metric -> what, in words -> its value, or a fingerprint of it; without metrics that depend on nothing else.
        """
        return {}

    def generate(self, model: PreTrainedModel, batch_size: int) -> Sequence[str | None]:
        """Return the texts that a model generates for the eval split, one for each example; empty if none are needed.

        All processes call this together, each with the whole model, and all get the same texts.
        """
        return ()

    def generates(self, metric: str) -> bool:
        """Whether `evaluate` computes a metric from generated texts."""
        return False

    @property
    def in_training(self) -> tuple[str, ...]:
        """The metrics that an evaluation during training can compute, to select the best model."""
        return tuple(name for name in self.names if self.needs_logits or self.generates(name))

    def of_examples(self, values: Array) -> Array:
        """Return the value of each example that the metrics count, of a value for each row of the eval split."""
        return values

    def for_other_rows(self) -> Evaluator:
        """Return an evaluator for other rows with labels than those of the eval split."""
        return self

    def on(self, rows: Sequence[int]) -> tuple[Evaluator, Sequence[int]]:
        """Return an evaluator for some rows of the eval split, without generated texts; and the rows that it needs.

        Args:
            rows: Numbers of rows, in order.
        """
        return self, rows

    def logged(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Return the figures of an evaluation during training, with the metrics that can be computed from them."""
        return figures


@dataclass(frozen=True)
class LogitsEvaluator(Evaluator):
    """Evaluates the logits of the whole eval split: classes, several labels, numbers or tags.

    Attributes:
        kind: What is predicted, as in `metrics.score.score`.
        label_names: Class names; None if they have no names.
    """

    needs_logits: ClassVar[bool] = True

    kind: Literal["classes", "binary", "values", "tags"]
    label_names: tuple[str, ...] | None = None

    def score(self, logits: Array, labels: Array) -> Mapping[str, float]:
        """Return the metrics of some rows."""
        return score(self.names, logits, labels, self.kind, self.label_names)

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics over all rows with a label."""
        if not self.names or predictions.logits is None or predictions.labels is None:
            return {}
        return dict(self.score(predictions.logits, predictions.labels))

    @property
    def has_units(self) -> bool:
        """Whether there is a metric."""
        return bool(self.names)

    def units(self, predictions: Predictions) -> Units | None:
        """Return the rows (for tags: sentences): logits and labels."""
        logits, labels = predictions.logits, predictions.labels
        if not self.names or logits is None or labels is None:
            return None
        # Metrics of one's own may have the names of ours.
        ours = type(self).score is LogitsEvaluator.score
        if ours and (scores := row_scores(self.headline, logits, labels, self.kind)) is not None:
            return Units.means(scores)
        of_headline = replace(self, names=self.names[:1])

        def metric(logits: Array, labels: Array) -> float:
            return of_headline.score(logits, labels).get(self.headline, math.nan)

        return Units((logits, labels), metric, self._labelled(labels))

    @property
    def chooses_classes(self) -> bool:
        """Whether rows have classes or labels."""
        return self.kind in ("classes", "binary")

    def choices(self, predictions: Predictions) -> tuple[Array, Array] | None:
        """Return which classes (or labels) are predicted and true of each row."""
        logits, labels = predictions.logits, predictions.labels
        if not self.chooses_classes or logits is None or labels is None:
            return None
        if self.kind == "binary":
            return logits.reshape(len(logits), -1) > 0, labels.reshape(len(labels), -1) > 0.5
        every = np.arange(logits.shape[-1])
        return logits.argmax(-1)[:, None] == every, labels[:, None] == every

    def conditions(self, split: Dataset) -> dict[str, dict[str, str]]:
        """Return the classes of metrics that depend on their order and number."""
        if self.kind != "classes" or self.label_names is None:
            return {}
        return {name: {"classes": ", ".join(self.label_names)} for name in self.names if name in OF_CLASSES}

    def _labelled(self, labels: Array) -> Array:
        """Return which rows have a label, bool `(rows,)`, as `metrics.score.score` reads them."""
        columns = labels.reshape(len(labels), -1)
        if self.kind in ("classes", "tags"):
            return np.asarray((columns >= 0).any(-1))
        return np.asarray(~np.isnan(columns.astype(np.float64)).any(-1))

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the better of two guessers: one prediction for all rows, or the teacher's predictions shuffled."""
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
        """Return the number of rows (words, values) with a label; None if the split has no labels."""
        return None if predictions.labels is None else int(predictions.losses[:, 1].sum())


@dataclass(frozen=True)
class SpanEvaluator(Evaluator):
    """Evaluates start and end logits of windows: exact match and F1 of the answers.

    Attributes:
        questions: The questions of the eval split and their windows.
    """

    needs_logits: ClassVar[bool] = True

    questions: Questions

    def of_examples(self, values: Array) -> Array:
        """Return the value of each question, of a value for each window; without metrics, that of each window."""
        if not self.names:
            return values
        found = np.empty(len(self.questions.contexts), dtype=values.dtype)
        found[self.questions.row] = values
        return found

    def for_other_rows(self) -> SpanEvaluator:
        """Return an evaluator without metrics, which are computed question by question on the eval split."""
        return replace(self, names=())

    def on(self, rows: Sequence[int]) -> tuple[Evaluator, Sequence[int]]:
        """Return an evaluator for the questions of some windows, and all windows of these questions."""
        if not self.names:
            return self, rows
        part, windows = self.questions.of_windows(rows)
        return replace(self, questions=part), windows

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the means over the questions with a known answer."""
        if not self.names or predictions.logits is None:
            return {}
        return self.questions.metrics(predictions.logits)

    def _scores(self, predictions: Predictions) -> Array:
        """Return the headline metric of each question, NaN if its answer is not known."""
        assert predictions.logits is not None
        return self.questions.scores(predictions.logits)[self.headline]

    @property
    def has_units(self) -> bool:
        """Whether there is a metric."""
        return bool(self.names)

    def units(self, predictions: Predictions) -> Units | None:
        """Return the questions, each with the score of its answer over all its windows."""
        return Units.means(self._scores(predictions)) if self.names and predictions.logits is not None else None

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the better of two guessers: one position for all windows, or the teacher's positions shuffled."""
        if not self.names or predictions.logits is None or predictions.labels is None:
            return None
        return find_chance(
            self.questions.metrics,
            self.headline,
            predictions.logits,
            predictions.labels,
            kind="spans",
            greater_is_better=self.greater_is_better,
            shuffles=3,  # few, as texts are compared one by one, which is slow
        )

    def count(self, predictions: Predictions) -> int | None:
        """Return the number of questions with a headline metric; None if the split has no labels."""
        if predictions.labels is None:
            return None
        return int((~np.isnan(self._scores(predictions))).sum()) if self.names else 0


@dataclass(frozen=True)
class LossEvaluator(Evaluator):
    """Evaluates the mean loss of a labelled token: the perplexity. Logits over a vocabulary are too large to store.

    Attributes:
        classes: Number of tokens in the vocabulary of the head.
    """

    classes: int

    def evaluate(self, predictions: Predictions) -> dict[str, float]:
        """Return the perplexity, if it is among the metrics."""
        if PERPLEXITY not in self.names:
            return {}
        total, labels = predictions.losses.sum(0).tolist()
        return {PERPLEXITY: perplexity(total / labels if labels else None)}

    def conditions(self, split: Dataset) -> dict[str, dict[str, str]]:
        """Return the tokens of the perplexity: those of a tokenizer, of texts that may be cut."""
        if PERPLEXITY not in self.names or "labels" not in split.column_names:
            return {}
        return {PERPLEXITY: {"tokens": fingerprint_of_labels(split)}}

    @property
    def has_units(self) -> bool:
        """Whether the headline metric is the perplexity."""
        return self.headline == PERPLEXITY

    def units(self, predictions: Predictions) -> Units | None:
        """Return the examples with all their tokens: the losses of their labels."""
        if self.headline != PERPLEXITY:
            return None

        def metric(losses: Array) -> float:
            return self.evaluate(Predictions(losses=losses))[PERPLEXITY]

        return Units((predictions.losses,), metric, predictions.losses[:, 1] > 0)

    def chance(self, predictions: Predictions) -> Chance | None:
        """Return the perplexity of a model to which all tokens are equally likely."""
        return uniform(self.classes) if self.headline == PERPLEXITY else None

    def count(self, predictions: Predictions) -> int | None:
        """Return the number of examples with a labelled token."""
        return int((predictions.losses[:, 1] > 0).sum())

    def logged(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Return the figures with the perplexity added, computed from the mean loss of a label."""
        return {**figures, PERPLEXITY: perplexity(figures.get(LABEL_LOSS))}


def perplexity(loss: float | None) -> float:
    """Return the perplexity for the mean loss of a labelled token, `exp(loss)`; NaN with a reason if undefined.

    >>> perplexity(0.0)
    1.0
    """
    if loss is None:
        return Undefined("no token has a label")
    if math.isnan(loss):
        return Undefined("the log-probability of some tokens of the data is not given")
    try:
        return math.exp(loss)
    except OverflowError:
        return Undefined("it is too large for a number: the mean loss of a token is above 709")
