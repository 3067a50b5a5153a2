"""A student of which only adapters are trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component, settings
from hf_distill.errors import UserError
from hf_distill.locations import resolve
from hf_distill.models.adapters import find_adapter
from hf_distill.models.lora import Adapters, Lora
from hf_distill.models.training_hooks import TrainingHooks
from hf_distill.students.around import AroundStudent
from hf_distill.students.base import Made, Student
from hf_distill.students.pretrained import PretrainedStudent

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.loading import Head


@component
class LoraStudent(Lora, AroundStudent):
    """Low-rank adapters (`peft`) on any student: they are trained in place of its weights, and a new head whole.

    LoRA: `W + s B A` beside linear layers, Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353.
    Checkpoints hold the adapters and the head alone. While it trains, frozen weights that equal the teacher's are held
    once, so that a teacher with the same base costs no second copy.

    Attributes:
        student: The student that gets the adapters, any other entry: `{name: copy_layers, layers: 6}`. Default: the
            teacher, whole.
        model: Short for `student: {name: pretrained, model: ...}`. Default: none.
        merge: Merge the adapters into the weights at the end: the result is a plain model. If false, only the adapters
            (and a new head) are saved and pushed, and loaded together with their base, which has to be a checkpoint.
    """

    name: ClassVar[str] = "lora"

    model: str | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        """Refuse two bases, frozen parts, and what cannot be saved as an adapter."""
        if self.model is not None and settings(self).get("student"):
            raise ValueError("model is short for student: {name: pretrained, model: ...}. Leave one of the two out")
        if self.freeze:
            raise ValueError("freeze: adapters leave all other weights as they are. Leave it out")
        if self.use_dora and not self.merge:
            raise ValueError(
                "merge: from_pretrained of Transformers reads adapters with use_dora without their lengths, and gives "
                "other outputs. Leave merge out, or use_dora"
            )

    @property
    def inside(self) -> Student:
        """The student that gets the adapters."""
        return self.student if self.model is None else PretrainedStudent(model=self.model)

    def below(self) -> AbstractContextManager[None]:
        """Context manager: put the key of the inner entry before the keys of errors."""
        return super().below() if self.model is None else nullcontext()

    @property
    def not_teaching(self) -> str | None:
        """Adapters alone do not have the names of the classes."""
        return None if self.merge else "merge: adapters alone do not name their classes. Leave merge: false out"

    @property
    def not_pushed(self) -> str | None:
        """Why adapters alone are not pushed: their base is only here; None if it is on the Hub."""
        if self.merge or self.source is None or not os.path.exists(resolve(self.source)):
            return None
        return (
            f"adapters alone are loaded with their base, and '{self.source}' is on this machine only. Name one on the "
            "Hub, or leave merge: false out"
        )

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the student inside.

        Raises:
            UserError: It does not fit the teacher, or adapters alone are to be saved and there is no checkpoint to load
                them with.
        """
        config = super().config(teacher)
        if not self.merge:
            self._check_base()
        return config

    def _check_base(self) -> None:
        """Refuse a base that `from_pretrained` cannot load beside the adapters."""
        way_out = "Leave merge out: the student is then saved whole"
        if self.inside.own_config() is None:
            raise UserError(
                "adapters alone need a checkpoint to be loaded with, and the model that gets them is made in this run "
                f"and saved nowhere. {way_out}; or name a checkpoint, {{name: lora, model: ...}}.",
                key="merge",
            )
        gguf = str(self.source).endswith(".gguf")
        if gguf or find_adapter(self.source) is not None:
            kind = "a .gguf file" if gguf else "an adapter itself"
            raise UserError(f"'{self.source}' is {kind} and cannot be the base of an adapter. {way_out}.", key="merge")

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Return the model of the student inside, still without adapters (`hooks` adds them).

        Raises:
            UserError: A layer that is to have an adapter does not exist, or is narrower than the rank.
        """
        model, facts = self.inner(teacher, head, rows)
        return Made(model, {**facts, ("DoRA" if self.use_dora else "LoRA"): self._facts(model)})

    def in_words(self, model: PreTrainedModel) -> Sequence[str]:
        """Return a line that says how much is trained and what is saved.

        Raises:
            UserError: A layer that is to have an adapter does not exist, or is narrower than the rank.
        """
        if not self.merge and model.base_model is model and not model.can_generate():
            raise UserError(
                "a sentence encoder is saved with how it pools, for which adapters alone have no place. Leave it out.",
                key="merge",
            )
        facts, checkpoints = self._facts(model), _megabytes(self.trained(model))
        return (
            *super().in_words(model),
            f"{self.name}: rank {self.r}; {facts['trained parameters']} parameters are trained; checkpoints hold "
            f"{checkpoints} of weights; saved at the end: {facts['saved']}",
        )

    def _facts(self, model: PreTrainedModel) -> dict[str, Any]:
        trained, total = self.trained(model), model.num_parameters()
        whole = f"merged into the weights, {_megabytes(total)}"
        return {
            "rank": self.r,
            "alpha": self.alpha,
            "trained parameters": f"{trained:,} of {total:,} ({100 * trained / total:.2g} %)",
            "saved": whole if self.merge else f"the adapters alone, {_megabytes(trained)}",
        }

    def without_adapters(self) -> Callable[[Head], PreTrainedModel]:
        """Return what loads the checkpoint that the adapters are added to.

        Raises:
            UserError: They are added to a model that is made in this run.
        """
        if self.inside.own_config() is None:
            raise UserError(
                "its adapters are added to a model that is made in this run and saved nowhere. Name a checkpoint: "
                "student: {name: lora, model: ...}.",
                key="name",
            )
        base: Any = None  # no teacher: it is a checkpoint
        return lambda head: self.inside.make(base, head)

    def hooks(self, rows: CalibrationRows, stage: int = 1) -> TrainingHooks:
        """Return the adapters; the same go on from stage to stage."""
        lora = Lora(**{name: getattr(self, name) for name in Lora.__pydantic_fields__})  # type: ignore[attr-defined]
        return Adapters(lora, self.merge, self.revision)


def _megabytes(parameters: int) -> str:
    return f"{parameters * 4 / 1e6:,.1f} MB"
