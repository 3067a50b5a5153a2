"""A loaded model as a teacher entry, for Python users."""

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
        """Always true: the model's head is trained."""
        return True

    @property
    def by_temperature(self) -> bool:
        """Whether the model is a source of targets that are others at every temperature."""
        return bool(getattr(self.loaded, "by_temperature", False))

    def config(self) -> PretrainedConfig:
        """Return the configuration of the model."""
        from hf_distill.models.inspection import base_model

        config: Any = base_model(self.loaded).config
        return config  # type: ignore[no-any-return]

    def load(self, head: Head, fine_tune: FineTune) -> Any:
        """Return the model."""
        return self.loaded


def as_entry(given: Any) -> Any:
    """Return the entry for a model, an id or a path; return any other value unchanged."""
    if isinstance(given, str | os.PathLike):
        return PretrainedTeacher(model=os.fspath(given))
    torch: Any = sys.modules.get(
        "torch"
    )  # a model exists only if torch is imported already; reading a recipe does not import it
    return LoadedTeacher(loaded=given) if torch is not None and isinstance(given, torch.nn.Module) else given
