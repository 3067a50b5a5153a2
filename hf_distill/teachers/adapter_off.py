"""The student's base as its teacher: the student itself with its adapters off, so that one copy of the weights does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.adapters_off import WithoutAdapters
from hf_distill.models.inspection import taken_by
from hf_distill.models.lora import has_adapters
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import MadeOfStudent, RunModel, Targets, TargetSource
from hf_distill.teachers.base import FineTune
from hf_distill.teachers.context import InContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Task

WHO = "The teacher here is the student's own base: the same model before its adapters were trained."
OFF = "the student with its adapters off"


@component
class AdapterOffTeacher(InContext):
    """The base of a student with adapters: the student itself, with its adapters off while it teaches.

    There is one copy of the weights. The base teaches in eval mode, and its outputs are those of the checkpoint that
    the adapters were added to, bit for bit. For the report it is loaded once more, since adapters are merged into the
    weights at the end.
    """

    name: ClassVar[str] = "adapter_off"

    @property
    def has_head(self) -> bool:
        """Always true: a new head would teach noise."""
        return True

    @property
    def is_without_model(self) -> bool:
        """Always true: it runs the student's weights."""
        return True

    @property
    def not_cached(self) -> str:
        """What to store in its place."""
        return (
            "the base does not change, so its targets can be stored, but without the student: name it, {name: cached, "
            "teacher: {name: pretrained, model: the model of the student}}"
        )

    @property
    def follows_student(self) -> bool:
        """Always true: without the student there is no model."""
        return True

    def config(self) -> PretrainedConfig:
        """Return a default configuration, because the entry names no checkpoint."""
        from transformers import PretrainedConfig

        return PretrainedConfig()

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the checkpoint that the student's adapters are added to.

        Raises:
            UserError: The student has no adapters, or they are added to a model that is in no checkpoint.
        """
        if student.without_adapters() is None:
            raise UserError(
                f"the teacher is {OFF}, and {student.name} has none. Wanted student: {{name: lora, model: ...}}."
            )
        config = student.own_config()
        assert config is not None
        return config

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        return f"{size(config)}; {OFF}: no copy of its own"

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what it gives to objectives."""
        return replace(GIVES, own_tokens=self.reads_another_prompt)

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return a source that has no model until a student begins to train."""
        return AdapterOff()

    def load_beside(self, student: Student, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return what `load` returns; at the end of the training it loads the base for the report."""
        opened = student.without_adapters()
        assert opened is not None
        return AdapterOff(lambda: opened(head))


# Hooks in its layers would see both models.
GIVES = Gives(OFF, states=None, attentions=True)


class AdapterOff(TargetSource):
    """The base of the student that trains: the student with its adapters off.

    Args:
        opened: Loads the base for the report; None to leave it at the student.
    """

    def __init__(self, opened: Callable[[], PreTrainedModel] | None = None) -> None:
        super().__init__()
        self._opened = opened
        self.config = None
        self._base: tuple[Any, ...] = ()

    @property
    def model(self) -> Any:
        """The base; this source itself before a training begins."""
        return self._base[0] if self._base else self

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The base under the name `teacher`; empty before a training begins."""
        return {"teacher": self._base[0]} if self._base else {}

    @property
    def takes(self) -> frozenset[str]:
        """The columns of a batch that the base reads."""
        return taken_by(self._base[0]) if self._base else frozenset()

    @property
    def measured(self) -> Any:
        """The model whose size and speed are measured."""
        return self._base[0] if self._base else None

    @property
    def follows_student(self) -> bool:
        """Always true: it runs the student's weights."""
        return True

    def gives(self) -> Gives:
        """Return what it gives to objectives: outputs, but no layers of its own to look into."""
        return GIVES

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        return WHO

    def fingerprint(self) -> str:
        """Return a fingerprint of the kind; the weights are the student's."""
        return fingerprint("adapter_off")

    def place(self, device: torch.device) -> None:
        """Leave the weights where they are if they are the student's."""
        if self._base and not isinstance(self._base[0], WithoutAdapters):
            super().place(device)

    def for_training(self) -> TargetSource:
        """Return a new source, for one training."""
        return AdapterOff(self._opened)

    def at_end(self, trained: TargetSource) -> TargetSource:
        """Return the base as a model of its own, since the student's adapters may be merged into its weights."""
        if self._opened is None:
            return trained
        base = self._opened() if isinstance(trained.model, WithoutAdapters) else trained.model
        return MadeOfStudent(base, WHO)

    def begin(self, student: nn.Module) -> None:
        """Take the student's weights as those of the base.

        Where a run finds its student finished, with the adapters merged, the base is loaded.

        Raises:
            UserError: The student has no adapters, or their kind cannot be switched off.
        """
        if self._base and getattr(self._base[0], "student", None) is student:
            return
        merged = self._opened is not None and not has_adapters(student)
        self._base = (self._opened() if self._opened and merged else WithoutAdapters(student),)
        self.config = self._base[0].config

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of the base."""
        return Targets(run("teacher"))
