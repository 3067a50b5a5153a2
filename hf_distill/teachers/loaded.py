"""A teacher that a Python user has loaded, where an entry of a recipe is wanted."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component
from hf_distill.teachers.base import FineTune, Teacher
from hf_distill.teachers.pretrained import PretrainedTeacher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head


@component
class LoadedTeacher(Teacher):
    """A model, its head trained.

    Attributes:
        loaded: The model.
    """

    name: ClassVar[str] = "loaded"

    loaded: Any

    @property
    def has_head(self) -> bool:
        """See `Teacher.has_head`."""
        return True

    def config(self) -> PretrainedConfig:
        """See `Teacher.config`."""
        from hf_distill.models.inspection import base_model

        config: Any = base_model(self.loaded).config
        return config  # type: ignore[no-any-return]

    def load(self, head: Head, fine_tune: FineTune) -> Any:
        """Return the model."""
        return self.loaded


def as_entry(given: Any) -> Any:
    """Return the entry for a model, or for its id or path; anything else as it is."""
    if isinstance(given, str | os.PathLike):
        return PretrainedTeacher(model=os.fspath(given))
    torch: Any = sys.modules.get("torch")  # who has a model has imported it; reading a recipe does not wait for it
    return LoadedTeacher(loaded=given) if torch is not None and isinstance(given, torch.nn.Module) else given
