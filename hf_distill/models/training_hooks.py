"""What the entry of a model does around the model's training: adapters, masks, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback

    from hf_distill.errors import UserError


IN_SHORT = "in short"
"""Name of a fact of a student (`Made.facts`, `TrainingHooks.outcome`) that is one sentence, told in the verdict too."""
# Key of an entry of a training's log after which another model is trained than before: one with fewer weights.
ANEW = "model_is_another"


class TrainingHooks:
    """What happens around the training of one model, besides its objectives. This class does nothing.

    Attributes:
        wraps: Whether `unwrap` is called at the end, since another model is saved than the one that is trained.
    """

    wraps: bool = False

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the module that is trained: `model`, or a wrapper such as `peft.PeftModel`."""
        return model

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        """Return the model that is evaluated and saved, from the module that was trained."""
        plain: Any = model
        return plain  # type: ignore[no-any-return]

    def load(self, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the model that `unwrap` returned, from the directory of its finished training.

        Args:
            model: The model as it was before the training, or what `unwrap` returned.
            directory: Where it was saved.
        """
        loaded: PreTrainedModel = type(model).from_pretrained(str(directory), dtype="float32", use_safetensors=True)
        return loaded

    def goes_on(self) -> TrainingHooks:
        """Return what happens around a stage that is not the last: what `unwrap` returns is the next one's model."""
        return self

    def callbacks(self, model: nn.Module) -> Sequence[TrainerCallback]:
        """Return callbacks for the trainer. After a resume they go on as if there had been no interruption.

        Args:
            model: The module that is trained, from `wrap`.
        """
        return ()

    def sharded(self) -> UserError | None:
        """Return what to say where FSDP or DeepSpeed shard the weights; None if these hooks work there too."""
        return None

    def deciding(self) -> dict[str, Any]:
        """Return, by name, what decides the trained weights besides model, data, objectives and training arguments.

        A finished training is found again only if this is the same.
        """
        return {}

    def in_words(self, model: nn.Module) -> Sequence[str]:
        """Return lines for the user, printed before the training."""
        return ()

    def outcome(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what report and model card say about the model after its training, by name.

        A sentence called `IN_SHORT` is told in the verdict too.

        Args:
            model: The model as it was saved; where a training is found finished, as it was loaded.
        """
        return {}
