"""Evaluate extractive question answering: the best span over all windows of a question, exact match and F1 of SQuAD."""

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

# Default metrics, for data without and with unanswerable questions.
SPAN_METRICS: Mapping[bool, tuple[str, ...]] = {
    False: DEFAULTS["spans"],
    True: (*DEFAULTS["spans"], "f1_has_answer", "accuracy_no_answer"),
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return an answer without case, punctuation, articles and extra spaces, as SQuAD's scripts do before comparing.

    >>> normalise("The  U.S. Army")
    'us army'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(predicted: str, answer: str) -> float:
    """Return the F1 of the words of two normalised answers; if one is empty, 1.0 if the other is too, else 0.0.

    `2 |common| / (|predicted| + |answer|)`, counting repeated words (Rajpurkar et al. 2016, arXiv 1606.05250, section
    6.1; empty answers as in the script of SQuAD 2.0).
    """
    ours, theirs = predicted.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def best_span(start: Array, end: Array, allowed: Array, longest: int) -> tuple[float, int, int]:
    """Return the greatest `start_i + end_j` with `i <= j < i + longest`, and i and j.

    All pairs are searched; SQuAD's scripts search only the 20 best starts and ends.

    Args:
        start: Start logits `(tokens,)`.
        end: End logits `(tokens,)`.
        allowed: Which tokens may be in an answer, bool `(tokens,)`.
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
    """The questions of the eval split, and the windows into which their contexts are cut.

    Attributes:
        names: Metrics to report, in order.
        contexts: The context of each question.
        answers: All true answers of each question; empty if it is unanswerable, None if the answer is not known.
        row: Index of the question of each window.
        starts: For each window, the characters in the context at which its tokens start.
        ends: For each window, the characters at which they end.
        allowed: For each window, which of its tokens may be in an answer.
        nothing: For each window, the position that stands for "no answer"; negative if it has none.
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

    def of_windows(self, windows: Sequence[int]) -> tuple[Questions, Sequence[int]]:
        """Return the questions that have one of some windows, and the numbers of all their windows, in order."""
        chosen = sorted({self.row[at] for at in windows})
        place = {row: at for at, row in enumerate(chosen)}
        own = [at for at, row in enumerate(self.row) if row in place]

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[at] for at in own]

        part = Questions(
            names=self.names,
            contexts=[self.contexts[row] for row in chosen],
            answers=[self.answers[row] for row in chosen],
            row=[place[row] for row in pick(self.row)],
            starts=pick(self.starts),
            ends=pick(self.ends),
            allowed=pick(self.allowed),
            nothing=pick(self.nothing),
            longest=self.longest,
        )
        return part, own

    def predictions(self, logits: Array) -> list[str]:
        """Return the predicted answer to every question; "" for "no answer".

        Over the windows of a question, the best span and the smallest score of "no answer" are taken. The prediction is
        "no answer" if that score is greater than the span's (Devlin et al. 2019, arXiv 1810.04805, section 4.3, with a
        threshold of 0).

        Args:
            logits: `(windows, tokens, 2)`, padded on the right with any values.
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
        """Return each metric per question, `(questions,)`; NaN where it is not defined.

        Args:
            logits: `(windows, tokens, 2)` in the order of the windows.
            labels: Ignored: they are token positions, while the metrics compare texts.
        """
        if len(logits) != len(self.row):
            raise ValueError(f"logits of {len(logits)} windows; wanted those of all {len(self.row)}.")
        finite = all(np.isfinite(logits[at, : len(one)]).all() for at, one in enumerate(self.allowed))
        pairs = [
            _exact_and_f1(predicted, answers) if finite else (math.nan, math.nan)
            for predicted, answers in zip(self.predictions(logits), self.answers, strict=True)
        ]
        exact, f1 = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
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
        """Return each metric of `scores` as its mean over the questions whose answer is known."""
        found = {name: mean(scores) for name, scores in self.scores(logits, labels).items()}
        return {name: Undefined(_why(name)) if math.isnan(value) else value for name, value in found.items()}


def _why(name: str) -> str:
    """Return why a metric is not defined for any question."""
    if name.endswith("_has_answer"):
        return "no question has an answer"
    return "every question has an answer" if name == "accuracy_no_answer" else "no question has a known answer"


def mean(scores: Array) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none.

    >>> mean(np.array([1.0, np.nan, 0.5]))
    0.75
    """
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else math.nan


def _texts(answers: Sequence[str]) -> list[str]:
    return [text for text in map(normalise, answers) if text]


def _exact_and_f1(predicted: str, answers: Sequence[str] | None) -> tuple[float, float]:
    """Return exact match and F1 of a predicted answer, with the true answer that gives the best score."""
    if answers is None:
        return math.nan, math.nan
    ours, theirs = normalise(predicted), _texts(answers) or [""]
    return float(ours in theirs), max(token_f1(ours, one) for one in theirs)
