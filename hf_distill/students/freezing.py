"""Freeze parts of a student: find their parameters by name, and exclude them from training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.errors import UserError, did_you_mean
from hf_distill.models.layers import find_stacks
from hf_distill.models.parts import embeddings, head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDINGS, HEAD = "embeddings", "head"
# `layers.3`, `layers.0-3`, `bert.encoder.layer.0-3`.
_NUMBERED = re.compile(r"(.+)\.(\d+)(?:-(\d+))?")
_KEY = "freeze"


@dataclass(frozen=True)
class Frozen:
    """The frozen parameters of a model.

    Attributes:
        names: Names of the parameters; a shared one with all of its names.
        shared: Names outside the frozen parts, frozen because they share a tensor with a parameter inside.
        parameters: Number of frozen weights, shared ones once.
        total: Number of weights of the model.
    """

    names: tuple[str, ...]
    shared: tuple[str, ...]
    parameters: int
    total: int

    @property
    def trained(self) -> int:
        """Number of weights that are trained."""
        return self.total - self.parameters


def find_frozen(model: PreTrainedModel, parts: Sequence[str]) -> Frozen:
    """Return the parameters of some parts of a model.

    Args:
        model: The model; it may be without weights, from `outline.outline`.
        parts: Module paths, with or without the prefix of the base model, with `.0-3` for a range of a list; or
            `embeddings`, `head`, and `layers`, `encoder.layers`, `decoder.layers` for the lists of layers, whatever
            their names in the model class.

    Raises:
        UserError: A part does not exist or has no parameters, or nothing would be left to train.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    named: dict[str, None] = {}
    for part in parts:
        places = tuple(_places(model, part))
        inside = [name for name in every if any(name == place or name.startswith(f"{place}.") for place in places)]
        if not inside:
            raise UserError(f"'{part}' has no parameters in a {type(model).__name__}. Leave it out.", key=_KEY)
        named |= dict.fromkeys(inside)
    frozen = {id(every[name]): every[name].numel() for name in named}
    names = tuple(name for name, parameter in every.items() if id(parameter) in frozen)
    sizes = {id(parameter): parameter.numel() for parameter in every.values()}
    if parts and len(frozen) == len(sizes):
        raise UserError(
            f"{', '.join(parts)}: that is all of a {type(model).__name__}, and nothing is left to train. Leave some of "
            "them out.",
            key=_KEY,
        )
    shared = tuple(name for name in names if name not in named)
    return Frozen(names, shared, sum(frozen.values()), sum(sizes.values()))


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    """Freeze parts of a model in place, and return it.

    Raises:
        UserError: A part does not exist or has no parameters, or nothing would be left to train.
    """
    names = set(find_frozen(model, parts).names) if parts else set()
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    return model


# ---- From a name to modules ------------------------------------------------------------------------------------------


def _places(model: PreTrainedModel, part: str) -> Iterator[str]:
    """Yield the paths of the modules (or of the parameter) for the name of a part."""
    if part == EMBEDDINGS:
        yield from embeddings(model)
        return
    if part == HEAD:
        yield from head(model)
        return
    place = _path(model, part)
    match = _NUMBERED.fullmatch(part)
    if place is None and match is not None and (whole := _path(model, match[1])) is not None:
        numbers = range(int(match[2]), int(match[3] or match[2]) + 1)
        there = [name for name, _ in model.get_submodule(whole).named_children() if name.isdecimal()]
        if not numbers or not there or numbers[-1] >= len(there):
            have = f"{match[1]}.0 to {match[1]}.{len(there) - 1}" if there else f"no list in {match[1]}"
            raise UserError(f"'{part}': there is {have} in a {type(model).__name__}.", key=_KEY)
        for number in numbers:
            yield f"{whole}.{number}"
        return
    if place is None:
        raise UserError(f"a {type(model).__name__} has no part '{part}'.{_known(model, part)}", key=_KEY)
    yield place


def _path(model: PreTrainedModel, name: str) -> str | None:
    """Return the path of the module or parameter with this name; None if there is none."""
    for known_as, place in _stacks(model).items():
        if f"{name}.".startswith(f"{known_as}."):
            name = place + name.removeprefix(known_as)
            break
    known = {*dict(model.named_modules()), *dict(model.named_parameters(remove_duplicate=False))} - {""}
    return next((path for path in (name, f"{model.base_model_prefix}.{name}") if path in known), None)


def _stacks(model: PreTrainedModel) -> dict[str, str]:
    """Return `layers`, `encoder.layers`, `decoder.layers` -> path; empty if the lists cannot be found."""
    try:
        found = find_stacks(model)
    except UserError:
        return {}
    names = {"layers": ("layers", "encoder.layers"), "decoder_layers": ("decoder.layers",)}
    return {name: place for field, (place, _) in found.items() for name in names[field]}


def _known(model: PreTrainedModel, part: str) -> str:
    """Return "did you mean", and the names that can be used."""
    stacks = _stacks(model)
    several = "decoder.layers" in stacks
    lists = [
        f"{name}.0-{len(list(model.get_submodule(place).children())) - 1}"
        for name, place in stacks.items()
        if name != ("layers" if several else "encoder.layers")
    ]
    short = [EMBEDDINGS, *lists, *([HEAD] if head(model) else [])]
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    hint = did_you_mean(part, [EMBEDDINGS, HEAD, *stacks, *modules])
    meant = hint if hint.startswith(" Did") else ""
    return f"{meant} There are {', '.join(short)}, and paths of its modules, such as {modules[-1]}."
