"""A student without the weights of another one that are of least saliency."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component, settings
from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.models.training_hooks import IN_SHORT, TrainingHooks
from hf_distill.students.around import AroundStudent
from hf_distill.students.base import Made
from hf_distill.students.copied import measuring

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.loading import Head
    from hf_distill.students.optimal_brain_damage.weights import Prunable


@component
class OptimalBrainDamage(AroundStudent):
    """The teacher, or another student, without the weights whose deletion is predicted to cost least.

    The saliency of a weight is `h w^2 / 2`, where `h` is the second derivative of the loss by this weight, measured on
    rows of the train split (LeCun, Denker and Solla 1990, Optimal Brain Damage). Deleted weights are zero in training
    and in the saved model, which makes neither the file smaller nor a step faster; deleted neurons are gone.

    Attributes:
        ratio: Share that is deleted at the end. By weight: of the matrices of linear layers inside the model's layers;
            embeddings, norms, biases, the head and frozen parts stay whole. By neuron: of the neurons of each layer.
        by: `weight` for single weights, wherever they are. `neuron` for neurons between the two linear maps of a layer,
            by the sum over their weights, of each layer the same number: the student is a narrower model.
        rounds: In how many rounds they are deleted: the first before training, the others at equal distances during
            the first half of the training (of its first stage), each by saliencies that are measured anew.
        rows: Number of rows of the train split on which second derivatives are measured. Labels are not needed.
    """

    name: ClassVar[str] = "optimal_brain_damage"

    ratio: Annotated[float, Field(ge=0)]
    by: Literal["weight", "neuron"] = "weight"
    rounds: Annotated[int, Field(ge=1)] = 1
    rows: Annotated[int, Field(ge=1)] = 256

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the inner student, by neuron with fewer of them.

        Raises:
            UserError: Nothing of it would be left, or it has no known neurons.
        """
        if self.ratio >= 1:
            raise UserError(f"{self.ratio:g} would delete everything. Wanted less than 1.", key="ratio")
        config = super().config(teacher)
        if not self.ratio or self.by == "weight":
            return config
        from hf_distill.students.optimal_brain_damage.neurons import without_neurons

        return without_neurons(config, self.ratio)

    def deletable(self, model: nn.Module) -> Prunable:
        """Return what can be deleted of a model.

        Raises:
            UserError: There is nothing, or it is frozen.
        """
        from hf_distill.students.optimal_brain_damage.neurons import Neurons
        from hf_distill.students.optimal_brain_damage.weights import Prunable

        return (Neurons if self.by == "neuron" else Prunable).of(model)

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Make the inner student, measure it, and delete what goes in the first round.

        Raises:
            UserError: The weights are quantized, there is nothing to delete, or nothing can be measured.
        """
        from hf_distill.students.freezing import freeze
        from hf_distill.students.optimal_brain_damage.curvature import increase
        from hf_distill.students.optimal_brain_damage.masks import shares_of
        from hf_distill.students.optimal_brain_damage.neurons import Neurons

        model, facts = self.inner(teacher, head, rows)
        if not self.ratio:
            return Made(model, facts)
        found = self.deletable(freeze(model, self.freeze))
        before, whole = found.zeros(), copy.deepcopy(model)
        with measuring(model), measuring(whole):
            predicted = found.delete(shares_of(self.ratio, self.rounds)[0], rows, self.rows)
            grown = {"predicted": predicted, "measured": increase(whole, model, rows, self.rows)}
        own = {
            "measured on": f"{min(self.rows, len(rows.train)):,} rows of the train split",
            "rounds": self.rounds,
            "increase of the loss in the first round": {name: float(f"{value:.3g}") for name, value in grown.items()},
        }
        if self.by == "weight":
            return Made(model, {**facts, **own, "zero before": str(before)})
        each = before.total // model.config.num_hidden_layers
        own["neurons of each layer"] = f"{each:,} before, {each - round(self.ratio * each):,} after"
        narrow = Neurons.of(model).removed(self.ratio) if self.rounds == 1 else model
        return Made(narrow, {**facts, **own})

    def in_words(self, model: PreTrainedModel) -> Sequence[str]:
        """Return how many weights will be zero, and how many parameters will not; or how many neurons stay.

        Raises:
            UserError: There is nothing to delete, or nothing would be left.
        """
        from hf_distill.students.freezing import freeze
        from hf_distill.students.widths import widths_of

        if not self.ratio:
            return super().in_words(model)
        found = self.deletable(freeze(model, self.freeze))
        if self.by == "neuron":
            each = widths_of(model.config).intermediate
            return (*super().in_words(model), f"{each:,} neurons of each layer stay; the others are removed")
        every, total = found.total, model.num_parameters()
        deleted = found.number(self.ratio)
        line = (
            f"{deleted:,} of {every:,} weights of linear layers become zero; {count(total - deleted)} of "
            f"{count(total)} parameters do not. Its file is as large as before, and a step takes as long"
        )
        return (*super().in_words(model), line)

    def check_steps(self, steps: int) -> None:
        """Refuse a training with fewer steps than rounds.

        Raises:
            UserError: It has fewer.
        """
        from hf_distill.students.optimal_brain_damage.masks import fitting_steps

        super().check_steps(steps)
        if self.ratio:
            fitting_steps(self.rounds - 1, steps)

    def hooks(self, rows: CalibrationRows, stage: int = 1) -> TrainingHooks:
        """Return masks, and in the first stage the later rounds."""
        removed = self.by == "neuron" and (self.rounds == 1 or stage > 1)  # a plain model, without zeros
        return self.student.hooks(rows, stage) if removed or not self.ratio else _Masked(self, rows, stage)


class _Masked(TrainingHooks):
    """Masks in a training, and the rounds after the first.

    Args:
        entry: The recipe's entry.
        rows: Rows of the train split.
        stage: Which stage is trained.
    """

    def __init__(self, entry: OptimalBrainDamage, rows: CalibrationRows, stage: int) -> None:
        from hf_distill.students.optimal_brain_damage.masks import shares_of

        self._entry, self._rows = entry, rows
        self.wraps = entry.by == "neuron"
        self._later = shares_of(entry.ratio, entry.rounds)[1:] if stage == 1 else []

    def callbacks(self, model: nn.Module) -> Sequence[TrainerCallback]:
        from hf_distill.students.optimal_brain_damage.masks import Masks

        found = self._entry.deletable(model)
        return (Masks(found.weights, self._later, lambda share: found.delete(share, self._rows, self._entry.rows)),)

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        from hf_distill.students.optimal_brain_damage.neurons import Neurons

        return Neurons.of(model).removed(self._entry.ratio)

    def sharded(self) -> UserError | None:
        return UserError(
            "deleted weights are held at zero in whole matrices, which FSDP and DeepSpeed shard. Train without them "
            "(accelerate launch with another configuration).",
            key="student",
        )

    def deciding(self) -> dict[str, Any]:
        own = {key: value for key, value in settings(self._entry).items() if key not in ("freeze", "student")}
        return {self._entry.name: {**own, "later rounds": self._later}}

    def in_words(self, model: nn.Module) -> Sequence[str]:
        more = f"; in {len(self._later)} more rounds {100 * self._entry.ratio:.1f} %" if self._later else ""
        return (f"{self._entry.name}: {self._entry.deletable(model).zeros()} are zero and stay zero{more}",)

    def outcome(self, model: PreTrainedModel) -> dict[str, Any]:
        from hf_distill.students.freezing import freeze
        from hf_distill.students.optimal_brain_damage.weights import Prunable, zeros_by_kind

        if self.wraps:
            return {}
        weights = Prunable.of(freeze(model, self._entry.freeze))  # nothing is frozen in a model that was loaded
        nonzero, every = model.num_parameters() - weights.zeros().number, model.num_parameters()
        return {
            IN_SHORT: (
                f"{count(every - nonzero)} of its {count(every)} parameters are zero; its file is as large as with "
                "them, and a step takes as long."
            ),
            "zero after": str(weights.zeros()),
            "zero by matrix": zeros_by_kind(weights.named),
            "parameters that are not zero": f"{nonzero:,} of {every:,}",
        }
