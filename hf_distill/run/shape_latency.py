"""Times models of given shapes, with random weights, beside a model of the teacher's shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_distill.models.outline import random_model
from hf_distill.run.evaluation import latencies
from hf_distill.run.student_cost import Timed
from hf_distill.students.base import with_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared

# Time to spend on each of the two models.
SECONDS = 1.0


@dataclass(frozen=True)
class ShapeLatency:
    """Measures the time of a forward pass of models that have no weights yet.

    The inputs are those of the report's latencies. The two models take turns, as in the report.

    Attributes:
        recipe: The recipe.
        teacher: Configuration of the teacher.
        prepared: The data, as the student reads it.
        device: Device of the run.
        batch_size: Examples of a batch in evaluations.
    """

    recipe: Recipe
    teacher: PretrainedConfig
    prepared: Prepared
    device: torch.device
    batch_size: int

    def __call__(self, student: PretrainedConfig) -> Timed:
        """Return the median times of one example, in milliseconds."""
        (_, teacher), *_ = self.recipe.teacher.members()
        wanted = getattr(teacher, "dtype", "float32")
        dtype = self.teacher.dtype if wanted == "auto" else getattr(torch, wanted)
        models = {"teacher": self._model(self.teacher, dtype), "student": self._model(student, torch.float32)}
        found = latencies(self.prepared, models, self.batch_size, seconds=SECONDS)
        return Timed(found["student"].single.median_ms, found["teacher"].single.median_ms)

    def _model(self, config: PretrainedConfig, dtype: Any) -> PreTrainedModel:
        head = self.prepared.head
        model = random_model(
            head.auto_class, with_head(copy.deepcopy(config), head), trust_remote_code=self.recipe.trusts_code
        )
        model = model if head.adapt is None else head.adapt(model)
        placed: Any = model
        return placed.to(device=self.device, dtype=dtype or torch.float32)  # type: ignore[no-any-return]
