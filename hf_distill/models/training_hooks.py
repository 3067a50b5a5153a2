"""What the entry of a model does around the model's training: adapters, masks, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback


class TrainingHooks:
    """What happens around the training of one model, besides its objectives. This class does nothing.

    Attributes:
        wraps: Whether `wrap` returns another module than it gets, so that `unwrap` is called at the end. That needs
            whole weights: FSDP and DeepSpeed are then refused.
    """

    wraps: bool = False

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the module that is trained: `model`, or a wrapper such as `peft.PeftModel`."""
        return model

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        """Return the model that is evaluated and saved, from the module that was trained."""
        plain: Any = model
        return plain  # type: ignore[no-any-return]

    def callbacks(self, model: nn.Module) -> Sequence[TrainerCallback]:
        """Return callbacks for the trainer. After a resume they go on as if there had been no interruption.

        Args:
            model: The module that is trained, from `wrap`.
        """
        return ()

    def deciding(self) -> dict[str, Any]:
        """Return, by name, what decides the trained weights besides model, data, objectives and training arguments.

        A finished training is found again only if this is the same.
        """
        return {}

    def in_words(self, model: nn.Module) -> Sequence[str]:
        """Return lines for the user, printed before the training."""
        return ()
