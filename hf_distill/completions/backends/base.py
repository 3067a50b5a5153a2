"""The base classes of backends: recipe entries that let a model write, token ids in and token ids out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_distill.completions.sampling import Completion, Sampling


class Writer(ABC):
    """Writes completions with one model."""

    @abstractmethod
    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order.

        The random state of the process is the same afterwards, and so is the mode of the model.

        Args:
            prompts: Token ids of each prompt, at least one.
            sampling: How tokens are drawn.
            seed: Seed of the draws: the same prompts, weights and seed give the same completions.
        """

    def follow(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Take over the weights of the model, which has been trained since; nothing to do if it is the model itself.

        Args:
            model: The model, without wrapper of a distributed training.
            step: Number of optimiser steps that it has been trained for.
        """


@component
class Backend(ABC):
    """Base class of the backends: how a model is made to write."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Writer:
        """Return what writes with a model.

        Args:
            model: The model, without wrapper of a distributed training.
            tokenizer: Its tokenizer.

        Raises:
            UserError: The backend cannot run this model.
        """
