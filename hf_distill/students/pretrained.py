"""A student that starts from a checkpoint of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.students.base import Student

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@component
class PretrainedStudent(Student):
    """A checkpoint. If it lacks the task's head, a new one is initialised.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`. It may also be a `.gguf` file or the directory of a PEFT
            adapter.
        revision: Git revision of the model on the Hub: branch, tag or commit. Default: the main branch.
        trust_remote_code: Run the Python code that comes with the checkpoint.
    """

    name: ClassVar[str] = "pretrained"

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    def own_config(self) -> PretrainedConfig:
        """Return the configuration of the checkpoint."""
        return open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the checkpoint."""
        return self.own_config()

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Load the checkpoint."""
        model, _ = load_model(self.model, head, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return model
