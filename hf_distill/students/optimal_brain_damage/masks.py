"""Masks in training: weights that are zero stay zero, and in later rounds more become zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.models.training_hooks import ANEW


class Masks(TrainerCallback):
    """Keeps weights that are zero at zero, and deletes more of them in later rounds.

    There is no mask besides the zeros themselves: a checkpoint has them, so that a resumed training goes on as if there
    had been no interruption. Their gradients are zero too, so that the norm of the gradient, by which it may be
    clipped, is that of the remaining weights.

    Args:
        weights: The weights that can be deleted.
        rounds: Share of the weights that is to be zero after each later round.
        delete: Deletes weights until a share of them is zero. All processes call it.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], rounds: Sequence[float], delete: Callable[[float], Any]
    ) -> None:
        self._weights, self._rounds, self._delete = list(weights), rounds, delete
        self._steps: dict[int, float] = {}
        self._zeros: list[Tensor] = []
        self._handles: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Place the rounds in the training, and mask gradients from here on."""
        try:
            steps = fitting_steps(len(self._rounds), state.max_steps)
        except UserError as error:  # only where several devices share a batch; `check_steps` finds the others
            raise UserError(f"student.rounds: {error}", key="student.rounds") from error
        self._steps = dict(zip(steps, self._rounds, strict=True))
        self._handles = [_mask_gradients(weight) for weight in self._weights]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember which weights are zero."""
        self._zeros = [weight.detach() == 0 for weight in self._weights]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set them to zero again: momentum from before their deletion may have moved them."""
        for weight, zero in zip(self._weights, self._zeros, strict=True):
            weight.data.masked_fill_(zero, 0.0)
        self._zeros = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delete more if a round is due; the best checkpoint, and the best evaluation, are then looked for anew."""
        share = self._steps.get(state.global_step)
        if share is None:
            return
        self._delete(share)
        parallel.first_to_all([weight.data for weight in self._weights])
        # A model from before a round has more weights, and is not the one that was asked for.
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        history: list[Any] = state.log_history
        history.append({ANEW: f"{share:.3g} of the weights are zero", "step": state.global_step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the gradients alone again."""
        for handle in self._handles:
            handle.remove()


def steps_of(rounds: int, steps: int) -> list[int]:
    """Return after which optimiser steps the later rounds are, at equal distances in the first half of a training.

    >>> steps_of(2, 100)
    [25, 50]
    """
    return [max(number, round(steps / 2 * number / rounds)) for number in range(1, rounds + 1)]


def fitting_steps(rounds: int, steps: int) -> list[int]:
    """Return `steps_of`.

    Raises:
        UserError: The training has fewer steps.
    """
    found = steps_of(rounds, steps)
    if found and found[-1] > steps:
        raise UserError(
            f"{rounds + 1} rounds do not fit in a training of {steps} steps. Wanted at most {steps + 1}.", key="rounds"
        )
    return found


def shares_of(ratio: float, rounds: int) -> list[float]:
    """Return the share of weights that is zero after each round.

    Most go first: `ratio * (1 - (1 - round / rounds)^3)`, the schedule of Zhu and Gupta (2017, To prune, or not to
    prune, arXiv 1710.01878, eq. 1).

    >>> [round(one, 3) for one in shares_of(0.5, 3)]
    [0.352, 0.481, 0.5]
    """
    return [ratio * (1 - (1 - number / rounds) ** 3) for number in range(1, rounds + 1)]


def _mask_gradients(weight: Any) -> Any:
    return weight.register_hook(lambda gradient: gradient.masked_fill(weight.detach() == 0, 0.0))
