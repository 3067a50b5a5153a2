"""Judging extracted answers: the best span of all windows of a question, exact match and F1 as for SQuAD."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.metrics.table import DEFAULTS, Undefined

Array = NDArray[Any]

# By default, without and with questions that have no answer.
SPAN_METRICS: Mapping[bool, tuple[str, ...]] = {
    False: DEFAULTS["spans"],
    True: (*DEFAULTS["spans"], "f1_has_answer", "accuracy_no_answer"),
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return an answer without case, punctuation, articles and extra spaces, as SQuAD's scripts compare them.

    >>> normalise("The  U.S. Army")
    'us army'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(predicted: str, answer: str) -> float:
    """Return the F1 of the words of two normalised answers; where one has none, whether the other has none either.

    `2 |common| / (|predicted| + |answer|)`, words with their number (Rajpurkar et al. 2016, arXiv 1606.05250, section
    6.1; the empty answer as in the script of SQuAD 2.0).
    """
    ours, theirs = predicted.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def best_span(start: Array, end: Array, allowed: Array, longest: int) -> tuple[float, int, int]:
    """Return the greatest `start_i + end_j` with `i <= j < i + longest`, and i and j.

    Over all pairs, where SQuAD's scripts look at those of the 20 best starts and ends.

    Args:
        start: Logits `(tokens,)`.
        end: Likewise.
        allowed: Which tokens may be in an answer, bool.
        longest: Longest answer in tokens.

    >>> best_span(np.array([0.0, 3.0, 1.0]), np.array([9.0, 0.0, 2.0]), np.array([False, True, True]), 5)
    (5.0, 1, 2)
    """
    longest = min(longest, len(start))
    start, end = (np.where(allowed, one, -np.inf) for one in (start, end))
    ahead = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1), constant_values=-np.inf), longest)
    scores = start[:, None] + ahead
    first, further = divmod(int(scores.argmax()), longest)
    return float(scores[first, further]), first, first + further


@dataclass(frozen=True)
class Questions:
    """The questions of the eval split and the windows that ask them.

    Attributes:
        names: Metrics to report, in order.
        contexts: One a question.
        answers: All true answers of each; empty for a question that has none, None where it is not known.
        row: Question of each window.
        starts: For each window, where its tokens start in the context.
        ends: Where they end.
        allowed: For each window, which of its tokens may be in an answer.
        nothing: For each window, its position that stands for "no answer"; negative where there is none.
        longest: Longest answer in tokens.
    """

    names: tuple[str, ...]
    contexts: Sequence[str]
    answers: Sequence[Sequence[str] | None]
    row: Sequence[int]
    starts: Sequence[Array]
    ends: Sequence[Array]
    allowed: Sequence[Array]
    nothing: Sequence[int]
    longest: int

    def predictions(self, logits: Array) -> list[str]:
        """Return the answer to every question; an empty one for "no answer".

        Of several windows the best span counts, and the smallest score of "no answer", which has to be greater than it
        (Devlin et al. 2019, arXiv 1810.04805, section 4.3, with a threshold of 0).

        Args:
            logits: `(windows, tokens, 2)`, padded on the right with anything.
        """
        has_nothing = any(at >= 0 for at in self.nothing)
        best: list[tuple[float, str]] = [(-math.inf, "")] * len(self.contexts)
        nothing = [math.inf if has_nothing else -math.inf] * len(self.contexts)
        for at, row in enumerate(self.row):
            start, end = np.asarray(logits[at, : len(self.allowed[at])], dtype=np.float64).T
            score, first, last = best_span(start, end, self.allowed[at], self.longest)
            if score > best[row][0]:
                best[row] = score, self.contexts[row][self.starts[at][first] : self.ends[at][last]]
            if has_nothing:
                nothing[row] = min(nothing[row], float(start[self.nothing[at]] + end[self.nothing[at]]))
        return ["" if null > score else text for (score, text), null in zip(best, nothing, strict=True)]

    def scores(self, logits: Array, labels: Array | None = None) -> dict[str, Array]:
        """Return the metrics of each question, `(questions,)`; NaN where one is not defined.

        Args:
            logits: `(windows, tokens, 2)` in the order of the windows.
            labels: Not looked at: positions in windows, where the answers are texts.
        """
        if len(logits) != len(self.row):
            raise ValueError(f"logits of {len(logits)} windows; wanted those of all {len(self.row)}.")
        finite = all(np.isfinite(logits[at, : len(one)]).all() for at, one in enumerate(self.allowed))
        judged = [
            _judge(predicted, answers) if finite else (math.nan, math.nan)
            for predicted, answers in zip(self.predictions(logits), self.answers, strict=True)
        ]
        exact, f1 = np.array(judged, dtype=np.float64).reshape(-1, 2).T
        none = np.array([answers is not None and not _texts(answers) for answers in self.answers])
        found = {
            "exact_match": exact,
            "f1": f1,
            "exact_match_has_answer": np.where(none, np.nan, exact),
            "f1_has_answer": np.where(none, np.nan, f1),
            "accuracy_no_answer": np.where(none, exact, np.nan),
        }
        return {name: found[name] for name in self.names}

    def metrics(self, logits: Array, labels: Array | None = None) -> dict[str, float]:
        """Return the means over the questions of which the answer is known; see `scores`."""
        found = {name: mean(scores) for name, scores in self.scores(logits, labels).items()}
        return {name: Undefined(_why(name)) if math.isnan(value) else value for name, value in found.items()}


def _why(name: str) -> str:
    """Return why a metric has no value for any question."""
    if name.endswith("_has_answer"):
        return "no question has an answer"
    return "every question has an answer" if name == "accuracy_no_answer" else "no question has a known answer"


def mean(scores: Array) -> float:
    """Return the mean of the values that are defined; NaN if none is.

    >>> mean(np.array([1.0, np.nan, 0.5]))
    0.75
    """
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else math.nan


def _texts(answers: Sequence[str]) -> list[str]:
    return [text for text in map(normalise, answers) if text]


def _judge(predicted: str, answers: Sequence[str] | None) -> tuple[float, float]:
    """Return exact match and F1 with the closest of the true answers."""
    if answers is None:
        return math.nan, math.nan
    ours, theirs = normalise(predicted), _texts(answers) or [""]
    return float(ours in theirs), max(token_f1(ours, one) for one in theirs)
