"""Tiny models that write completions, and the distribution of what they write, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill.completions.backends import TransformersBackend, Writer
from hf_distill.completions.mixture import Mixture

PROMPT = [5, 9, 12, 7]
# Padding of the embeddings to a round size: columns without a token.
PADDED = 170


def opened(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def writer(model: Any, tokenizer: Any, beside: Mixture | None = None, **settings: Any) -> Writer:
    return TransformersBackend(**settings).open(model, tokenizer, beside)


def next_laws(model: Any, texts: list[list[int]], width: int, temperature: float) -> np.ndarray:
    """Probabilities of the token after each of some texts of equal length by hand, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor(texts)).logits[:, -1, :width].double().numpy() / temperature
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def fits(tokens: list[int], laws: np.ndarray) -> None:
    """Tokens of probability 0 do not occur, and the others as often as they should (cells of at least 5 together)."""
    laws = np.broadcast_to(laws, (len(tokens), laws.shape[-1]))
    assert laws[np.arange(len(tokens)), tokens].all()
    counts, expected = np.bincount(tokens, minlength=laws.shape[-1]), laws.sum(0)
    common = expected >= 5
    observed, wanted = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    if wanted[-1] < 1e-9:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) > 2
    assert chisquare(observed, wanted).pvalue > 1e-3


def nucleus(law: np.ndarray, top_p: float) -> np.ndarray:
    """The textbook: the smallest set of likeliest tokens with at least this probability."""
    order = np.argsort(-law)
    size = int(np.searchsorted(np.cumsum(law[order]), top_p)) + 1
    left = np.zeros_like(law)
    left[order[:size]] = law[order[:size]]
    return left / left.sum()
