"""A student made of some of a larger model's layers, mostly the teacher's."""

from __future__ import annotations

import copy
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component
from hf_distill.data.label_names import label_names, positions
from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks, stacks
from hf_distill.models.loading import Head, load_model, open_config
from hf_distill.models.quantization import method_of
from hf_distill.students.base import NUMBERS_OF_LAYERS, Student, build, is_per_layer, with_head

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

# Attributes that differ between layers of a model without changing what they compute.
POSITION = {"layer_idx", "layer_id", "layer_number", "training", "gradient_checkpointing"}


@component
class CopyLayers(Student):
    """A smaller copy of a model: its embeddings, its head and some of its layers.

    The start of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 2). It works for every encoder or decoder that
    keeps its layers in one list (the BERT, RoBERTa, DistilBERT, GPT-2 and Llama families and most others), and for
    encoder-decoder models with a list on each side (the BART, Marian, Pegasus and T5 families). For those, a shallow
    decoder under a whole encoder costs least and saves most, since the decoder runs once for every generated token
    (Shleifer and Rush 2020, arXiv 2010.13002: `{layers: 12, decoder_layers: 3}`).

    `from_config` makes a student of any size, but from random weights.

    Attributes:
        layers: How many layers to copy, spread evenly from the first to the last, or which ones, counted from 0: `[0,
            2, 4, 7, 9, 11]`. For an encoder-decoder model, layers of the encoder.
        decoder_layers: The same for the decoder of an encoder-decoder model. Default: as `layers`.
        model: Model to copy from: Hub id, local directory or `package:NAME/PATH`. A fine-tuned teacher's layers already
            know the task, and a baseline that starts from them benefits too; copy from the checkpoint before
            fine-tuning to avoid that. Default: the teacher.
    """

    name: ClassVar[str] = "copy_layers"

    layers: int | list[int]
    decoder_layers: int | list[int] | None = None
    model: str | None = None

    @property
    def vocabulary(self) -> str | None:
        """The model whose layers are copied, if one is named; None for the teacher."""
        return self.model

    @property
    def copies_teacher(self) -> bool:
        """Whether the layers are the teacher's: if no other model is named."""
        return self.model is None

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the whole model, with fewer layers.

        Raises:
            UserError: The model does not have these layers, or its weights are quantized.
        """
        whole = teacher if self.model is None else open_config(self.model)
        method = method_of(whole)
        if method is not None:
            whose = "the teacher" if self.model is None else f"'{self.model}'"
            raise UserError(
                f"the weights of {whose} are quantized ({method}) and cannot be copied. Name a checkpoint that was not "
                "quantized.",
                key="model",
            )
        return self._shortened(whole)

    def _shortened(self, whole: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(whole)
        for field, key in self._stacks(whole).items():
            total = getattr(whole, key)
            kept = self.chosen(total, field)
            for name, value in vars(whole).items():
                if name in NUMBERS_OF_LAYERS and isinstance(value, list | tuple):
                    setattr(config, name, [kept.index(number) for number in value if number in kept])
                elif is_per_layer(name, value, total) and _of_stack(name, field, whole):
                    setattr(config, name, [value[index] for index in kept])
            setattr(config, key, len(kept))
        config.name_or_path = ""  # no checkpoint of this shape exists
        return config

    def _stacks(self, whole: PretrainedConfig) -> dict[str, str]:
        """Return, for each field that chooses layers, the configuration key with their number."""
        keys = stacks(whole)
        if self.decoder_layers is not None and len(keys) == 1:
            raise UserError(
                f"{type(whole).__name__} describes one stack of layers, not an encoder and a decoder. Leave it out.",
                key="decoder_layers",
            )
        return keys

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Build the student and copy the weights of the chosen layers, the embeddings and the head.

        Raises:
            UserError: The teacher's lists of layers cannot be found, its labels are not the task's, or a layer would
                compute something else at its new position.
        """
        whole, labels = self._whole(teacher, head)
        if getattr(whole, "is_quantized", False):
            raise UserError("its weights are quantized and cannot be copied. Load the model unquantized.", key="name")
        found = find_stacks(whole)
        self._stacks(whole.config)
        kept = {place: self.chosen(len(layers), field) for field, (place, layers) in found.items()}
        weights = whole.state_dict()
        for place, indices in kept.items():
            weights = _renumber(weights, place, indices)
        config = with_head(self._shortened(whole.config), head)
        if labels is not None:
            _check_labels(config, labels)
        student = build(type(whole), config, key="layers")
        try:
            student.load_state_dict(weights)
        except RuntimeError as error:
            mismatch = shorten(str(error).partition("\n")[2], 150, placeholder=" ...")
            which = " and ".join(map(str, kept.values()))
            raise UserError(
                f"layers {which} do not fit together in a {type(whole).__name__}: {mismatch} "
                "Its layers are not all alike; choose others, or use student: {name: from_config}.",
                key="layers",
            ) from error
        for field, (place, layers) in found.items():
            for new, old in enumerate(kept[place]):
                _check_alike(student.get_submodule(f"{place}.{new}"), layers[old], old, field)
        if student.can_generate():
            student.generation_config = copy.deepcopy(whole.generation_config)
        return student

    def _whole(self, teacher: PreTrainedModel, head: Head) -> tuple[PreTrainedModel, PretrainedConfig | None]:
        """Return the model to copy from, and the configuration with its label names; None if its head is new."""
        if self.model is None:
            return teacher, teacher.config
        model, new = load_model(self.model, head)
        # The model was loaded with the task's label names, so its own names are read from the checkpoint.
        return model, None if new else open_config(self.model)

    def chosen(self, total: int, field: str = "layers") -> list[int]:
        """Return the numbers of the layers to copy.

        Args:
            total: Number of layers of the whole model.
            field: The field that chooses them: `layers` or `decoder_layers`.

        Raises:
            UserError: The model does not have these layers, or the list is not increasing.
        """
        wanted = self.layers if field == "layers" or self.decoder_layers is None else self.decoder_layers
        if isinstance(wanted, int):
            if not 1 <= wanted <= total:
                raise UserError(f"{wanted} is not between 1 and {total}, the number of layers.", key=field)
            return spread(wanted, total)
        if not wanted or not all(0 <= index < total for index in wanted):
            raise UserError(f"{wanted}: wanted one or more of the layers 0 to {total - 1}.", key=field)
        if any(later <= earlier for earlier, later in pairwise(wanted)):
            raise UserError(f"{wanted}: wanted each layer once, in ascending order: {sorted(set(wanted))}.", key=field)
        return wanted


def _of_stack(name: str, field: str, whole: PretrainedConfig) -> bool:
    """Return whether a per-layer list belongs to the stack that `field` chooses from."""
    if not whole.is_encoder_decoder:
        return True
    # If both stacks have the same depth only the name tells; windowed attention belongs to the encoder (LED).
    side = "decoder_layers" if name.startswith("decoder") else "layers"
    return side == field and (name.startswith(("encoder", "decoder")) or name == "attention_window")


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


def _renumber(weights: dict[str, Tensor], place: str, kept: list[int]) -> dict[str, Tensor]:
    """Return the weights of the copied layers under their new numbers, and all weights outside the layers."""
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
    """Refuse a head whose outputs are not the task's labels in the task's order."""
    if ours.num_labels != theirs.num_labels:
        raise UserError(f"the task has {ours.num_labels} labels, the head to be copied {theirs.num_labels}.")
    want, have = label_names(ours), label_names(theirs)
    if want and have and positions(want, have, whose="the head to be copied") != tuple(range(len(want))):
        raise UserError(
            f"the task's labels are {list(want)}, but the head to be copied has {list(have)}: "
            "the student would name its classes wrongly."
        )


def _check_alike(new: nn.Module, old: nn.Module, index: int, field: str) -> None:
    """Refuse a layer that would compute something else at its new position.

    A sliding window, a rotary base or a scale may depend on the position of a layer, and this does not always show in
    shapes or in the configuration.
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
                    key=field,
                )
