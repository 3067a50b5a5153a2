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

# What differs between two layers of one model without a difference in what they compute.
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
        """See `Student.vocabulary`."""
        return self.model

    @property
    def copies_teacher(self) -> bool:
        """See `Student.copies_teacher`."""
        return self.model is None

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """See `Student.config`."""
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
                f"{type(whole).__name__} describes one stack of layers, no encoder with a decoder. Leave it out.",
                key="decoder_layers",
            )
        return keys

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Copy the weights.

        Raises:
            UserError: The teacher keeps its layers in a way that is not understood, its labels are not the task's, or
                a layer would work differently at its new position.
        """
        whole, labels = self._whole(teacher, head)
        if getattr(whole, "is_quantized", False):
            raise UserError("its weights are quantized: they cannot be copied. Load the model whole.", key="name")
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
        """Return the model to copy from, and the configuration that names its labels; None where its head is new."""
        if self.model is None:
            return teacher, teacher.config
        model, new = load_model(self.model, head)
        # Loaded with the task's names over its own.
        return model, None if new else open_config(self.model)

    def chosen(self, total: int, field: str = "layers") -> list[int]:
        """Return which of `total` layers are kept.

        Args:
            total: Layers there are.
            field: Of which stack: the field that chooses from it.

        Raises:
            UserError: There are not that many, or the list is not increasing.
        """
        wanted = self.layers if field == "layers" or self.decoder_layers is None else self.decoder_layers
        if isinstance(wanted, int):
            if not 1 <= wanted <= total:
                raise UserError(f"{wanted} is not between 1 and the {total} layers there are.", key=field)
            return spread(wanted, total)
        if not wanted or not all(0 <= index < total for index in wanted):
            raise UserError(f"{wanted}: want one or more of the layers there are, 0 to {total - 1}.", key=field)
        if any(later <= earlier for earlier, later in pairwise(wanted)):
            raise UserError(f"{wanted}: want each layer once, in their order: {sorted(set(wanted))}.", key=field)
        return wanted


def _of_stack(name: str, field: str, whole: PretrainedConfig) -> bool:
    """Whether a list with an entry for each layer is that of a stack."""
    if not whole.is_encoder_decoder:
        return True
    # With two stacks of one depth only the name tells whose it is; attention within a window is the encoder's (LED).
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
        raise UserError(f"the task has {ours.num_labels} labels, the head to be copied {theirs.num_labels}.")
    want, have = label_names(ours), label_names(theirs)
    if want and have and positions(want, have, whose="the head to be copied") != tuple(range(len(want))):
        raise UserError(
            f"the task's labels are {list(want)}, but the head to be copied has {list(have)}: "
            "the student would name its classes wrongly."
        )


def _check_alike(new: nn.Module, old: nn.Module, index: int, field: str) -> None:
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
                    key=field,
                )
