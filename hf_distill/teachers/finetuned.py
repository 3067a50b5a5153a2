"""A teacher that the run first fine-tunes on the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from hf_distill.component import component
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.models.lora import Lora
from hf_distill.models.outline import outline
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.objectives import Objective
from hf_distill.objectives.fit import check_fit
from hf_distill.teachers.base import FineTune, FineTuning, Teacher, under
from hf_distill.teachers.early_stopping import OWNED, EarlyStopping

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.pair import Pair
    from hf_distill.tasks import Task


def as_tuple(given: Any) -> Any:
    """Return a list as a tuple, since Python users may write a list, as YAML does; any other value unchanged."""
    return tuple(given) if isinstance(given, list) else given


@component
class FinetunedTeacher(Teacher):
    """A checkpoint that the run first fine-tunes on the labelled rows of the train split.

    The result is stored, and reused by every run with the same model, data and settings.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`. It may also be a `.gguf` file or the directory of a PEFT
            adapter.
        training: Training arguments for the fine-tuning. Epochs, steps, learning rate, schedule, warm-up and weight
            decay default to those of Transformers; everything else to the recipe's `training`.
        objectives: What it learns from, such as `labels` with `class_weights`; it has no teacher of its own. Default:
            `labels`.
        lora: Train low-rank adapters (`peft`) in place of the weights, `true` or `{r, alpha, dropout, target_modules,
            use_rslora, use_dora}`; the head is trained whole. They are merged at the end: the result is a whole model,
            while checkpoints hold adapters and head alone.
        early_stopping: End the fine-tuning once it no longer gets better on held-out labelled rows, and take the best
            weights: `{patience, metric, min_delta, share}`. Default: none.
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
    objectives: Annotated[tuple[Objective, ...], BeforeValidator(as_tuple)] = ()
    lora: Lora | bool = False
    early_stopping: EarlyStopping | None = None
    output_dir: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Quantization | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse objectives that need a teacher, and two settings for when to stop."""
        for index, one in enumerate(self.objectives):
            if one.needs_teacher:
                raise ValueError(
                    f"objectives[{index}]: '{one.name}' compares with a teacher, and this one has no teacher of its "
                    "own. Wanted objectives on the labels, such as labels"
                )
        both = [key for key in OWNED if key in self.training] if self.early_stopping is not None else []
        if both:
            raise ValueError(f"training.{both[0]}: early_stopping sets it; name the metric there")
        if self.early_stopping is not None and self.training.get("eval_strategy") == "no":
            raise ValueError("training.eval_strategy: no, but early_stopping needs evaluations. Leave it out")

    @property
    def has_head(self) -> bool:
        """Always false: the head is trained by the run."""
        return False

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """How it is fine-tuned, under the key `training`."""
        return {"training": self._how}

    @property
    def _how(self) -> FineTuning:
        lora = Lora() if self.lora is True else self.lora or None
        return FineTuning(
            self.training, self.output_dir, self.objectives, lora=lora, early_stopping=self.early_stopping
        )

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

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse objectives that mean nothing on this data, and adapters for layers that the model does not have."""
        facts, how = task.facts(), self._how
        for index, one in enumerate(self.objectives):
            check_fit(one, None, facts, (pair.teacher, pair.teacher), f"objectives[{index}]")
        if how.lora is not None:
            with under("lora"):
                how.lora.targets(outline(task.auto_class, pair.teacher, trust_remote_code=self.trust_remote_code))

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Return the fine-tuned model; it is loaded if it was fine-tuned before."""
        model, _ = load_model(self.model, head, revision=self.revision, trust_remote_code=self.trust_remote_code)
        model = fine_tune(model, self._how)
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
