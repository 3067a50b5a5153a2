"""Objectives on logits that are not divergences: squared error, ranking, labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from hf_distill.component import component
from hf_distill.models.needs import Needs
from hf_distill.objectives.base import RowObjective
from hf_distill.objectives.class_weights import ClassWeights
from hf_distill.objectives.functional import label_loss, logistic_ranking, mean_squared_error
from hf_distill.rows.base import SparseRows, Unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@component
class LogitsMSE(RowObjective):
    """Mean squared error of the logits.

    Formula:
        `1 / V * sum_v (teacher_v - student_v)^2`

    It is the loss for regression, where a softmax over one predicted value says nothing, and for cosines of sentences.
    It has no temperature, since the square would cancel it. It is the limit of twice `kl` for a large temperature, if
    both models' logits have mean zero. The paper has a sum instead of the mean.
    """

    name: ClassVar[str] = "logits_mse"
    paper: ClassVar[str] = "Ba and Caruana 2014, Do Deep Nets Really Need to be Deep?, arXiv 1312.6184"
    takes_values: ClassVar[bool] = True
    compares_logits: ClassVar[bool] = True
    needs_all_classes: ClassVar[str] = "it compares logits, and log-probabilities are those only up to a constant"

    def rows(self, student: Tensor, teacher: Tensor | SparseRows | None, labels: Tensor) -> Tensor:
        """Return the mean squared difference of each row, `(rows,)`."""
        return mean_squared_error(student, self.dense(teacher))


@component
class Ranking(RowObjective):
    """Order the teacher's most likely classes as the teacher does.

    Formula:
        mean of `log(1 + exp(s_j - s_i))` over pairs of the `top` classes that the teacher ranks `i` above `j`

    DistillKit calls it `logistic_ranking`. It has no finite minimum: combine it with another objective. With a sparse
    teacher it has the dense value if `top` classes are stored.

    Attributes:
        top: How many of the teacher's most likely classes to compare, each with each; all, if there are fewer.
    """

    name: ClassVar[str] = "ranking"
    paper: ClassVar[str] = "Burges et al. 2005, Learning to Rank using Gradient Descent (RankNet), equation 3"
    likeliest: ClassVar[str | None] = "top"
    takes_sparse: ClassVar[bool] = True

    top: Annotated[int, Field(ge=2)] = 8

    def rows(self, student: Tensor, teacher: Tensor | SparseRows | None, labels: Tensor) -> Tensor:
        """Return the ranking loss of each row, `(rows,)`."""
        top = min(self.top, student.shape[-1])
        if not isinstance(teacher, SparseRows):
            values, indices = self.dense(teacher).topk(top)
            return logistic_ranking(student.gather(-1, indices), values)
        if (kept := teacher.indices.shape[-1]) < top:
            raise ValueError(
                f"'{self.name}' compares the teacher's {top} likeliest classes, and {kept} were kept. Keep more, or "
                f"set top to {kept} at most."
            )
        values, places = teacher.log_probabilities.topk(top)
        return logistic_ranking(student.gather(-1, teacher.indices.gather(-1, places)), values)


@component
class Labels(RowObjective):
    """The ordinary loss on the labels, from logits at temperature 1.

    Formula:
        `-w_y log q_y`; for a soft label `y`: `-sum_v w_v y_v log q_v`; for regression: `(student - label)^2`

    It is computed here, never taken from `outputs.loss`: several Transformers heads ignore `num_items_in_batch`, so
    that their loss changes with gradient accumulation and the number of processes.

    Attributes:
        label_smoothing: Share of the target that is spread evenly over all classes. Not for regression.
        class_weights: Weights `w` of the classes, for one label a row: `balanced` (`n / (k * n_c)`, by the labels of
            the train split, as in scikit-learn), a list in the order of the head, or `{name: weight}` (1 for those left
            out). The sum is still divided by the number of labels. Default: all 1.
    """

    name: ClassVar[str] = "labels"
    paper: ClassVar[str] = (
        "Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, section 7 (smoothing)"
    )
    unit: ClassVar[Unit] = "label"
    needs_teacher: ClassVar[bool] = False
    takes_values: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = True
    takes_distributions: ClassVar[bool] = True

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    class_weights: ClassWeights | None = None

    def needs(self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None) -> Needs:
        """Return what it needs; see `Objective.needs`. Smoothing is for classes."""
        smoothed = (("label_smoothing", "smoothing spreads a label over classes"),) if self.label_smoothing else ()
        return replace(super().needs(student, teacher), for_classes=smoothed)

    @property
    def takes_impossible(self) -> bool:
        """Smoothing would give every column a share. See `RowObjective`."""
        return self.label_smoothing == 0 and self.class_weights is None

    def rows(self, student: Tensor, teacher: Tensor | SparseRows | None, labels: Tensor) -> Tensor:
        """Return the label loss of each row, `(rows,)`."""
        if isinstance(self.class_weights, str | dict):
            raise ValueError("class_weights: DistillationTrainer makes numbers of it; here wanted a list.")
        return label_loss(student, labels, self.label_smoothing, self.class_weights)
