"""The base classes of backends: recipe entries that let a model write, token ids in and token ids out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component, entry
from hf_distill.errors import UserError
from hf_distill.models.inspection import positions_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.completions.mixture import Mixture
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

    def figures(self) -> Mapping[str, float]:
        """Return what a log says of the writing since the last call, by key; mostly nothing."""
        return {}


@component
class Backend(ABC):
    """Base class of the backends: how a model is made to write."""

    name: ClassVar[str]
    # Whether it can search with beams (`Sampling.num_beams`), and draw tokens from two models at once.
    searches: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def deciding(self) -> Mapping[str, Any]:
        """Return what of its settings decides what is written, for the name of stored completions."""
        return entry(self)

    @property
    def remark(self) -> str:
        """A line about it that its user should know; mostly none."""
        return ""

    def check(self) -> None:  # noqa: B027
        """Refuse settings that cannot work, before anything is loaded and nobody is asked; mostly nothing to do.

        Raises:
            UserError: One cannot; `key` names it.
        """

    @abstractmethod
    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, beside: Mixture | None = None) -> Writer:
        """Return what writes with a model.

        Args:
            model: The model, without wrapper of a distributed training.
            tokenizer: Its tokenizer.
            beside: A second model that takes part in every draw.

        Raises:
            UserError: The backend cannot run this model.
        """


def check_room(config: PretrainedConfig, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Refuse a prompt and completion that are longer than a model has positions for, and an empty prompt.

    Raises:
        UserError: One of them is.
    """
    positions, longest = positions_of(config), max(map(len, prompts))
    if positions is not None and longest + sampling.max_new_tokens > positions:
        raise UserError(
            f"a prompt of {longest} tokens and a completion of {sampling.max_new_tokens} are longer than the "
            f"{positions} positions of the model. Lower completions.max_new_tokens, or cut the prompts.",
            key="max_new_tokens",
        )
    if not all(prompts):
        raise UserError("a prompt has no tokens. Drop such rows.", key="")
