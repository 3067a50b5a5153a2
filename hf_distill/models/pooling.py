"""Pool the vectors of tokens into one vector per text, as sentence-transformers does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hf_distill.models.dense import Dense

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
# In the order in which sentence-transformers concatenates them if a configuration enables several.
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Prompts:
    """Prompts with which a model was trained.

    Attributes:
        named: Pairs of name and prompt.
        default: Name of the prompt that is put before every text; None if there is none.
        pooled: Whether its tokens take part in the pooling.
    """

    named: tuple[tuple[str, str], ...] = ()
    default: str | None = None
    pooled: bool = True

    @property
    def text(self) -> str:
        """The prompt that is put before every text."""
        return dict(self.named).get(self.default or "", "")

    @property
    def unused(self) -> list[str]:
        """Names of all prompts if none of them is the default; else empty."""
        return [] if self.text else [name for name, prompt in self.named if prompt]


@dataclass(frozen=True)
class Encoding:
    """How the vectors of tokens are pooled into one vector per text.

    Attributes:
        pooling: One mode, or several whose vectors are concatenated. Over the tokens that are not padding: `mean`; the
            first (`cls`) or the last (`lasttoken`: Qwen3-Embedding, E5-Mistral); `max` of each dimension;
            `mean_sqrt_len_tokens`, their sum divided by the square root of their number; `weightedmean`, the mean
            weighted by position, counted from 1 (SGPT).
        normalize: Whether the vector is divided by its length at the end.
        max_length: Length in tokens at which texts are to be truncated; None if unlimited.
        dense: Linear layers after the pooling.
        prompts: The prompts that are to be put before a text when it is tokenised.
        skipped: Number of tokens at the start of every text, those of a prompt, that are left out of the pooling.
    """

    pooling: Mode | tuple[Mode, ...] = "mean"
    normalize: bool = False
    max_length: int | None = None
    dense: tuple[Dense, ...] = ()
    prompts: Prompts = Prompts()
    skipped: int = 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The pooling modes as a tuple."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling

    def width(self, hidden: int) -> int:
        """Return the width of a text's vector, given the width of hidden states."""
        return self.dense[-1].out_features if self.dense else hidden * len(self.modes)

    def __call__(self, states: Tensor, mask: Tensor | None, dense: nn.Module | None = None) -> Tensor:
        """Return the vectors of texts.

        Args:
            states: Hidden states of tokens, `(texts, tokens, width)`.
            mask: 0 for padding, `(texts, tokens)`; None if there is no padding.
            dense: The linear layers with their weights.

        Returns:
            `(texts, width)`, in the dtype of `states`, or of the linear layers if there are any. Means are computed in
            float32 or better.
        """
        mask = torch.ones(states.shape[:2], device=states.device).bool() if mask is None else (mask != 0)
        # Positions are counted from the first token that is not padding.
        place = torch.arange(mask.shape[1], device=mask.device) - mask.int().argmax(-1, keepdim=True)
        counted = mask & (place >= self.skipped) if self.skipped else mask
        vectors = torch.cat([_POOLINGS[mode](states, counted, place) for mode in self.modes], -1)
        vectors = vectors if dense is None else dense(vectors)
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors


# ---- Poolings: of states (texts, tokens, width), which tokens count, and their positions from the first one ----------


def _at(states: Tensor, index: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), index]


def _first(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return _at(states, mask.int().argmax(-1))


def _last(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return _at(states, mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1))


def _max(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return states.masked_fill(~mask.unsqueeze(-1), float("-inf")).max(1).values


def _weighted(states: Tensor, weights: Tensor, power: float = 1.0) -> Tensor:
    """Return the weighted sum of states divided by `(sum of weights) ** power`, in float32 or better."""
    exact = torch.promote_types(states.dtype, torch.float32)
    weights = weights.unsqueeze(-1).to(exact)
    return ((states * weights).sum(1) / weights.sum(1).clamp(min=1e-9) ** power).to(states.dtype)


def _mean(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return _weighted(states, mask)


def _mean_sqrt(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return _weighted(states, mask, 0.5)


def _by_position(states: Tensor, mask: Tensor, place: Tensor) -> Tensor:
    return _weighted(states, (place + 1) * mask)


_POOLINGS: dict[Mode, Callable[[Any, Any, Any], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _by_position,
    "lasttoken": _last,
}
