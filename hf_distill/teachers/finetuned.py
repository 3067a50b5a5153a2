"""A teacher that the run first trains on the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.teachers.base import FineTune, Teacher

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.tasks import Task


@component
class FinetunedTeacher(Teacher):
    """A checkpoint without the task's head, fine-tuned on the recipe's train split before distillation.

    The result is kept and used again by the next run while model, data and settings stay the same.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`.
        training: Training arguments for the teacher. How it learns (epochs, steps, learning rate, schedule, warm-up,
            weight decay) is Transformers' default where this says nothing; all else is the recipe's own `training`.
        output_dir: Where to keep fine-tuned teachers, one folder for each combination of model, data and settings;
            `_teacher` beside the student if left out. Share one between recipes to fine-tune once.
        dtype: Of its weights while it teaches; it is fine-tuned in float32, or in the training's mixed precision.
        quantization: Likewise, as of a pretrained one.
        revision: Git revision on the Hub.
        trust_remote_code: Run model code from the checkpoint.
    """

    name: ClassVar[str] = "finetuned"

    model: str
    training: dict[str, Any] = Field(default_factory=dict)
    output_dir: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Quantization | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def has_head(self) -> bool:
        """See `Teacher.has_head`."""
        return False

    @property
    def fine_tuning(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Teacher.fine_tuning`."""
        return {"training": self.training}

    def config(self) -> PretrainedConfig:
        """See `Teacher.config`."""
        config = open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        if self.quantization is not None:
            check_whole(self.model, config)
        return config

    def check_task(self, task: Task) -> None:
        """Refuse a quantization that nothing here can do."""
        if self.quantization is not None:
            check_installed(self.quantization)

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Fine-tune the checkpoint, or find it fine-tuned."""
        model, _ = load_model(self.model, head, revision=self.revision, trust_remote_code=self.trust_remote_code)
        model = fine_tune(model, self.training, self.output_dir)
        if self.dtype != "float32" or self.quantization is not None:
            model, _ = load_model(
                str(model.name_or_path),
                head,
                own_head=True,
                dtype=self.dtype,
                quantization=self.quantization,
                trust_remote_code=self.trust_remote_code,
            )
        return model
