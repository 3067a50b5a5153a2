"""Delete whole neurons of a model, the same number in every layer, and make a narrower model without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.models.loading import Head
from hf_distill.students.narrowing import choose, narrowed
from hf_distill.students.optimal_brain_damage.weights import Prunable, Zeros
from hf_distill.students.widths import architecture_of, widths_of, with_widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def without_neurons(config: PretrainedConfig, ratio: float) -> PretrainedConfig:
    """Return the configuration of a model without a share of its neurons.

    Raises:
        UserError: The model has no known neurons, or none would be left.
    """
    before = widths_of(config)
    neurons = before.intermediate - round(ratio * before.intermediate)
    if not neurons:
        raise UserError(f"{ratio:g} would delete all {before.intermediate:,} neurons of a layer.", key="ratio")
    return with_widths(config, replace(before, intermediate=neurons))


class Neurons(Prunable):
    """The neurons between the two linear maps of each layer; one is deleted when all that leaves it is zero."""

    @classmethod
    def of(cls, model: nn.Module) -> Neurons:
        """Return the matrices into the neurons of all layers and out of them.

        Raises:
            UserError: The model has no known neurons, or some are frozen.
        """
        untyped: Any = model
        architecture = architecture_of(untyped.config)
        ((place, layers),) = find_stacks(untyped).values()
        inside = [f"{place}.{number}.{name}" for number in range(len(layers)) for name in _matrices(architecture)]
        found: dict[str, Any] = {f"{name}.weight": model.get_submodule(name).weight for name in inside}
        if not all(weight.requires_grad for weight in found.values()):
            raise UserError(
                "every layer loses the same number of neurons, so none of its linear maps can be frozen. Leave layers "
                "out of freeze, or delete single weights (by: weight).",
                key="freeze",
            )
        return cls(model, found)

    def zeros(self) -> Zeros:
        """Return how many neurons are deleted."""
        deleted = self._deleted()
        return Zeros(int(deleted.sum()), deleted.numel(), "neurons")

    def removed(self, ratio: float) -> PreTrainedModel:
        """Return a narrower model with the same outputs, without the deleted neurons.

        Args:
            ratio: Share of each layer's neurons that is deleted.
        """
        config = without_neurons(self.model.config, ratio)
        before = widths_of(self.model.config)
        kept = self._deleted().to(torch.uint8).argsort(dim=-1, stable=True)[:, : widths_of(config).intermediate]
        chosen = replace(choose(None, before, before, len(kept)), neurons=kept.sort(-1).values)
        return narrowed(self.model, config, chosen, Head(""), None)

    def _delete(self, saliency: Sequence[Tensor], share: float) -> float:
        """Set the weights of neurons to zero, of each layer those whose weights are together of the lowest saliency."""
        deleted = self._deleted()
        number, predicted = round(share * deleted.shape[-1]), 0.0
        for layer, (matrices, parts) in enumerate(zip(*map(self._by_layer, (self.weights, saliency)), strict=True)):
            # A row of each matrix into the neurons, and a column of the one out of them.
            by_neuron = torch.stack([part.clamp(min=0).sum(1) for part in parts[:-1]]).sum(0) + parts[-1].clamp(
                min=0
            ).sum(0)
            by_neuron = by_neuron.cpu().double().masked_fill(deleted[layer], -1.0)
            lowest = by_neuron.sort(stable=True).indices[:number]
            predicted += float(by_neuron[lowest].clamp(min=0).sum())
            for matrix in matrices[:-1]:
                matrix.data[lowest.to(matrix.device)] = 0.0
            matrices[-1].data[:, lowest.to(matrices[-1].device)] = 0.0
        return predicted

    def _deleted(self) -> Tensor:
        """Return which neurons are deleted, bool `(layers, neurons)`."""
        return torch.stack([(some[-1].detach() == 0).all(0).cpu() for some in self._by_layer(self.weights)])

    def _by_layer(self, matrices: Sequence[Any]) -> list[Sequence[Any]]:
        size = len(_matrices(architecture_of(self.model.config)))
        return [matrices[start : start + size] for start in range(0, len(matrices), size)]


def _matrices(architecture: Any) -> tuple[str, ...]:
    return (*architecture.up, architecture.down)
