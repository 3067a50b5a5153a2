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
    """A checkpoint; a head it lacks is made new.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`.
        revision: Git revision on the Hub.
        trust_remote_code: Run model code from the checkpoint.
    """

    name: ClassVar[str] = "pretrained"

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    def own_config(self) -> PretrainedConfig:
        """See `Student.own_config`."""
        return open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """See `Student.config`."""
        return self.own_config()

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Load the checkpoint."""
        model, _ = load_model(self.model, head, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return model
