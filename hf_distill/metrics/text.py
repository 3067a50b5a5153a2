"""Metrics of generated texts: ROUGE, BLEU, chrF, by the packages that publications use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hf_distill.errors import UserError
from hf_distill.locations import require
from hf_distill.metrics.evaluate_library import EVALUATE, judge_texts
from hf_distill.metrics.table import METRICS

# Metric -> the module that computes it.
MODULES: Mapping[str, str] = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge_score"),
    **dict.fromkeys(("bleu", "chrf"), "sacrebleu"),
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_ROUGE_READS = re.compile(r"[a-z0-9]", re.IGNORECASE)


def check_packages(names: Sequence[str]) -> None:
    """Refuse metrics of generated texts whose package is not here.

    Raises:
        UserError: With what to install.
    """
    for name in names:
        if name in MODULES:
            require(MODULES[name], f"'{name}'", "metrics")


def check_generated(names: Sequence[str], references: Sequence[str]) -> None:
    """Refuse metrics of generated texts that cannot be computed, before anything is trained.

    Args:
        names: Metrics, of which some may be others.
        references: What will be compared with.

    Raises:
        UserError: A package is not installed, or ROUGE cannot read the references.
    """
    check_packages(names)
    rouge = [name for name in names if MODULES.get(name) == "rouge_score"]
    unread = sum(_ROUGE_READS.search(text) is None for text in references)
    if rouge and unread > len(references) / 2:
        raise UserError(
            f"{', '.join(rouge)}: ROUGE reads nothing but the letters a to z and digits, and {unread:,} of "
            f"{len(references):,} texts of the eval split have none. Use evaluation: {{metrics: [chrf, perplexity]}}.",
            key="metrics",
        )


def score_texts(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return each metric that is one of generated texts; the perplexity is not.

    ROUGE (Lin 2004) is the mean F1 over texts, between 0 and 1, words reduced to their stems as in published results;
    `rougeLsum` sentence by sentence. BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's, of all texts
    together, between 0 and 100.

    Args:
        names: Names from `metric_table.METRICS`, or `evaluate/...`.
        predictions: Generated texts.
        references: One for each.
    """
    found: dict[str, float] = {}
    rouge = [name for name in names if MODULES.get(name) == "rouge_score"]
    if rouge:
        found = _rouge(rouge, predictions, references)
    for name in names:
        if MODULES.get(name) == "sacrebleu":
            found[name] = _sacrebleu(name, predictions, references)
        elif name.startswith(EVALUATE):
            found[name] = judge_texts(name, predictions, references)
    return {name: found[name] for name in names if name in found}


def takes_texts(name: str) -> bool:
    """Whether a metric needs generated texts.

    >>> takes_texts("rouge2"), takes_texts("perplexity")
    (True, False)
    """
    return name in MODULES or name not in METRICS


def _rouge(names: list[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(names, use_stemmer=True)
    pairs = [(sentences(true), sentences(guess)) for true, guess in zip(references, predictions, strict=True)]
    scores = [scorer.score(true, guess) for true, guess in pairs]
    return {name: sum(score[name].fmeasure for score in scores) / max(len(scores), 1) for name in names}


def sentences(text: str) -> str:
    r"""Put each sentence on a line of its own, where `rougeLsum` looks for them; the other metrics see no difference.

    Only by punctuation: an abbreviation ends a line too.

    >>> sentences("It rained. Nobody came! Why?")
    'It rained.\nNobody came!\nWhy?'
    """
    return _SENTENCE_END.sub("\n", text.strip())


def _sacrebleu(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu

    score = getattr(sacrebleu, f"corpus_{name}")(list(predictions), [list(references)])
    return float(score.score)
