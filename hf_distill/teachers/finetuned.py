"""A teacher that the run first fine-tunes on the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.teachers.base import FineTune, FineTuning, Teacher

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.tasks import Task


@component
class FinetunedTeacher(Teacher):
    """A checkpoint that the run first fine-tunes on the labels of the train split.

    The result is stored, and reused by every run with the same model, data and settings.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`. It may also be a `.gguf` file or the directory of a PEFT
            adapter.
        training: Training arguments for the fine-tuning. Epochs, steps, learning rate, schedule, warm-up and weight
            decay default to those of Transformers; everything else to the recipe's `training`.
        output_dir: Directory of fine-tuned teachers, with one folder for each combination of model, data and settings.
            Recipes that share it fine-tune once; a run waits while another one trains the same teacher. Default:
            `_teacher` in `training.output_dir`.
        dtype: Precision of the weights while teaching; it affects neither fine-tuning nor reuse. Fine-tuning is in
            float32, or in the mixed precision of `training`.
        quantization: Quantize the weights while teaching, as for a pretrained teacher; it affects neither fine-tuning
            nor reuse. Default: none.
        revision: Git revision of the model on the Hub: branch, tag or commit. Default: the main branch.
        trust_remote_code: Run the Python code that comes with the checkpoint.
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
        """Always false: the head is trained by the run."""
        return False

    @property
    def fine_tuning(self) -> Mapping[str, Mapping[str, Any]]:
        """The training arguments of the fine-tuning, under the key `training`."""
        return {"training": self.training}

    def config(self) -> PretrainedConfig:
        """Return the configuration of the checkpoint."""
        config = open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        if self.quantization is not None:
            check_whole(self.model, config)
        return config

    def check_task(self, task: Task) -> None:
        """Refuse a quantization whose package is not installed."""
        if self.quantization is not None:
            check_installed(self.quantization)

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Return the fine-tuned model; it is loaded if it was fine-tuned before."""
        model, _ = load_model(self.model, head, revision=self.revision, trust_remote_code=self.trust_remote_code)
        model = fine_tune(model, FineTuning(self.training, self.output_dir))
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
