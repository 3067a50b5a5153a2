"""Which weights of a model can be deleted, which are, and what their deletion is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self  # in typing from Python 3.11 on

from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.students.optimal_brain_damage.curvature import second_derivatives

if TYPE_CHECKING:
    from hf_distill.models.calibration import CalibrationRows


class Zeros(NamedTuple):
    """How many weights, or neurons, are zero.

    Attributes:
        number: How many are zero.
        total: How many there are.
        unit: What they are.
    """

    number: int
    total: int
    unit: str = "weights"

    def __str__(self) -> str:
        """Return `512 of 1,024 weights (50.0 %)`."""
        return f"{self.number:,} of {self.total:,} {self.unit} ({self.number / self.total:.1%})".replace("%", " %")


@dataclass(frozen=True)
class Prunable:
    """The weights of a model that can be deleted.

    Attributes:
        model: The model.
        named: Its weights, by name.
    """

    model: Any
    named: Mapping[str, nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the matrices of linear layers inside the stacks of layers, except frozen ones.

        Raises:
            UserError: The model has no stack of layers, or they have no such matrices.
        """
        from transformers.pytorch_utils import Conv1D

        untyped: Any = model
        if getattr(untyped, "is_quantized", False):
            raise UserError("its weights are quantized, and single ones cannot be deleted.", key="student")
        found: dict[str, nn.Parameter] = {}
        for place, layers in find_stacks(untyped).values():
            for name, module in layers.named_modules(prefix=place):
                if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad:
                    weight: Any = module.weight
                    found[f"{name}.weight"] = weight
        if not found:
            raise UserError(
                f"the layers of a {type(model).__name__} have no linear layer that is trained: nothing can be deleted.",
                key="freeze",
            )
        return cls(model, found)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights."""
        return list(self.named.values())

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(one.numel() for one in self.weights)

    def number(self, share: float) -> int:
        """Return how many weights a share of them is.

        Raises:
            UserError: It is all of them.
        """
        number = round(share * self.total)
        if number == self.total:
            raise UserError(f"{share} would delete all {number:,} weights. Wanted less.", key="ratio")
        return number

    def zeros(self) -> Zeros:
        """Return how many are zero."""
        return Zeros(sum(int((one.detach() == 0).sum()) for one in self.weights), self.total)

    def delete(self, share: float, rows: CalibrationRows, count: int) -> float:
        """Delete what is of the lowest saliency, until a share of all is deleted.

        Args:
            share: The share.
            rows: Rows to measure second derivatives on.
            count: Number of these rows.

        Returns:
            By how much the loss is predicted to grow.

        Raises:
            UserError: Nothing can be measured, or nothing would be left.
        """
        derivatives = second_derivatives(self.model, self.weights, rows, count)
        return self._delete(saliencies(self.weights, derivatives), share)

    def _delete(self, saliency: Sequence[Tensor], share: float) -> float:
        """Delete by saliency, and return by how much the loss is predicted to grow."""
        return delete_lowest(self.weights, saliency, self.number(share))


def zeros_by_kind(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, by kind of matrix, which share of the weights of all layers is zero.

    >>> zeros_by_kind({"layers.0.mlp.up.weight": torch.zeros(2, 2), "layers.1.mlp.up.weight": torch.ones(2, 2)})
    {'mlp.up': '50.0 %'}
    """
    found: dict[str, list[int]] = {}
    for name, weight in weights.items():
        sums = found.setdefault(_kind(name), [0, 0])
        sums[0] += int((weight.detach() == 0).sum())
        sums[1] += weight.numel()
    return {kind: f"{100 * zero / every:.1f} %" for kind, (zero, every) in found.items()}


def _kind(name: str) -> str:
    """Return the name of a weight inside its layer: `mlp.up` for `layers.0.mlp.up.weight`."""
    parts = name.removesuffix(".weight").split(".")
    number = next(place for place, part in enumerate(parts) if part.isdecimal())
    side = next((part for part in parts[:number] if part in ("encoder", "decoder")), "")
    inside = ".".join(parts[number + 1 :])
    return f"{side} {inside}" if side == "decoder" else inside


def saliencies(weights: Sequence[Tensor], derivatives: Sequence[Tensor]) -> list[Tensor]:
    """Return by how much the loss is predicted to grow if a weight is deleted: `h w^2 / 2` (LeCun et al., eq. 5).

    It is -1 for weights that are zero already, so that they come first.
    """
    return [
        (derivative * weight.detach().square() / 2).masked_fill(weight.detach() == 0, -1.0)
        for weight, derivative in zip(weights, derivatives, strict=True)
    ]


def delete_lowest(weights: Sequence[Tensor], saliency: Sequence[Tensor], number: int) -> float:
    """Set the `number` weights of the lowest saliency to zero, in place; of equal ones the first.

    Returns:
        By how much the loss is predicted to grow: the sum of their saliencies.
    """
    every = torch.cat([one.flatten().cpu() for one in saliency])
    lowest = every.sort(stable=True).indices[:number]
    chosen = torch.zeros(len(every), dtype=torch.bool)
    chosen[lowest] = True
    for weight, part in zip(weights, torch.split(chosen, [one.numel() for one in weights]), strict=True):
        weight.data.masked_fill_(part.view_as(weight).to(weight.device), 0.0)
    return float(every[lowest].clamp(min=0).double().sum())
