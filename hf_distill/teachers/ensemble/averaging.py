"""Several models as one source of targets: students learn from the mean of their distributions or logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.data.label_names import label_names, positions
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.inspection import LABELS, base_model, taken_by
from hf_distill.models.mixing import Combine, Mean
from hf_distill.models.needs import Gives
from hf_distill.models.outline import head_kind
from hf_distill.models.target_model import PREFIX, RunModel, Targets, TargetSource
from hf_distill.rows.base import RowLayout
from hf_distill.rows.mixture import mean_outputs

# What an ensemble gives to objectives: rows, but no hidden states or attention.
GIVES = Gives("an ensemble")
# Column of a batch: the number of the teacher that teaches an example, where the data names one.
ROUTE = f"{PREFIX}route"


class Ensemble(TargetSource):
    """Models of which the mean is taken.

    Args:
        models: Models with trained heads and the same classes.
        weights: Weight of each model, above 0; None for equal weights; `"confidence"` for weights by row, and
            `"validation"` for weights that `settle` finds.
        combine: What is averaged.
        names: What reports call the models; None to number them.
        routed: Whether each example has one teacher, whose number is in the column `ROUTE`.

    Raises:
        UserError: The classes differ.
    """

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[float] | str | None = None,
        *,
        combine: Combine = "probabilities",
        names: Sequence[str] | None = None,
        routed: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        # One teacher a row: its logits are the mean, at every temperature.
        self.combine, self.routed = "logits" if routed else combine, routed
        self.by_confidence, self.settled = weights == "confidence", weights != "validation"
        given = [1.0] * len(models) if weights is None or isinstance(weights, str) else weights
        self.weights = tuple(weight / sum(given) for weight in given)
        self.names = tuple(names or (f"teacher {number}" for number in range(1, len(models) + 1)))
        self.config = base_model(models[0]).config
        classifies = head_kind(type(base_model(models[0])).__name__) == "labels"
        # As far as a configuration tells; `settle` knows.
        self._has_classes = not classifies or self.config.num_labels > 1
        self.columns = [_named_order(self, one, name) if classifies else None for one, name in self._named()]
        self._taken = [taken_by(one) for one in models]

    def _named(self) -> list[tuple[Any, str]]:
        return list(zip(self.members, self.names, strict=True))

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models by name: `teacher 1`, `teacher 2`, ..."""
        return {f"teacher {number}": one for number, one in enumerate(self.members, 1)}

    @property
    def takes(self) -> frozenset[str]:
        """The columns of a batch that any of the models reads, and which of them teaches."""
        return frozenset({ROUTE} if self.routed else ()).union(*self._taken)

    @property
    def measured(self) -> Any:
        """The model whose size and speed are measured: the whole ensemble."""
        return self

    @property
    def copied(self) -> Any:
        """The model whose layers a student copies: the first."""
        return self.members[0]

    @property
    def device(self) -> torch.device:
        """Device of the first model."""
        return next(self.members[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the first model's weights."""
        return next(one.dtype for one in self.members[0].parameters() if one.is_floating_point())

    @property
    def is_quantized(self) -> bool:
        """Whether the first model's weights are quantized."""
        return bool(getattr(self.members[0], "is_quantized", False))

    @property
    def by_temperature(self) -> bool:
        """Whether the mean is another one at every temperature: that of distributions is."""
        return self.combine == "probabilities"

    def fingerprint(self) -> str:
        """Return a fingerprint of the models and of how they are averaged."""
        own = {"combine": self.combine, "confidence": self.by_confidence, "routed": self.routed}
        default = {"combine": "probabilities", "confidence": False, "routed": False}
        models = [model_fingerprint(one) for one in self.members]
        return fingerprint(models, self.weights, *([own] if own != default else []))

    def facts(self) -> Mapping[str, Any]:
        """Return how the teachers are averaged, for the report."""
        if self.routed:
            return {"combined": "each row by the teacher that the data names"}
        return Mean(self.weights, self.combine, self.by_confidence).in_words(self.names, classes=self._has_classes)

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        return together_in_words(len(self.members), routed=self.routed)

    def gives(self) -> Gives:
        """Return what it gives to objectives: rows only."""
        return GIVES

    def predicting(self, layout: RowLayout) -> nn.Module:
        """Return a module with the ensemble's predictions at temperature 1."""
        return Predictor(self, layout)

    def parts(self, layout: RowLayout) -> Mapping[str, nn.Module]:
        """Return each teacher by its name, with the classes in the order of the first; none if there is only one."""
        if len(self.members) == 1:
            return {}
        return {name: Predictor(self, layout, only=at) for at, name in enumerate(self.names)}

    def settle(self, layout: RowLayout, loss: Callable[..., float]) -> None:
        """Find the weights by the losses of the teachers on labelled rows, where they are to be found so.

        See `by_losses` for the formula.
        """
        self._has_classes = layout.has_classes
        if self.settled:
            return
        alone = (Predictor(self, layout, only=member, for_student=True) for member in range(len(self.members)))
        self.weights = by_losses([loss(one) for one in alone], classes=layout.has_classes)
        self.settled = True

    def begin(self, student: nn.Module) -> None:
        """Refuse a training before the weights are known."""
        if not self.settled:
            raise UserError(
                "teacher: only a run of a recipe finds weights by validation. Write the weights themselves, or "
                "weights: confidence."
            )

    def mean(self, batch: Mapping[str, Any]) -> Mean:
        """Return how the teachers are averaged in a batch."""
        weights: tuple[float, ...] | Tensor = self.weights
        if self.routed:
            if ROUTE not in batch:
                raise UserError(
                    f"teacher: each example has one teacher, and the batch has no column {ROUTE} with its number, from "
                    "0. Add it to the data set."
                )
            weights = nn.functional.one_hot(batch[ROUTE].long(), len(self.members)).to(torch.float32)
        return Mean(weights, self.combine, self.by_confidence)

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of every model, and how they are averaged."""
        outputs = (run(name) for name in self.models)
        return Targets(mixed=tuple(map(_reordered, outputs, self.columns)), mean=self.mean(batch))

    def outputs(self, inputs: Mapping[str, Any], member: int) -> Mapping[str, Any]:
        """Return the outputs of a model, with classes in the order of the first.

        Args:
            inputs: The columns of `takes`.
            member: Number of the model, from 0.
        """
        given = {name: value for name, value in inputs.items() if name in self._taken[member]}
        return _reordered(self.members[member](**given), self.columns[member])

    def forward(self, **inputs: Any) -> list[Mapping[str, Any]]:
        """Return the outputs of every model, with classes in the order of the first.

        Args:
            inputs: The columns of `takes`.
        """
        return [self.outputs(inputs, member) for member in range(len(self.members))]


class Predictor(nn.Module):
    """An ensemble as one model, whose logits are those of the mean at temperature 1; or one of its members.

    Args:
        ensemble: The ensemble.
        layout: Row layout of the task.
        only: Number of the member whose predictions are wanted; None for the mean.
        for_student: Whether classes are in the student's order, not in that of the first member.
    """

    def __init__(
        self, ensemble: Ensemble, layout: RowLayout, only: int | None = None, *, for_student: bool = False
    ) -> None:
        super().__init__()
        self.ensemble, self.layout, self.config, self.only = ensemble, layout, ensemble.config, only
        self.order = layout.teacher_columns if for_student else None
        self.takes = ensemble.takes.union(layout.columns) - LABELS

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """Return the outputs that the layout reads.

        Args:
            inputs: The columns of `takes`.
        """
        if self.only is not None:
            made = _reordered(self.ensemble.outputs(inputs, self.only), self.order)
            return {name: made[name] for name in self.layout.outputs}
        return mean_outputs(self.layout, self.ensemble(**inputs), self.ensemble.mean(inputs), inputs)[1.0]


def together_in_words(number: int, *, routed: bool = False) -> str:
    """Return the sentence that tells readers of a report that its teacher is several models."""
    if routed:
        return f"The teacher here is {number} models together: in each row the one that the data names."
    return f"The teacher here is the mean of {number} models."


def by_losses(losses: Sequence[float], *, classes: bool) -> tuple[float, ...]:
    """Return the weight of each teacher by its loss on labelled rows; they sum to 1.

    Of classes it is `exp(-L)`, with `L` the mean `-log p` of the true label: the geometric mean of the probabilities
    that a teacher gave to the truth. Of values it is `1 / L`, with `L` the mean squared error: the weights with the
    least error where the teachers' errors are independent.

    Args:
        losses: Loss of each teacher.
        classes: Whether classes are predicted.
    """
    # Rounded: with other batches the last digits differ, and a resumed run would have other weights and start anew.
    found = torch.tensor([float(f"{loss:.5g}") for loss in losses], dtype=torch.float64)
    given = (-found).softmax(0) if classes else 1 / found.clamp(min=torch.finfo(torch.float32).tiny)
    return tuple((given / given.sum()).tolist())


def _named_order(ensemble: Ensemble, other: Any, name: str) -> tuple[int, ...] | None:
    try:
        return order_of(ensemble.config, base_model(other).config)
    except UserError as error:
        raise UserError(f"{name}: {error}", key=error.key) from error


def order_of(first: Any, other: Any) -> tuple[int, ...] | None:
    """Return the other model's column for each class of the first; None if names are missing or in the same order.

    Args:
        first: Configuration of the first model.
        other: Configuration of the other.

    Raises:
        UserError: The models have different classes.
    """
    if first.num_labels != other.num_labels:
        raise UserError(
            f"its head has {other.num_labels} outputs, the first teacher's {first.num_labels}. Wanted teachers that "
            "were trained on the same classes.",
            key="model",
        )
    ours, theirs = label_names(first), label_names(other)
    if not ours or not theirs:
        return None
    try:
        order = positions(ours, theirs, whose="this teacher")
    except UserError as error:
        raise UserError(f"{error} Wanted teachers that were trained on the same classes.", key="model") from error
    return None if order == tuple(range(len(order))) else order


def _reordered(outputs: Mapping[str, Any], columns: tuple[int, ...] | None) -> Mapping[str, Any]:
    return outputs if columns is None else {**outputs, "logits": outputs["logits"][..., list(columns)]}
