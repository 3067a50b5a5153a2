"""A student made of some of a larger model's layers, mostly the teacher's."""

from __future__ import annotations

import copy
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.labels import label_names, positions
from hf_distill.models import Head, load_model, open_config
from hf_distill.students.base import Student, build, is_per_layer, with_head

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

# What differs between two layers of one model without a difference in what they compute.
POSITION = {"layer_idx", "layer_id", "layer_number", "training", "gradient_checkpointing"}


@component
class CopyLayers(Student):
    """A model with fewer layers: embeddings, head and the chosen layers are copied.

    The start of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 2). Works for every encoder or decoder
    that keeps its layers in one list: the BERT, RoBERTa, DistilBERT, GPT-2 and Llama families and most others.

    Relations: `from_config` makes a student of any size, but from random weights.

    Attributes:
        layers: How many, or which ones, counted from 0 (`[0, 2, 4, 7, 9, 11]`). A number is spread evenly from the
            first layer to the last (see `spread`); with 1 it is the first.
        model: Whose layers: Hub id, local directory or `package:NAME/PATH`; the teacher's if left out. A fine-tuned
            teacher's layers know the task already, and so does a baseline that starts from them; the layers of the
            checkpoint it was fine-tuned from do not.
    """

    name: ClassVar[str] = "copy_layers"

    layers: int | list[int]
    model: str | None = None

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """See `Student.config`."""
        return self._shortened(teacher if self.model is None else open_config(self.model))

    def _shortened(self, whole: PretrainedConfig) -> PretrainedConfig:
        total = layer_count(whole)
        kept = self.chosen(total)
        config = copy.deepcopy(whole)
        for key, value in vars(whole).items():
            if is_per_layer(key, value, total):
                setattr(config, key, [value[index] for index in kept])
        config.num_hidden_layers = len(kept)
        config.name_or_path = ""  # no checkpoint of this shape exists
        return config

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Copy the weights.

        Raises:
            UserError: The teacher keeps its layers in a way that is not understood, its labels are not the task's, or
                a layer would work differently at its new position.
        """
        whole = teacher if self.model is None else load_model(self.model, head)[0]
        if getattr(whole, "is_quantized", False):
            raise UserError("its weights are quantized: they cannot be copied. Load the model whole.", key="name")
        place, layers = find_layers(whole)
        kept = self.chosen(len(layers))
        config = with_head(self._shortened(whole.config), head)
        _check_labels(config, whole.config)
        student = build(type(whole), config, key="layers")
        try:
            student.load_state_dict(_renumber(whole.state_dict(), place, kept))
        except RuntimeError as error:
            mismatch = shorten(str(error).partition("\n")[2], 150, placeholder=" ...")
            raise UserError(
                f"layers {kept} do not fit together in a {type(whole).__name__}: {mismatch} "
                "Its layers are not all alike; choose others, or use student: {name: from_config}.",
                key="layers",
            ) from error
        for new, old in enumerate(kept):
            _check_alike(student.get_submodule(f"{place}.{new}"), layers[old], old)
        if student.can_generate():
            student.generation_config = copy.deepcopy(whole.generation_config)
        return student

    def chosen(self, total: int) -> list[int]:
        """Return which of `total` layers are kept.

        Raises:
            UserError: There are not that many, or the list is not increasing.
        """
        if isinstance(self.layers, int):
            if not 1 <= self.layers <= total:
                raise UserError(f"{self.layers} is not between 1 and the {total} layers there are.", key="layers")
            return spread(self.layers, total)
        kept = self.layers
        if not kept or not all(0 <= index < total for index in kept):
            raise UserError(f"{kept}: want one or more of the layers there are, 0 to {total - 1}.", key="layers")
        if any(later <= earlier for earlier, later in pairwise(kept)):
            raise UserError(f"{kept}: want each layer once, in their order: {sorted(set(kept))}.", key="layers")
        return kept


def spread(count: int, total: int) -> list[int]:
    """Return `count` of `total` layers, evenly spaced from the first to the last.

    Layer `i` is `i * (total - 1) / (count - 1)`, rounded, halves to the even number. 12 to 6 is DistilBERT's
    choice. A single layer is the first: it is the one that has learned to read embeddings.

    >>> spread(6, 12)
    [0, 2, 4, 7, 9, 11]
    """
    if count == 1:
        return [0]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def layer_count(config: PretrainedConfig) -> int:
    """Return the number of layers of the one stack a model has.

    Raises:
        UserError: It has several stacks, or does not say.
    """
    count = getattr(config, "num_hidden_layers", None)
    if config.is_encoder_decoder or not isinstance(count, int) or getattr(config, "is_heterogeneous", False):
        raise UserError(
            f"copy_layers works for models with one stack of layers; {type(config).__name__} describes something else. "
            "Name a smaller checkpoint: student: {name: pretrained, model: ...}.",
            key="name",
        )
    return count


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the list of a model's layers and its name (`"bert.encoder.layer"`).

    Raises:
        UserError: There is no list as long as the configuration says, or more than one.
    """
    from torch import nn

    total = layer_count(model.config)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        # A list inside a layer (of experts, say) may happen to be as long.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == total and not inside:
            found[name] = module
    if len(found) != 1:
        what = f"{len(found)} lists of {total} layers ({', '.join(found)})" if found else f"no list of {total} layers"
        raise UserError(
            f"cannot tell the layers of {type(model).__name__}: it has {what}. Name a smaller checkpoint: "
            "student: {name: pretrained, model: ...}, or start from random weights: {name: from_config, ...}.",
            key="name",
        )
    return next(iter(found.items()))


def _renumber(weights: dict[str, Tensor], place: str, kept: list[int]) -> dict[str, Tensor]:
    """Return the weights of the kept layers under their new numbers, and all that belongs to no layer."""
    new = {str(old): str(index) for index, old in enumerate(kept)}
    chosen: dict[str, Tensor] = {}
    for key, weight in weights.items():
        if not key.startswith(f"{place}."):
            chosen[key] = weight
            continue
        number, _, rest = key.removeprefix(f"{place}.").partition(".")
        if number in new:
            chosen[f"{place}.{new[number]}.{rest}"] = weight
    return chosen


def _check_labels(ours: PretrainedConfig, theirs: PretrainedConfig) -> None:
    """Refuse to copy a head whose outputs are not the task's labels in the task's order."""
    if ours.num_labels != theirs.num_labels:
        raise UserError(f"the task has {ours.num_labels} labels, the teacher's head to be copied {theirs.num_labels}.")
    want, have = label_names(ours), label_names(theirs)
    if want and have and positions(want, have, whose="the teacher") != tuple(range(len(want))):
        raise UserError(
            f"the task's labels are {list(want)}, but the teacher's head to be copied has {list(have)}: "
            "the student would name its classes wrongly."
        )


def _check_alike(new: nn.Module, old: nn.Module, index: int) -> None:
    """Refuse a layer that computes something else at its new position.

    Equal weights are not enough: a sliding window, a rotary base or a scale may depend on the position, and neither
    shapes nor the configuration's lists always show it.
    """
    modules = dict(new.named_modules())
    for name, theirs in old.named_modules():
        ours = modules.get(name)
        pairs: list[tuple[str, object, object]] = [("class", type(theirs).__name__, type(ours).__name__)]
        for key, value in vars(theirs).items():
            if isinstance(value, bool | int | float | str) and not key.startswith("_") and key not in POSITION:
                pairs.append((key, value, getattr(ours, key, None)))
        for key, was, would_be in pairs:
            if was != would_be:
                raise UserError(
                    f"layer {index} of the teacher would work differently at its new position: {key} of "
                    f"'{name or 'layer'}' is {was} in the teacher and would be {would_be}. Choose other layers.",
                    key="layers",
                )
