"""A model with adapters as it was before they were added: they are off for a forward pass, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from hf_distill.errors import UserError
from hf_distill.models.inspection import evaluating
from hf_distill.models.lora import has_adapters
from hf_distill.models.patching import replaced


def switchable(model: Any) -> list[nn.Module]:
    """Return the modules of a model whose adapters can be switched off: adapted layers, and those that are saved whole.

    Raises:
        UserError: The model has no adapters, or adapters of another kind, such as prompts.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: list[Any] = [one for one in model.modules() if isinstance(one, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not has_adapters(model) or not any(isinstance(one, BaseTunerLayer) for one in found):
        raise UserError(
            f"the teacher is the student with its adapters off, and this student, a {type(model).__name__}, has no "
            "layers with adapters. Wanted student: {name: lora, model: ...}, or in Python a peft.PeftModel with LoRA."
        )
    return found


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Context manager: let a model compute what its base does; afterwards it is as it was, whatever happens in between.

    Unlike `disable_adapter` of `peft` it leaves `requires_grad` and which adapters are active as they are.

    Raises:
        UserError: Adapters are merged into the weights, so that the base's weights are not there.
    """
    modules = switchable(model)
    if any(getattr(one, "merged_adapters", None) for one in modules):
        raise UserError(
            "the teacher is the student with its adapters off, and they are merged into its weights. Call "
            "unmerge_adapter() on the student first."
        )
    with ExitStack() as stack:
        for one in modules:
            # Not `enable_adapters`, which freezes the adapters, and afterwards makes all active ones trainable.
            stack.enter_context(replaced(one, "_disable_adapters", True))
        yield


class WithoutAdapters(nn.Module):
    """A student without its adapters, on the student's own weights; it is always in eval mode.

    Its parameters are those of the student that belong to no adapter. They are not registered here, so that this
    module neither moves nor freezes them.

    Args:
        student: The student, a `peft.PeftModel`.

    Raises:
        UserError: The student has no adapters that can be switched off.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        switchable(student)
        self._held = (student,)

    @property
    def student(self) -> Any:
        """The student, with its adapters."""
        return self._held[0]

    @property
    def config(self) -> Any:
        """The configuration of the base."""
        return self.get_base_model().config

    @property
    def device(self) -> Any:
        """The device of the student."""
        return self.get_base_model().device

    @property
    def dtype(self) -> Any:
        """The precision of the base's weights."""
        return self.get_base_model().dtype

    def get_base_model(self) -> Any:
        """Return the Transformers model, whose layers hold the adapters (`models.inspection.base_model`)."""
        return self.student.get_base_model()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and weight of the base, without those of the adapters."""
        prefix = self.student.base_model.prefix
        for name, one in self.student.named_parameters(*args, **kwargs):
            if prefix not in name and ".modules_to_save." not in name:
                yield name, one

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the base returns, without dropout."""
        with evaluating(self.student), adapters_off(self.student):
            return self.student(*args, **kwargs)
