"""What a student is: a recipe entry that makes the model to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models import Head


@component
class Student(ABC):
    """Where the student comes from."""

    name: ClassVar[str]

    @abstractmethod
    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration the student will have, without loading weights.

        Raises:
            UserError: The entry does not fit the teacher (more layers than it has, ...).
        """

    @abstractmethod
    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Return the model to train, in float32, with the head the task wants.

        What is random in it (a new head, a model from a configuration) follows torch's seed.
        """

    def own_config(self) -> PretrainedConfig | None:
        """Return the configuration of the student's own checkpoint; None where it is derived from the teacher."""
        return None
