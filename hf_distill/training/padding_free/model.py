"""A model whose layers run without padding: hidden states of real tokens only, gathered before the first layer.

Embeddings come before and heads after, and both see the padded batch as ever. Whether a model can do it is tried out on
a few tokens, not read from a list of architectures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_distill.errors import UserError
from hf_distill.models.inspection import base_model, evaluating, wrapper_of
from hf_distill.models.layers import find_stacks
from hf_distill.training.padding_free.bins import Bins, arrange

# What is done to an argument of a layer; its name, and its place in a tuple or a mapping, are the path to it.
Path = tuple[int | str, ...]
Rule = Callable[[Bins, Tensor], Tensor]
Rules = Mapping[Path, Rule | None]

# The batch that a model is tried with, as (first token, last token): padding on the right, then on the left. Both
# numbers are primes, so that no dimension of a tensor is likely to be one of them by chance.
TOKENS = 23
RIGHT = ((0, 22), (0, 9), (0, 6), (0, 2))
LEFT = ((12, 22), (16, 22), (19, 22))
HOLE = (1, 4)
# Largest difference that is rounding, relative to the largest value. In float64 too: many take softmaxes in float32.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
IN_HALF = 3e-2


class NeedsPadding(ValueError):
    """A model cannot run without padding; the text says why."""


@dataclass(frozen=True)
class PaddingFreeModel:
    """A model whose layers can run without padding.

    Attributes:
        layers: Its layers, or those of its encoder. The list itself: FSDP may yet put others in it, around these.
        rules: What is done to their arguments.
        left: Whether its heads do as well with padding on the left: one that reads the first position does not.
        right: Likewise on the right.
    """

    layers: nn.ModuleList
    rules: tuple[Rules, ...]
    left: bool = True
    right: bool = True

    def takes(self, bins: Bins) -> bool:
        """Whether a batch with this padding gives the same values without it."""
        return (self.left or not bins.left) and (self.right or not bins.right)

    @property
    def can_recompute(self) -> bool:
        """Whether gradient checkpointing keeps what a layer was given: its arguments after padding was removed.

        Transformers checkpointed a layer together with its hooks until 5.22, and other layers do as they like.
        """
        outside = "__call__" not in vars(GradientCheckpointingLayer)
        return outside and all(isinstance(layer, GradientCheckpointingLayer) for layer in self.layers)

    @contextmanager
    def running(self, bins: Bins) -> Iterator[None]:
        """Have the layers run without padding while it is open; for one forward pass."""
        run = _Pass(bins)
        hooks: list[Any] = [
            layer.register_forward_pre_hook(partial(run.enter, index, rules), with_kwargs=True)
            for index, (layer, rules) in enumerate(zip(self.layers, self.rules, strict=True))
        ]
        hooks.append(self.layers[-1].register_forward_hook(run.leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Pass:
    """One forward pass: what was gathered for one layer is not gathered again for the next."""

    def __init__(self, bins: Bins) -> None:
        self._bins = bins
        # With the tensor itself, for an address without its owner may be another's before long.
        self._done: dict[tuple[int, Rule], tuple[Tensor, Tensor]] = {}

    def enter(
        self, index: int, rules: Rules, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if index == 0:
            self._done.clear()
        gather = partial(self._gathered, rules)
        return tuple(_mapped(gather, value, (place,)) for place, value in enumerate(args)), {
            name: _mapped(gather, value, (name,)) for name, value in kwargs.items()
        }

    def _gathered(self, rules: Rules, path: Path, value: Tensor) -> Tensor:
        if path not in rules:
            raise RuntimeError(
                f"a layer got {'.'.join(map(str, path))} of shape {tuple(value.shape)}, which it did not get when "
                "running without padding was tried. Set padding_free to false."
            )
        rule = rules[path]
        if rule is None:
            return value
        key = (id(value), rule)
        if key not in self._done:
            self._done[key] = (value, rule(self._bins.to(value.device), value))
        return self._done[key][1]

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        self._done.clear()
        if isinstance(output, tuple):
            return (self.leave(_, __, output[0]), *output[1:])
        return self._bins.to(output.device).scatter(output)


def _mapped(change: Callable[[Path, Tensor], Tensor], value: Any, path: Path) -> Any:
    """Return an argument with its tensors changed, also those in a tuple, a list or a mapping."""
    if isinstance(value, Tensor):
        return change(path, value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(change, one, (*path, place)) for place, one in enumerate(value))
    if type(value) is dict:
        return {name: _mapped(change, one, (*path, name)) for name, one in value.items()}
    return value


# ---- Trying it out ---------------------------------------------------------------------------------------------------


def open_padding_free(model: nn.Module) -> PaddingFreeModel:
    """Return what runs the layers of a model without padding.

    Raises:
        NeedsPadding: It cannot, or what it computes is something else then.
    """
    if (wrapper := wrapper_of(model)) is not None:
        raise NeedsPadding(f"it is inside a {wrapper}")
    base: Any = base_model(model)
    if not isinstance(base, PreTrainedModel):
        raise NeedsPadding("it is no model of Transformers")
    try:
        layers = find_stacks(base)["layers"][1]
    except UserError as error:
        raise NeedsPadding("which of its modules are its layers is not known") from error
    _check_what_a_trial_misses(model, base.config)
    try:
        with evaluating(base):
            return _tried(base, layers)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, NeedsPadding):
            raise
        raise NeedsPadding(f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _check_what_a_trial_misses(model: nn.Module, config: Any) -> None:
    """Refuse what depends on chance, on longer texts than are tried, or on what a PEFT wrapper adds."""
    if any("layerdrop" in name and value for name, value in vars(config).items()):
        raise NeedsPadding("it leaves out layers at random (layerdrop)")
    if getattr(config, "expert_capacity", None):
        raise NeedsPadding("its experts take so many tokens of a row and no more (expert_capacity)")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise NeedsPadding("it attends to long texts in another way than to short ones (block_sparse)")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NeedsPadding("its adapter puts tokens of its own before those of a text")


@torch.no_grad()
def _tried(model: Any, layers: nn.ModuleList) -> PaddingFreeModel:
    attended = _attended()
    inputs = _inputs(model, attended)
    rules: list[dict[Path, Rule | None]] = [{} for _ in layers]
    with _noting(layers, rules):
        wanted = _answers(model, layers, inputs)
    if any(Bins.gather_mask not in one.values() for one in rules):
        raise NeedsPadding("not all of its layers get a mask of attention for every pair of tokens")
    bins = arrange(attended)
    assert bins is not None
    runner = PaddingFreeModel(layers, tuple(rules))
    with runner.running(bins):
        found = _answers(model, layers, inputs)
    same = torch.stack([_same(one, found[name], attended.to(one.device)).cpu() for name, one in wanted.items()])
    right, left = bool(same[:, : len(RIGHT)].all()), bool(same[:, len(RIGHT) :].all())
    if not (right or left):
        raise NeedsPadding("it does not compute the same without padding")
    return replace(runner, left=left, right=right)


def _attended() -> Tensor:
    attended = torch.zeros(len(RIGHT + LEFT), TOKENS, dtype=torch.long)
    for example, (first, last) in enumerate(RIGHT + LEFT):
        attended[example, first : last + 1] = 1
    attended[HOLE] = 0
    return attended


def _inputs(model: Any, attended: Tensor) -> dict[str, Any]:
    """Return inputs whose padding is the model's own padding token, for some tell by it where a text ends."""
    config = model.config.get_text_config()
    pad = config.pad_token_id or 0
    ids = torch.arange(attended.numel()).view_as(attended) * 7 % config.vocab_size
    ids = torch.where(ids == pad, (pad + 1) % config.vocab_size, ids).masked_fill(attended == 0, pad)
    inputs: dict[str, Any] = {"input_ids": ids.to(model.device), "attention_mask": attended.to(model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5].to(model.device)
    if "position_ids" in inspect.signature(model.forward).parameters:  # BERT's layers get them if a batch has any
        inputs["position_ids"] = torch.arange(TOKENS, device=model.device).expand_as(ids)
    return inputs


def _answers(model: Any, layers: nn.ModuleList, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what the last layer and the model answer, one value or more an example."""
    states: list[Any] = []
    hook = layers[-1].register_forward_hook(lambda _, __, output: states.append(output))
    try:
        outputs = model(**inputs)
    finally:
        hook.remove()
    last = states[-1][0] if isinstance(states[-1], tuple) else states[-1]
    found = {name: one for name, one in outputs.items() if isinstance(one, Tensor) and one.is_floating_point()}
    return {"states": last, **{name: one for name, one in found.items() if len(one) == len(RIGHT + LEFT)}}


def _same(wanted: Tensor, found: Tensor, attended: Tensor) -> Tensor:
    """Return for which examples two answers are the same where it matters, bool `(batch,)`."""
    if wanted.shape[:2] == attended.shape:
        padding = (attended == 0).view(*attended.shape, *(1,) * (wanted.dim() - 2))
        wanted, found = wanted.masked_fill(padding, 0.0), found.masked_fill(padding, 0.0)
    # NaN is no scale; an example that has any, with padding or without, is not the same.
    tolerance = TOLERANCE.get(wanted.dtype, IN_HALF) * float(wanted.nan_to_num(0.0).abs().max())
    return (wanted - found).flatten(1).abs().amax(-1) <= tolerance


@contextmanager
def _noting(layers: nn.ModuleList, rules: list[dict[Path, Rule | None]]) -> Iterator[None]:
    """Note for each layer what is to be done to its arguments while a padded batch runs."""
    own: list[Any] = []

    def note(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def rule(path: Path, value: Tensor) -> Tensor:
            mine = any(value is one for one in own) or (index > 0 and path in ((0,), ("hidden_states",)))
            rules[index][path] = None if mine else _rule(path, value)
            return value

        for place, value in enumerate(args):
            _mapped(rule, value, (place,))
        for name, value in kwargs.items():
            _mapped(rule, value, (name,))

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        own.extend(output if isinstance(output, tuple) else (output,))

    hooks: list[Any] = []
    for index, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(partial(note, index), with_kwargs=True))
        hooks.append(layer.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rule(path: Path, value: Tensor) -> Rule | None:
    """Return what is to be done to an argument, by its shape; None for nothing.

    Raises:
        NeedsPadding: It has to do with the tokens of a batch in a way that is not understood.
    """
    shape, batch = tuple(value.shape), len(RIGHT + LEFT)
    if not shape or (shape[0] != batch and not {TOKENS, batch * TOKENS}.intersection(shape)):
        return None
    if len(shape) > 1 and shape[0] in (batch, 1) and shape[1] == TOKENS and TOKENS not in shape[2:]:
        return Bins.gather
    attention = len(shape) == 4 and shape[0] == batch and shape[2] in (1, TOKENS) and shape[3] == TOKENS
    if attention:
        return Bins.gather_mask
    by_distance = len(shape) > 2 and shape[0] == 1 and shape[-2:] == (TOKENS, TOKENS)
    if by_distance and value[..., 1:, 1:].equal(value[..., :-1, :-1]):
        return Bins.gather_distances
    name = ".".join(map(str, path))
    raise NeedsPadding(f"one of its layers gets {name} of shape {shape} for {batch} examples of {TOKENS} tokens")
