"""Train a student with the rounding of int8 (`qat`), so that its export to int8 loses less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.locations import require
from hf_distill.models.training_hooks import TrainingHooks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Rounding = Literal["int8"]
KEY = "qat"
# Whole numbers on each side of zero that a weight may be. Exports to int8 use 7 of 8 bits: with all of them, processors
# without VNNI add up numbers that overflow.
STEPS = 64


def rounded_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear layers that are trained with rounding, by name: all but the one that gives logits of tokens.

    Raises:
        UserError: Nothing in the model's stacks of layers is a linear layer of PyTorch.
    """
    from torch import nn

    untyped: Any = model
    output = untyped.get_output_embeddings()
    found = {
        name: one
        for name, one in untyped.named_modules()
        if (type(one) is nn.Linear or hasattr(one, "weight_fake_quantizer")) and one is not output
    }
    if not any(part.isdecimal() for name in found for part in name.split(".")):
        raise UserError(
            f"the layers of a {type(model).__name__} have no torch.nn.Linear (GPT-2 has a layer of its own kind), and "
            "torchao rounds nothing else. Leave it out.",
            key=KEY,
        )
    return found


def check_words(model: PreTrainedModel, rounding: Rounding, *, followed: bool) -> str:
    """Return a line for `--check`.

    Args:
        model: A model of the student's configuration.
        rounding: To what it is rounded.
        followed: Whether the teacher changes with the student.

    Raises:
        UserError: The model has no such layers or no export to int8, its teacher follows it, or torchao is
            not installed.
    """
    if model.config.is_encoder_decoder or model.can_generate():
        raise UserError(
            f"a {type(model).__name__} writes texts token by token, and the exports to {rounding} are for models that "
            "read a text at once. Leave it out.",
            key=KEY,
        )
    if followed:
        raise UserError(
            "the teacher follows the student while it trains, and cannot follow its rounded layers. Leave one of the "
            "two out.",
            key=KEY,
        )
    words = _in_words(model, rounding)
    require("torchao", f"{KEY}: {rounding}", KEY)
    return f"{KEY}: {words} while it trains; saved as float32, for an export to {rounding}"


def _in_words(model: PreTrainedModel, rounding: Rounding) -> str:
    layers = rounded_layers(model)
    weights = sum(one.weight.numel() for one in layers.values())
    return f"{len(layers)} linear layers, {count(weights)} weights, are rounded to {rounding}"


class RoundedTraining(TrainingHooks):
    """A training in which linear layers compute with rounded weights and inputs (quantization-aware training).

    Jacob et al. 2018, arXiv 1712.05877. Gradients pass the rounding as if it were not there. The weights stay float32.

    Args:
        rounding: To what it is rounded.
    """

    wraps = True

    def __init__(self, rounding: Rounding) -> None:
        self._rounding: Rounding = rounding

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the model with rounding in its linear layers, whose names and weights stay."""
        return with_rounding(model)

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        """Return the model with plain linear layers and the same weights."""
        plain: PreTrainedModel = without_rounding(model)
        return plain

    def sharded(self) -> UserError | None:
        """Return that steps are those of whole matrices, which are in no process there."""
        return UserError(
            f"{KEY}: weights are rounded in whole matrices, which FSDP and DeepSpeed shard. Train without them "
            "(accelerate launch with another configuration).",
            key="student",
        )

    def deciding(self) -> dict[str, Any]:
        """Return the rounding."""
        return {KEY: self._rounding}

    def in_words(self, model: nn.Module) -> Sequence[str]:
        """Return a line that says what is rounded."""
        plain: Any = model
        return (f"{KEY}: {_in_words(plain, self._rounding)}",)

    def outcome(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return which layers were rounded."""
        return {KEY: f"{_in_words(model, self._rounding)} while it trained"}


class MaskedTokens:
    """Knows which tokens of a batch are padding, from the attention mask with which a model is called.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._masks: dict[torch.device, Tensor | None] = {}  # of each copy of the model, with `DataParallel`
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: nn.Module, unnamed: tuple[Any, ...], named: dict[str, Any]) -> None:
        from hf_distill.models.sentence_encoder import sequences

        mask, ids = named.get("attention_mask"), named.get("input_ids")
        for device in {one.device for one in (mask, ids) if one is not None}:
            self._masks[device] = None if mask is None else sequences(mask)

    def without(self, hidden: Tensor) -> Tensor:
        """Return states of tokens, `(batch, tokens, width)`, with zeros for padding; anything else as it is."""
        mask = self._masks.get(hidden.device)
        if mask is None or hidden.shape[:-1] != mask.shape:
            return hidden
        return hidden.masked_fill((mask == 0)[..., None], 0.0)

    def forget(self) -> None:
        """Look at the model no longer."""
        self._hook.remove()


def with_rounding(model: Any) -> Any:
    """Return a model whose linear layers are replaced, in place, by those of torchao that round.

    For a batch of one text this is what onnxruntime's dynamic int8 computes. Weights: whole multiples of the largest
    absolute weight of an output / 64. Inputs: 256 steps from the least to the largest value of a text, 0 among them;
    onnxruntime takes the texts of a batch together. A layer whose inputs are not texts of tokens (a head on a pooled
    vector, experts) has a range for each of its rows.
    """
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    class OfText(IntxFakeQuantizer):  # type: ignore[misc]
        """One range for all tokens of a text but padding, where torchao has one for each token."""

        padding: MaskedTokens | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.enabled:
                return x
            real = x if self.padding is None else self.padding.without(x)
            rounded: torch.Tensor = super().forward(real.flatten(1).float())
            return rounded.view_as(x).to(x.dtype)

    class OfOutput(IntxFakeQuantizer):  # type: ignore[misc]
        """Steps as wide as those of onnxruntime, where torchao divides by 127.5."""

        def forward(self, w: torch.Tensor) -> torch.Tensor:
            # An output whose weights are all zero has no steps, and needs a number that is not.
            self.scale = (w.detach().abs().amax(-1, keepdim=True) / STEPS).clamp(min=torch.finfo(w.dtype).tiny)
            self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
            rounded: torch.Tensor = super().forward(w)
            return rounded

    inputs = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True, is_dynamic=False)
    chosen = rounded_layers(model)
    with torch.random.fork_rng(devices=[]):  # the new layers draw weights, which are then replaced
        quantize_(
            model,
            QATConfig(activation_config=inputs, weight_config=weights, step="prepare"),
            filter_fn=lambda module, name: name in chosen,
        )
    padding = MaskedTokens(model)
    for name in chosen:
        layer: Any = model.get_submodule(name)
        layer.activation_fake_quantizer, layer.weight_fake_quantizer = OfText(inputs), OfOutput(weights)
        layer.activation_fake_quantizer.padding = padding
    return model


def without_rounding(model: Any) -> Any:
    """Return a model with its plain linear layers, which replace those that round, in place."""
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    for padding in {one.padding for one in model.modules() if getattr(one, "padding", None) is not None}:
        padding.forget()
    with torch.random.fork_rng(devices=[]):
        quantize_(model, QATConfig(step="convert"))
    return model
