"""How much each layer of a model matters on some rows: its block influence, or the loss without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.models.layers import find_stacks
from hf_distill.models.patching import replaced
from hf_distill.students.real_tokens import real_tokens, run_body

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows


@dataclass(frozen=True)
class LayerScores:
    """How much each layer matters.

    Attributes:
        what: What was measured, in words.
        of: For each stack (`layers`, `decoder_layers`), a number for each layer; larger matters more.
        rows: Number of rows on which it was measured.
    """

    what: str
    of: Mapping[str, Sequence[float]]
    rows: int


# Rows of logits that are compared at a time.
_ROWS = 256


# ---- Block influence -------------------------------------------------------------------------------------------------


def influence(model: PreTrainedModel, rows: CalibrationRows, count: int) -> LayerScores:
    """Return the block influence of each layer: `1 - cos(input, output)`, mean over the tokens that are not padding.

    Args:
        model: The model, in eval mode.
        rows: Rows of the train split.
        count: How many of them.
    """
    found = {field: layers for field, (_, layers) in find_stacks(model).items()}
    sums = {(field, number): 0.0 for field, layers in found.items() for number in range(len(layers))}
    tokens = dict.fromkeys(found, 0)
    with ExitStack() as stack:
        real = stack.enter_context(real_tokens(model))

        def watch(field: str, number: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                before, after = _states(args, kwargs), _first(output)
                mask = real.of(before, decoder=field == "decoder_layers")
                sums[field, number] += float((1 - _cosine(before, after))[mask].cpu().double().sum())
                tokens[field] += int(mask.sum()) if number == 0 else 0

            return hook

        for field, layers in found.items():
            for number, layer in enumerate(layers):
                stack.callback(layer.register_forward_hook(watch(field, number), with_kwargs=True).remove)
        for batch in rows.batches(model, count):
            run_body(model, batch)
    of = {
        field: [sums[field, number] / max(tokens[field], 1) for number in range(len(layers))]
        for field, layers in found.items()
    }
    return LayerScores("influence", of, min(count, len(rows.train)))


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states that a layer is given."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _first(output: Any) -> Tensor:
    """Return the hidden states of a layer's output, the first where there are several."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


# ---- Loss without a layer --------------------------------------------------------------------------------------------


def loss_without(model: PreTrainedModel, rows: CalibrationRows, count: int) -> LayerScores:
    """Return for each layer how much the predictions change when it is left out.

    The mean over rows of the KL divergence between the predictions of the whole model and those without the layer, or
    of the squared difference of values. Layers run as often as in one forward pass over `count` rows, or less: with `L`
    layers, of which those before the one left out are not computed again, that is `2 count / (L + 1)` rows.

    Args:
        model: The model, in eval mode.
        rows: Rows of the train split.
        count: For how many of them one forward pass is allowed.
    """
    found = {field: layers for field, (_, layers) in find_stacks(model).items()}
    order = [layer for layers in found.values() for layer in layers]
    used = max(2 * min(count, len(rows.train)) // (len(order) + 1), 1)
    sums, total = [0.0] * len(order), 0
    with _leaving_out(order) as left_out:
        # One pass of each kind at a time, in step: only one batch's states are stored.
        passes = [rows.predicted(model, used) for _ in range(len(order) + 1)]
        while True:
            left_out.number = None
            whole = next(passes[0], None)
            if whole is None:
                break
            total += len(whole)
            for number, predicted in enumerate(passes[1:]):
                left_out.number = number
                sums[number] += _distance(whole, next(predicted), rows.layout.has_classes)
    losses = iter([one / max(total, 1) for one in sums])
    of = {field: [next(losses) for _ in layers] for field, layers in found.items()}
    return LayerScores("loss without each", of, used)


def _distance(whole: Tensor, without: Tensor, classes: bool) -> float:
    """Return `KL(whole || without)` of rows of logits, or the squared difference of rows of values, summed."""
    total = 0.0
    # In float64, as the divergence of predictions that hardly differ is lost in float32; not of all rows at once, as a
    # vocabulary may be large.
    for start in range(0, len(whole), _ROWS):
        part = whole[start : start + _ROWS], without[start : start + _ROWS]
        one, other = (logits.cpu().double() if logits.device.type == "mps" else logits.double() for logits in part)
        if classes:
            logs, others = one.log_softmax(-1), other.log_softmax(-1)
            total += float((logs.exp() * (logs - others)).sum())
        else:
            total += float((one - other).square().mean(-1).sum())
    return total


@dataclass
class _LeftOut:
    """Which layer is left out, counted over all stacks; None for none."""

    number: int | None = None


@contextmanager
def _leaving_out(layers: Sequence[nn.Module]) -> Iterator[_LeftOut]:
    """Context manager: leave out a layer of a model, and do not compute those before it again.

    With no layer left out, the outputs of all layers are stored. Then the layers before the one that is left out give
    these again, it gives its input, and those after it run. Between two forward passes with none left out, the inputs
    must be the same.

    Args:
        layers: The layers in the order in which they run.
    """
    left_out = _LeftOut()
    stored: list[Any] = [None] * len(layers)

    def instead(number: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if left_out.number is None:
                stored[number] = forward(*args, **kwargs)
            elif number > left_out.number:
                return forward(*args, **kwargs)
            elif number == left_out.number:
                states, output = _states(args, kwargs), stored[number]
                return (states, *output[1:]) if isinstance(output, tuple) else states
            return stored[number]

        return run

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.enter_context(replaced(layer, "forward", instead(number, layer.forward)))
        yield left_out
