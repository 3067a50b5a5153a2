"""The mean teacher: the student learns from the moving average of its own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.inspection import base_model, taken_by
from hf_distill.models.lora import has_adapters
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import MadeOfStudent, RunModel, Targets, TargetSource
from hf_distill.models.whole_weights import plain_copy, whole_weights
from hf_distill.teachers.base import FineTune, config_of_student
from hf_distill.teachers.context import InContext

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.students import Student

WHO = "The teacher here is the average of the student's own weights, as it was at the end of the training."


@component
class EmaTeacher(InContext):
    """The exponential moving average of the student's own weights (mean teacher, Tarvainen and Valpola 2017).

    After every optimizer step `t`: `average <- d * average + (1 - d) * student` (arXiv 1703.01780, equation 2); buffers
    are copied. The average starts as a copy of the student, and teaches in eval mode. The report's teacher is the
    average at the end of the training. Of a student with adapters the whole weights `W + s B A` are averaged, since the
    product of the averages of `B` and `A` is not the average of their product.

    Attributes:
        decay: `d`, at least 0 and below 1. The average looks back over about `1 / (1 - d)` steps.
        warm_up: Use `min(d, 1 - 1 / (t + 1))`: the first steps then move the average away from a student that has
            learned nothing yet.
    """

    name: ClassVar[str] = "ema"

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    warm_up: bool = True

    @property
    def has_head(self) -> bool:
        """Always false: there is no checkpoint with a trained head."""
        return False

    @property
    def is_without_model(self) -> bool:
        """Always true: the average is made from the student."""
        return True

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Empty: no model is trained first."""
        return ()

    @property
    def not_cached(self) -> str:
        """Why the targets of an average cannot be stored."""
        return "the average changes while the student trains, so its targets cannot be stored. Take it itself"

    @property
    def follows_student(self) -> bool:
        """Always true: it is the student's average."""
        return True

    def config(self) -> PretrainedConfig:
        """Return a default configuration, because there is no checkpoint."""
        from transformers import PretrainedConfig

        return PretrainedConfig()

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the student's checkpoint.

        Raises:
            UserError: The student is to be made from the teacher.
        """
        return config_of_student(student, "the teacher is the average of the student's own weights")

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        return "one more copy of the student's weights; with adapters, of those that they change"

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return a source that has no weights until a student begins to train."""
        return Ema(self.decay, warm_up=self.warm_up)


class Ema(TargetSource):
    """The moving average of a student's weights, beside it in one more copy.

    Of a student with adapters it is a plain model, the average of the student with its adapters merged. It has tensors
    of its own where there are adapters; what is frozen is the student's.

    Args:
        decay: Share of the average that stays at a step.
        warm_up: Whether the share is smaller in the first steps.
    """

    def __init__(self, decay: float = 0.999, *, warm_up: bool = True) -> None:
        super().__init__()
        self.decay, self.warm_up = decay, warm_up
        self.config = None
        self.average: nn.Module | None = None
        self._common: set[str] = set()

    @property
    def model(self) -> Any:
        """The average; this source itself before training begins."""
        return self if self.average is None else self.average

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The average under the name `teacher`; empty before training begins."""
        return {} if self.average is None else {"teacher": self.average}

    @property
    def takes(self) -> frozenset[str]:
        """The columns of a batch that the average reads."""
        return frozenset() if self.average is None else taken_by(self.average)

    @property
    def measured(self) -> Any:
        """The model whose size and speed are measured: the average."""
        return self.average

    @property
    def follows_student(self) -> bool:
        """Always true: the average changes with the student."""
        return True

    def gives(self) -> Gives:
        """Return what it gives to objectives: everything, as it is a model."""
        return Gives.everything()

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        return WHO

    def fingerprint(self) -> str:
        """Return a fingerprint of the settings; the weights follow from the student."""
        return fingerprint("ema", self.decay, self.warm_up)

    def for_training(self) -> TargetSource:
        """Return a new average with the same settings, for one training."""
        return Ema(self.decay, warm_up=self.warm_up)

    def at_end(self, trained: TargetSource) -> TargetSource:
        """Return the average at the end of a training, as a plain model."""
        return MadeOfStudent(trained.model, WHO)

    def begin(self, student: nn.Module) -> None:
        """Set the average to the student's weights; the copy is made at the first call.

        Raises:
            UserError: The student has adapters on quantized weights.
        """
        if self.average is None:
            if has_adapters(student) and getattr(base_model(student), "is_quantized", False):
                raise UserError(
                    "the average of a student with adapters is one of whole weights, and this student's are quantized. "
                    "Leave the student's quantization out, or take its base: teacher: {name: adapter_off}."
                )
            average = plain_copy(student)
            if any(one.dtype in (torch.float16, torch.bfloat16) for one in average.parameters()):
                average.float()  # in half precision, steps of a thousandth would be lost by rounding
            self.average = average.eval()
            self.config = getattr(base_model(average), "config", None)
            held = {one.data_ptr() for one in student.parameters() if not one.requires_grad}
            self._common = {name for name, one in average.named_parameters() if one.data_ptr() in held}
        self._mix(student, 0.0)

    def after_step(self, student: nn.Module, step: int) -> None:
        """Move the average towards the student, in place."""
        self._mix(student, min(self.decay, 1 - 1 / (step + 1)) if self.warm_up else self.decay)

    @torch.no_grad()
    def _mix(self, student: nn.Module, decay: float) -> None:
        assert self.average is not None
        own, buffers = self._own, dict(self.average.named_buffers())
        if has_adapters(student):
            for name, value in whole_weights(student):
                if name in own:
                    own[name].lerp_(value.to(own[name].dtype), 1 - decay)
                elif name in buffers:
                    buffers[name].copy_(value)
            return
        theirs = dict(whole_weights(student))
        # All at once: on an accelerator, a few kernels instead of one for each weight.
        torch._foreach_lerp_([*own.values()], [theirs[name].to(one.dtype) for name, one in own.items()], 1 - decay)
        for name, buffer in buffers.items():
            buffer.copy_(theirs[name])

    @property
    def _own(self) -> dict[str, Tensor]:
        """The parameters of the average that are not the student's."""
        assert self.average is not None
        return {name: one for name, one in self.average.named_parameters() if name not in self._common}

    def saved_state(self) -> dict[str, Tensor]:
        """Return the weights of the average, without those that are the student's."""
        return {} if self.average is None else {**self._own, **dict(self.average.named_buffers())}

    @torch.no_grad()
    def load_saved_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights of the average from a checkpoint."""
        for name, own in self.saved_state().items():
            own.copy_(state[name])

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of the average."""
        return Targets(run("teacher"))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; shared ones appear once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
