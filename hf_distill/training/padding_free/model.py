"""Runs the layers of a model without padding: the hidden states of real tokens are gathered before the first layer.

Embeddings before and heads after the layers still get the padded batch. Whether a model can run like this is tested
with a few tokens; there is no list of architectures.
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
from hf_distill.models import sharding
from hf_distill.models.inspection import base_model, evaluating, rounding, wrapper_of
from hf_distill.models.layers import find_stacks
from hf_distill.training.padding_free.bins import Bins, arrange

# How a tensor argument of a layer is changed (`Rule`, None for unchanged), by its path: the argument's name or
# position, then its place in a tuple or a mapping.
Path = tuple[int | str, ...]
Rule = Callable[[Bins, Tensor], Tensor]
Rules = Mapping[Path, Rule | None]

# The batch that a model is tested with, as (first token, last token): padding on the right, then on the left. Numbers
# of examples and tokens are primes, so that other dimensions of a tensor are unlikely to be equal to them by chance.
TOKENS = 23
RIGHT = ((0, 22), (0, 9), (0, 6), (0, 2))
LEFT = ((12, 22), (16, 22), (19, 22))
HOLE = (1, 4)
# Largest difference due to rounding, relative to the largest value. The same in float64, since many models compute
# softmaxes in float32.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
IN_HALF = 3e-2


class NeedsPadding(ValueError):
    """Raised if a model cannot run without padding; the message says why."""


@dataclass(frozen=True)
class PaddingFreeModel:
    """A model whose layers can run without padding.

    Attributes:
        layers: Its layers, or those of its encoder. The list itself, since FSDP may replace its entries by wrappers.
        rules: How the arguments of each layer are changed.
        left: Whether outputs are the same if padding is on the left. They are not for a head that reads the first
            position.
        right: Whether outputs are the same if padding is on the right. They are not for a head that reads the last
            position.
    """

    layers: nn.ModuleList
    rules: tuple[Rules, ...]
    left: bool = True
    right: bool = True

    def takes(self, bins: Bins) -> bool:
        """Return whether a batch with padding on these sides gives the same outputs without padding."""
        return (self.left or not bins.left) and (self.right or not bins.right)

    @property
    def can_recompute(self) -> bool:
        """Whether gradient checkpointing recomputes a layer with its arguments after padding was removed.

        Until Transformers 5.22, a layer was checkpointed together with its hooks. For layers that do not come from
        Transformers, it is not known.
        """
        outside = "__call__" not in vars(GradientCheckpointingLayer)
        return outside and all(isinstance(layer, GradientCheckpointingLayer) for layer in self.layers)

    @contextmanager
    def running(self, bins: Bins) -> Iterator[None]:
        """Context manager: run the layers without padding during one forward pass."""
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
    """The hooks of one forward pass; a tensor that several layers get is gathered once."""

    def __init__(self, bins: Bins) -> None:
        self._bins = bins
        # (id of a tensor, rule) -> the tensor and the result. The tensor is stored so that its id is not reused.
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
                f"a layer got {'.'.join(map(str, path))} of shape {tuple(value.shape)}, which it did not get in the "
                "test of running without padding. Set padding_free to false."
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


# ---- Testing a model -------------------------------------------------------------------------------------------------


def open_padding_free(model: nn.Module) -> PaddingFreeModel:
    """Return a model that can run without padding, after a test with a few tokens.

    Raises:
        NeedsPadding: It cannot, or it computes something else without padding.
    """
    if (wrapper := wrapper_of(model)) is not None:
        raise NeedsPadding(f"it is inside a {wrapper}")
    base: Any = base_model(model)
    if sharding.split_over(base) is not None:
        raise NeedsPadding("its layers are split over processes, which run it on the rows of all of them")
    if not isinstance(base, PreTrainedModel):
        raise NeedsPadding("it is not a model of Transformers")
    try:
        layers = find_stacks(base)["layers"][1]
    except UserError as error:
        raise NeedsPadding("which of its modules are its layers is not known") from error
    _check_what_a_trial_misses(model, base.config)
    try:
        with evaluating(base):
            return _tested(base, layers)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, NeedsPadding):
            raise
        raise NeedsPadding(f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _check_what_a_trial_misses(model: nn.Module, config: Any) -> None:
    """Refuse models that the test cannot cover: they depend on chance, on longer texts, or on a PEFT wrapper."""
    if rounding(model):
        raise NeedsPadding("it is trained with rounding, and texts that lie in one row would share a range")
    if any("layerdrop" in name and value for name, value in vars(config).items()):
        raise NeedsPadding("it leaves out layers at random (layerdrop)")
    if getattr(config, "expert_capacity", None):
        raise NeedsPadding("its experts take a limited number of tokens of a row (expert_capacity)")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise NeedsPadding("its attention is another one for long texts than for short ones (block_sparse)")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NeedsPadding("its adapter adds tokens of its own before those of a text")


@torch.no_grad()
def _tested(model: Any, layers: nn.ModuleList) -> PaddingFreeModel:
    """Return the model with its rules, if it computes the same with and without padding."""
    attended = _attended()
    inputs = _inputs(model, attended)
    rules: list[dict[Path, Rule | None]] = [{} for _ in layers]
    with _noting(layers, rules):
        wanted = _outputs(model, layers, inputs)
    if any(Bins.gather_mask not in one.values() for one in rules):
        raise NeedsPadding("not all of its layers get an attention mask for every pair of tokens")
    bins = arrange(attended)
    assert bins is not None
    runner = PaddingFreeModel(layers, tuple(rules))
    with runner.running(bins):
        found = _outputs(model, layers, inputs)
    same = torch.stack([_same(one, found[name], attended.to(one.device)).cpu() for name, one in wanted.items()])
    right, left = bool(same[:, : len(RIGHT)].all()), bool(same[:, len(RIGHT) :].all())
    if not (right or left):
        raise NeedsPadding("it does not compute the same without padding")
    return replace(runner, left=left, right=right)


def _attended() -> Tensor:
    """Return the attention mask of the test batch, `(examples, TOKENS)`."""
    attended = torch.zeros(len(RIGHT + LEFT), TOKENS, dtype=torch.long)
    for example, (first, last) in enumerate(RIGHT + LEFT):
        attended[example, first : last + 1] = 1
    attended[HOLE] = 0
    return attended


def _inputs(model: Any, attended: Tensor) -> dict[str, Any]:
    """Return inputs with the model's own padding token, by which some models find the end of a text."""
    config = model.config.get_text_config()
    pad = config.pad_token_id or 0
    ids = torch.arange(attended.numel()).view_as(attended) * 7 % config.vocab_size
    ids = torch.where(ids == pad, (pad + 1) % config.vocab_size, ids).masked_fill(attended == 0, pad)
    inputs: dict[str, Any] = {"input_ids": ids.to(model.device), "attention_mask": attended.to(model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5].to(model.device)
    if "position_ids" in inspect.signature(model.forward).parameters:  # BERT's layers get them if the batch has them
        inputs["position_ids"] = torch.arange(TOKENS, device=model.device).expand_as(ids)
    return inputs


def _outputs(model: Any, layers: nn.ModuleList, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the outputs of the last layer and of the model by name, `(examples, ...)` each."""
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
    """Return for which examples two outputs are the same apart from padding, bool `(batch,)`."""
    if wanted.shape[:2] == attended.shape:
        padding = (attended == 0).view(*attended.shape, *(1,) * (wanted.dim() - 2))
        wanted, found = wanted.masked_fill(padding, 0.0), found.masked_fill(padding, 0.0)
    # NaN is left out of the scale. An example with NaN, with or without padding, does not count as the same.
    tolerance = TOLERANCE.get(wanted.dtype, IN_HALF) * float(wanted.nan_to_num(0.0).abs().max())
    return (wanted - found).flatten(1).abs().amax(-1) <= tolerance


@contextmanager
def _noting(layers: nn.ModuleList, rules: list[dict[Path, Rule | None]]) -> Iterator[None]:
    """Context manager: while a padded batch runs, store in `rules` how each layer's arguments must be changed."""
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
    """Return how an argument must be changed, by its shape; None if it stays as it is.

    Raises:
        NeedsPadding: Its shape depends on the tokens of a batch in an unknown way.
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
