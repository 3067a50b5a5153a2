"""Metrics of generated texts: exact match, one's own functions, and ROUGE, BLEU and chrF by their usual packages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.errors import UserError
from hf_distill.locations import require
from hf_distill.metrics.answers import mean
from hf_distill.metrics.bootstrap import Units
from hf_distill.metrics.evaluate_library import EVALUATE, compute_on_texts
from hf_distill.metrics.exact import NUMBER, SAME, check_numbers
from hf_distill.metrics.function import check_function, is_function, values_of
from hf_distill.metrics.table import METRICS
from hf_distill.outside import may_run

# Metric -> module that computes it.
MODULES: Mapping[str, str] = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge_score"),
    **dict.fromkeys(("bleu", "chrf"), "sacrebleu"),
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_ROUGE_READS = re.compile(r"[a-z0-9]", re.IGNORECASE)


def check_packages(names: Sequence[str]) -> None:
    """Refuse metrics of generated texts whose package is not installed, and functions that cannot be imported.

    Raises:
        UserError: It is not installed; the message says what to install.
    """
    for name in names:
        if name in MODULES:
            require(MODULES[name], f"'{name}'", "metrics")
        elif is_function(name):
            check_function(name)


def check_generated(names: Sequence[str], references: Sequence[str], prompts: Sequence[str] = ()) -> None:
    """Refuse metrics of generated texts that cannot be computed, before anything is trained.

    Args:
        names: Metrics; those that do not need generated texts are ignored.
        references: The true texts.
        prompts: What they continue, for functions that ask.

    Raises:
        UserError: A package is not installed, ROUGE or `exact_match_number` cannot read the references, or a function
            fails on the first of them.
    """
    check_packages(names)
    if NUMBER in names:
        check_numbers(references)
    for name in filter(is_function, names if may_run() else ()):
        values_of(name, references[:2], references[:2], prompts[:2] or references[:2])
    rouge = [name for name in names if MODULES.get(name) == "rouge_score"]
    unread = sum(_ROUGE_READS.search(text) is None for text in references)
    if rouge and unread > len(references) / 2:
        raise UserError(
            f"{', '.join(rouge)}: ROUGE reads only the letters a to z and digits, and {unread:,} of "
            f"{len(references):,} texts of the eval split have none. Use evaluation: {{metrics: [chrf, perplexity]}}.",
            key="metrics",
        )


def score_texts(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], prompts: Sequence[str] = ()
) -> dict[str, float]:
    """Return name -> value of each metric that needs generated texts (perplexity does not).

    Exact match is the share of right texts; see `exact.SAME`.

    ROUGE (Lin 2004) is the mean F1 over texts, between 0 and 1, with stemming as in published results; `rougeLsum`
    compares sentence by sentence. BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's corpus scores,
    between 0 and 100.

    Args:
        names: Names from `table.METRICS`, `evaluate/...`, or `module:function`.
        predictions: Generated texts.
        references: The true text for each.
        prompts: What each continues, for functions that ask.
    """
    rouge = [name for name in names if MODULES.get(name) == "rouge_score"]
    found = {name: sum(scores) / max(len(scores), 1) for name, scores in _rouge(rouge, predictions, references).items()}
    for name in names:
        if MODULES.get(name) == "sacrebleu":
            found[name] = _sacrebleu(name, predictions, references)
        elif name.startswith(EVALUATE):
            found[name] = compute_on_texts(name, predictions, references)
        elif name in SAME or is_function(name):
            scores = _scores(name, predictions, references, prompts)
            found[name] = float(scores) if scores.ndim == 0 else mean(scores)
    return {name: found[name] for name in names if name in found}


def takes_texts(name: str) -> bool:
    """Return whether a metric needs generated texts.

    >>> takes_texts("rouge2"), takes_texts("perplexity")
    (True, False)
    """
    return name in MODULES or name in SAME or name not in METRICS


def has_units(name: str) -> bool:
    """Return whether a metric of texts can be computed from what is counted in single texts; a function may do so.

    >>> has_units("bleu"), has_units("evaluate/meteor")
    (True, False)
    """
    return name in MODULES or name in SAME or is_function(name)


def units_of_texts(
    name: str, texts: Sequence[str], references: Sequence[str], prompts: Sequence[str] = ()
) -> Units | None:
    """Return what a metric of generated texts is computed from, text by text, for its noise and its value by group.

    The noise is then that of a paired bootstrap over texts (Koehn 2004, "Statistical significance tests for machine
    translation evaluation", https://aclanthology.org/W04-3250): what is counted in each text (ROUGE's F1; BLEU's and
    chrF's n-grams) is resampled, and the metric computed anew from the counts of every sample.

    Args:
        name: The metric.
        texts: Generated texts.
        references: The true text for each.
        prompts: What each continues, for functions that ask.

    Returns:
        None for metrics of the `evaluate` library, and functions with one number for all texts.
    """
    if name in SAME or is_function(name):
        scores = _scores(name, texts, references, prompts)
        return Units.means(scores) if scores.ndim else None
    if MODULES.get(name) == "rouge_score":
        return Units.means(np.array(_rouge([name], texts, references)[name]))
    if MODULES.get(name) != "sacrebleu":
        return None
    metric, counts = _counted(name, texts, references)
    return Units((counts,), lambda some: _from_counts(metric, some), np.ones(len(texts), dtype=bool))


def _scores(name: str, texts: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> NDArray[np.float64]:
    """Return the score of each text, `(texts,)`; one number, `()`, of a function that gives no more."""
    if name in SAME:
        return np.array([SAME[name](text, true) for text, true in zip(texts, references, strict=True)], dtype=float)
    return values_of(name, texts, references, prompts)


def _rouge(names: list[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return name -> F1 of each text."""
    if not names:
        return {}
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(names, use_stemmer=True)
    pairs = [(sentences(true), sentences(guess)) for true, guess in zip(references, predictions, strict=True)]
    scores = [scorer.score(true, guess) for true, guess in pairs]
    return {name: [float(score[name].fmeasure) for score in scores] for name in names}


def sentences(text: str) -> str:
    r"""Return a text with one sentence per line, as `rougeLsum` needs it; other metrics ignore line ends.

    Sentences end at punctuation, so an abbreviation also ends a line.

    >>> sentences("It rained. Nobody came! Why?")
    'It rained.\nNobody came!\nWhy?'
    """
    return _SENTENCE_END.sub("\n", text.strip())


def _sacrebleu(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu

    score = getattr(sacrebleu, f"corpus_{name}")(list(predictions), [list(references)])
    return float(score.score)


def _counted(name: str, texts: Sequence[str], references: Sequence[str]) -> tuple[Any, NDArray[Any]]:
    """Return a metric of sacrebleu and what it counts in each text, `(texts, counts)`; the score is that of the sums.

    By what sacrebleu's own significance tests use, which has no public name.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # As `_sacrebleu` computes it. `force` keeps BLEU from saying once more that texts look tokenised.
    metric: Any = BLEU(force=True) if name == "bleu" else CHRF()
    return metric, np.array(metric._extract_corpus_statistics(list(texts), [list(references)]))


def _from_counts(metric: Any, counts: NDArray[Any]) -> float:
    return float(metric._aggregate_and_compute([counts.sum(0).tolist()]).score)
