"""Choose the parts of a model that stay, and copy them into a narrower model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.students.base import build
from hf_distill.students.copied import build_copy
from hf_distill.students.importance import WidthImportance
from hf_distill.students.widths import Architecture, Widths, architecture_of, widths_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head


@dataclass(frozen=True)
class Chosen:
    """The parts that stay, as ascending indices.

    Attributes:
        heads: Of each layer, `(layers, heads)`.
        groups: The key-value heads of each layer, `(layers, groups)`.
        neurons: Of each layer, `(layers, neurons)`.
        hidden: `(hidden,)`.
    """

    heads: Tensor
    groups: Tensor
    neurons: Tensor
    hidden: Tensor

    def removed(self, before: Widths) -> dict[str, Any]:
        """Return which heads of each layer went, for the report."""
        gone = [sorted(set(range(before.heads)).difference(layer)) for layer in self.heads.tolist()]
        return {"removed heads of each layer": gone} if any(gone) else {}


def choose(importance: WidthImportance | None, before: Widths, after: Widths, layers: int) -> Chosen:
    """Return the most important parts of a model.

    Args:
        importance: The importance of its parts; None if all stay.
        before: Its widths.
        after: Widths of the student.
        layers: Number of its layers.
    """
    import torch

    def every(count: int) -> Tensor:
        return torch.arange(count).expand(layers, count)

    if importance is None:
        return Chosen(
            every(before.heads), every(before.groups), every(before.intermediate), torch.arange(before.hidden)
        )
    if before.heads == before.groups:
        groups = heads = _highest(importance.heads, after.heads)
    else:  # equally many of each group: those of group g are g * size to (g + 1) * size - 1
        size = before.heads // before.groups
        inside = _highest(importance.heads.reshape(layers, before.groups, size), after.heads // before.groups)
        heads = (inside + size * torch.arange(before.groups)[:, None]).flatten(-2)
        groups = every(before.groups)
    return Chosen(
        heads=heads,
        groups=groups,
        neurons=_highest(importance.neurons, after.intermediate),
        hidden=_highest(importance.hidden, after.hidden),
    )


def _highest(importance: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest values of the last dimension, ascending; of equal ones the first."""
    return importance.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def narrowed(
    whole: PreTrainedModel, config: PretrainedConfig, chosen: Chosen, head: Head, labels: PretrainedConfig | None
) -> PreTrainedModel:
    """Return a copy of a model with only some of its heads, neurons and hidden channels.

    Args:
        whole: The model.
        config: Configuration of the copy.
        chosen: What it keeps.
        head: The task's head.
        labels: Configuration with the label names of the model's head; None if that head is new.

    Raises:
        UserError: The model has weights of which it is not known what they belong to.
    """
    import torch

    from hf_distill.models.sentence_encoder import encoding_of

    with torch.device("meta"):  # shapes only
        shapes = {name: weight.shape for name, weight in build(type(whole), config, key="name").state_dict().items()}
    encoding = encoding_of(whole)
    if encoding is not None and encoding.dense and config.hidden_size != whole.config.hidden_size:
        raise UserError(
            "the model has Dense layers after the pooling, which read its whole hidden width. Leave hidden out.",
            key="hidden",
        )
    cut = _Cut(whole, chosen)
    weights: dict[str, Tensor] = {}
    for name, weight in whole.state_dict().items():
        for axis, (old, new) in enumerate(zip(weight.shape, shapes.get(name, ()), strict=False)):
            if old != new:
                weight = weight.index_select(axis, cut.kept(name, axis, old).to(weight.device))
        weights[name] = weight
    try:
        return build_copy(whole, config, weights, head, labels, key="name")
    except RuntimeError as error:
        raise cut.unknown from error


class _Cut:
    """Which entries of each weight of a model stay."""

    def __init__(self, whole: PreTrainedModel, chosen: Chosen) -> None:
        ((place, _),) = find_stacks(whole).values()
        self.chosen, self.place, self.unknown = chosen, f"{place}.", UserError(_unknown(whole), key="name")
        widths = widths_of(whole.config)
        self.hidden = widths.hidden
        self.axes = _axes(architecture_of(whole.config), chosen, widths.head_dim)

    def kept(self, name: str, axis: int, size: int) -> Tensor:
        """Return which of the `size` entries of an axis of a weight stay.

        Raises:
            UserError: It is neither the hidden width nor one of a layer's own.
        """
        if name.startswith(self.place):
            number, _, inside = name.removeprefix(self.place).partition(".")
            own = self.axes.get((inside.rpartition(".")[0], axis))
            if own is not None:
                return own[int(number)]
        if size != self.hidden:
            raise self.unknown
        return self.chosen.hidden


def _axes(architecture: Architecture, chosen: Chosen, head_dim: int) -> Mapping[tuple[str, int], Tensor]:
    """Return, for each axis of a layer's projections that is not the hidden width, what stays of it in each layer."""
    import torch

    def entries(heads: Tensor) -> Tensor:
        return (heads[..., None] * head_dim + torch.arange(head_dim)).flatten(-2)

    queries, keys = entries(chosen.heads), entries(chosen.groups)
    return {
        (architecture.queries, 0): queries,
        (architecture.keys, 0): keys,
        (architecture.values, 0): keys,
        (architecture.attended, 1): queries,
        **{(name, 0): chosen.neurons for name in architecture.up},
        (architecture.down, 1): chosen.neurons,
    }


def _unknown(whole: PreTrainedModel) -> str:
    return (
        f"a {type(whole).__name__} has weights of which prune_width does not know the place. Prune layers instead: "
        "student: {name: prune_depth, layers: 0.5}."
    )
