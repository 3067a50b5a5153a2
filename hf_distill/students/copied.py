"""The base class of students that are made of a larger model's weights, and what these have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import component
from hf_distill.data.label_names import label_names, positions
from hf_distill.errors import UserError
from hf_distill.models.inspection import evaluating
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.models.quantization import is_placed, method_of
from hf_distill.students.base import Student, build, with_head

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


@component
class CopiedStudent(Student):
    """Base class of students that are made of a larger model's weights, mostly the teacher's.

    Attributes:
        model: Model to copy from: Hub id, local directory or `package:NAME/PATH`. A fine-tuned teacher's layers already
            know the task, and a baseline that starts from them benefits too; copy from the checkpoint before
            fine-tuning to avoid that. Default: the teacher.
    """

    model: str | None = None

    @property
    def vocabulary(self) -> str | None:
        """The model that is copied from, if one is named; None for the teacher."""
        return self.model

    @property
    def copies_teacher(self) -> bool:
        """Whether the weights are the teacher's: if no other model is named."""
        return self.model is None

    def whole_config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the model to copy from.

        Raises:
            UserError: Its weights are quantized.
        """
        whole = teacher if self.model is None else open_config(self.model)
        method = method_of(whole)
        if method is not None:
            whose = "the teacher" if self.model is None else f"'{self.model}'"
            raise UserError(
                f"the weights of {whose} are quantized ({method}) and cannot be copied. Name a checkpoint that was not "
                "quantized.",
                key="model",
            )
        return whole

    def whole(self, teacher: PreTrainedModel, head: Head) -> tuple[PreTrainedModel, PretrainedConfig | None]:
        """Return the model to copy from, and the configuration with its label names; None if its head is new.

        Raises:
            UserError: Its weights are quantized.
        """
        if self.model is None:
            model: PreTrainedModel = teacher
            labels: PretrainedConfig | None = teacher.config
        else:
            model, new = load_model(self.model, head)
            # The model was loaded with the task's label names, so its own names are read from the checkpoint.
            labels = None if new else open_config(self.model)
        if getattr(model, "is_quantized", False):
            raise UserError("its weights are quantized and cannot be copied. Load the model unquantized.", key="name")
        return model, labels


def build_copy(
    whole: PreTrainedModel,
    config: PretrainedConfig,
    weights: Mapping[str, Tensor],
    head: Head,
    labels: PretrainedConfig | None,
    key: str,
) -> PreTrainedModel:
    """Return a smaller model of a model's class with weights copied from it, in float32 and in eval mode.

    Args:
        whole: The model that is copied from.
        config: Configuration of the smaller model; the head's settings are written into it.
        weights: Its weights, by name.
        head: The task's head.
        labels: Configuration with the label names of the head that is copied; None if that head is new.
        key: Recipe key for the error.

    Raises:
        UserError: No such model can be built, or its labels are not the task's.
        RuntimeError: `weights` has other names or shapes than the smaller model.
    """
    config = with_head(config, head)
    if labels is not None:
        check_labels(config, labels)
    student = build(type(whole), config, key=key)
    student.load_state_dict(weights)
    if student.can_generate():
        student.generation_config = copy.deepcopy(whole.generation_config)
    return student


def check_labels(ours: PretrainedConfig, theirs: PretrainedConfig) -> None:
    """Refuse a head whose outputs are not the task's labels in the task's order."""
    if ours.num_labels != theirs.num_labels:
        raise UserError(f"the task has {ours.num_labels} labels, the head to be copied {theirs.num_labels}.")
    want, have = label_names(ours), label_names(theirs)
    if want and have and positions(want, have, whose="the head to be copied") != tuple(range(len(want))):
        raise UserError(
            f"the task's labels are {list(want)}, but the head to be copied has {list(have)}: "
            "the student would name its classes wrongly."
        )


@contextmanager
def measuring(model: PreTrainedModel) -> Iterator[None]:
    """Context manager: a model in eval mode on the device of the run, without gradients; afterwards it is as it was."""
    import torch

    before, device = model.device, parallel.device()
    moved = before != device and not is_placed(model, device)
    if moved:
        model.to(device)  # type: ignore[arg-type]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        if moved:
            model.to(before)  # type: ignore[arg-type]


def sizes(whole: PreTrainedModel, student: PreTrainedModel) -> dict[str, Any]:
    """Return how many parameters a model and the student made of it have, for the report."""
    return {"parameters": {"before": whole.num_parameters(), "after": student.num_parameters()}}
