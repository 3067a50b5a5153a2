"""Drawing tokens from two models at once: MiniLLM's teacher-mixed sampling."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.models.inspection import base_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Mixture:
    """A second model that takes part in every draw: tokens follow `share * p + (1 - share) * q`.

    `p` are its probabilities of the next token and `q` those of the model that writes, both at the temperature of the
    draws and after the same tokens. A sum over tokens drawn so is one over the student's own where every term has the
    weight `q / (share * p + (1 - share) * q)` (`importance_weights`).

    Attributes:
        model: The second model, which has the tokenizer of the first.
        share: Its share, from 0 (the first model alone) to 1 (the second alone).
    """

    model: nn.Module
    share: float

    def along(self, mask: Tensor) -> Along:
        """Return what gives its logits along texts that begin with these prompts.

        Args:
            mask: 0 for padding, which is on the left, `(rows, tokens)`.
        """
        return Along(base_model(self.model), mask)


class Along:
    """Gives the logits of a model for the next token of texts that another model writes, with keys and values held.

    Args:
        model: A causal language model.
        mask: 0 for padding of the prompts, which is on the left, `(rows, tokens)`.
    """

    def __init__(self, model: Any, mask: Tensor) -> None:
        self._model, self._mask = model, mask
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._held: Any = None
        self._read = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits after each text, `(rows, vocabulary)`, in float32.

        Args:
            ids: The texts so far, those of the call before with more tokens, `(rows, tokens)`.
        """
        more = ids.shape[1] - self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), more)], -1)
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, self._read :]
        given = {"position_ids": positions, "logits_to_keep": 1}
        outputs = self._model(
            input_ids=ids[:, self._read :],
            attention_mask=self._mask,
            past_key_values=self._held,
            use_cache=True,
            **{name: value for name, value in given.items() if name in self._takes},
        )
        self._held, self._read = outputs.past_key_values, ids.shape[1]
        found: Tensor = outputs.logits[:, -1].float()
        return found


def importance_weights(own: Tensor, other: Tensor, share: float) -> Tensor:
    """Return `q / (share * p + (1 - share) * q)` of tokens that were drawn from a mixture: at most `1 / (1 - share)`.

    Args:
        own: `log q` of the tokens, under the model that is trained.
        other: `log p`, under the second model, of the same shape.
        share: Share of the second model.

    >>> importance_weights(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), 0.2)
    tensor([1.1111])
    """
    return (share * (other - own).exp() + (1.0 - share)).reciprocal()
