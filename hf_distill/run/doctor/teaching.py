"""Is the teacher any good: its metric against a guess, and under another order of the labels?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.data.label_names import shorten
from hf_distill.models.quantization import size
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.sampling import chosen, flat, sample
from hf_distill.tasks.evaluator import PERPLEXITY, perplexity

if TYPE_CHECKING:
    from hf_distill.metrics.chance import Chance
    from hf_distill.models.target_model import TargetSource
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.evaluator import Evaluator, Predictions

NAME = "teacher"
# With fewer rows, a good teacher may look like a guess.
ENOUGH = 50
# How much the share of right predictions rises if labels are in another order, to be more than luck.
RISES = 0.2
# Floating-point operations that a teacher may take on a CPU, well under a minute; an accelerator does 100 times more.
OPERATIONS = 2e12
FEWEST, MOST = 16, 1_000


@dataclass(frozen=True)
class PartlyScored:
    """The teacher on some rows of the eval split.

    Attributes:
        evaluator: Evaluates these rows.
        predictions: Its predictions.
        data: The data as it reads it.
        rows: Their number.
        total: Number of rows of the eval split.
    """

    evaluator: Evaluator
    predictions: Predictions
    data: Prepared
    rows: int
    total: int

    @property
    def on(self) -> str:
        """Which rows these are, in words."""
        return f"{self.rows:,} eval rows" if self.rows == self.total else f"{self.rows:,} of {self.total:,} eval rows"


def teaching(opened: Opened) -> Iterator[Finding]:
    """Yield the teacher's headline metric on some eval rows, compared with a guess and with other orders of labels."""
    scored = _score(opened, runs_here(opened))
    name = scored.evaluator.headline
    value = scored.evaluator.evaluate(scored.predictions).get(name, math.nan)
    said = f"{name.replace('_', ' ')} {_shown(value)} on {scored.on}"
    if (other := _other_order(opened, scored, said)) is not None:
        yield other
        return
    chance = scored.evaluator.chance(scored.predictions)
    if chance is None or math.isnan(value):
        yield Finding(NAME, "ok" if chance is None else "warning", said)
        return
    if name == PERPLEXITY and (frequency := _by_frequency(scored.data)) is not None:
        chance = frequency
    guess = f"{_shown(chance.value)} by a guess ({chance.answer})"
    if not chance.explains(value, greater_is_better=scored.evaluator.greater_is_better):
        yield Finding(NAME, "ok", f"{said}, {guess}")
        return
    yield Finding(
        NAME,
        "mistake" if scored.rows >= ENOUGH else "warning",
        f"{said} is no better than {guess}",
        "Is it trained for this task, and on these labels and this language? Its targets would be noise.",
    )


def runs_here(opened: Opened) -> TargetSource:
    """Return the teacher, trained, to be asked about some rows.

    Raises:
        CannotCheck: It is not trained yet, it follows the student, or asking it costs more than a forward pass here.
    """
    source = opened.trained_teacher
    if source.follows_student:
        raise CannotCheck("the teacher is made of the student, which is not trained yet")
    if not source.models and opened.run.stored is None:
        raise CannotCheck("the teacher does not run here, and is not asked")
    return source


def budget(opened: Opened, source: TargetSource) -> int:
    """Return on how many rows the teacher may run, by its size and the length of the rows."""
    parameters = size(source.model)[0]
    tokens = float(np.mean(column(opened.prepared.eval, "length").to_numpy()))
    operations = OPERATIONS * (1 if opened.run.args.device.type == "cpu" else 100)
    return int(np.clip(operations / max(2 * parameters * tokens, 1), FEWEST, MOST))


def _score(opened: Opened, source: TargetSource) -> PartlyScored:
    fitter, model = opened.run.for_teacher(source)
    prepared = fitter.prepared
    if not prepared.evaluator.names:
        raise CannotCheck("the eval split has no labels")
    rows = chosen(len(prepared.eval), budget(opened, source)).tolist()
    evaluator, rows = prepared.evaluator.on(rows)
    part = replace(fitter, prepared=replace(prepared, eval=prepared.eval.select(rows), evaluator=evaluator))
    predictions, _ = part.predict(model, opened.run.training, whose="the teacher")
    return PartlyScored(evaluator, predictions, prepared, len(rows), len(prepared.eval))


def _other_order(opened: Opened, scored: PartlyScored, said: str) -> Finding | None:
    """Return a mistake if most predictions would be right with the labels in another order."""
    from scipy.optimize import linear_sum_assignment

    found = _classes(scored)
    if found is None:
        return None
    predicted, true, width = found
    table = np.zeros((width, width), dtype=np.int64)  # predicted, true
    np.add.at(table, (predicted, true), 1)
    _, order = linear_sum_assignment(-table)
    right, would = np.trace(table) / len(true), table[np.arange(width), order].sum() / len(true)
    always = np.bincount(true, minlength=width).max() / len(true)
    if len(true) < ENOUGH or would < right + RISES or would < always + RISES / 2:
        return None
    names = opened.prepared.label_names or tuple(map(str, range(width)))
    theirs = [names[at] for at in order]
    return Finding(
        NAME,
        "mistake",
        f"{said}: {right:.0%} of its predictions are right, and {would:.0%} would be if its classes were "
        f"{shorten(theirs, 20)} in this order; they are read as {shorten(names, 20)}",
        "Correct id2label in the teacher's config.json, or the labels of the data (data.labels).",
    )


def _classes(scored: PartlyScored) -> tuple[Any, Any, int] | None:
    """Return predicted and true class of each row or word with a label, and the number of classes; None without."""
    logits, labels = scored.predictions.logits, scored.predictions.labels
    kind = getattr(scored.evaluator, "kind", None)
    if logits is None or labels is None or kind not in ("classes", "tags") or logits.shape[-1] < 2:
        return None
    known = labels >= 0
    return (logits.argmax(-1)[known], labels[known].astype(int), logits.shape[-1]) if known.any() else None


def _by_frequency(data: Prepared) -> Chance | None:
    """Return the perplexity of a model that knows only how often each token occurs in the train split."""
    from hf_distill.metrics.chance import Chance

    train, evaluated = data.train, data.eval
    if "labels" not in train.column_names or "labels" not in evaluated.column_names:
        return None
    classes = int(getattr(data.layout, "classes", None) or 0)
    counted, wanted = (labels[labels >= 0] for labels in (flat(sample(train), "labels"), flat(evaluated, "labels")))
    if not classes or not len(counted) or not len(wanted):
        return None
    counts = np.bincount(counted, minlength=max(classes, int(wanted.max()) + 1)) + 1.0
    loss = -np.log(counts / counts.sum())[wanted].mean()
    return Chance(perplexity(float(loss)), 0.0, "each token by its frequency in train")


def _shown(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"
