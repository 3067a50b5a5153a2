"""Quantized teachers: checks before loading, settings for loading, and the size of quantized weights.

Transformers itself quantizes a model while loading it (`quantization_config`), with torchao or bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from hf_distill import parallel
from hf_distill.errors import UserError, first_line
from hf_distill.locations import require
from hf_distill.models.patching import replaced
from hf_distill.models.placement import name_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

Quantization = Literal["int8", "nf4"]

# Package for each type. Both quantize only weights, so the outputs for an example do not depend on the rest of its
# batch. With LLM.int8(), which looks for outliers in the activations, they would.
PACKAGES: dict[Quantization, str] = {"int8": "torchao", "nf4": "bitsandbytes"}


# ---- Before anything is loaded ---------------------------------------------------------------------------------------


def check_installed(quantization: Quantization) -> None:
    """Refuse a type of quantization whose package is not installed.

    Raises:
        UserError: It is not installed; the message says what to install.
    """
    require(PACKAGES[quantization], f"'{quantization}'", "quantization")


def check_whole(model: str, config: PretrainedConfig) -> None:
    """Refuse to quantize a checkpoint that is quantized already.

    Args:
        model: Its name in the recipe.
        config: Its configuration.

    Raises:
        UserError: It is quantized; the message says how, and what to do.
    """
    if model.lower().endswith(".gguf"):
        raise UserError(
            f"'{model}' is a GGUF file: its weights are quantized already, and are expanded when they are read. Leave "
            "this out, or name the directory of a model that was not quantized.",
            key="quantization",
        )
    own = method_of(config)
    if own is not None:
        raise UserError(
            f"the weights of '{model}' are quantized already ({own}), and are loaded as they are. Leave this out.",
            key="quantization",
        )


def check_loadable(model: str | None, config: PretrainedConfig | None) -> None:
    """Refuse a quantized checkpoint whose package is not installed.

    Args:
        model: Its name in the recipe.
        config: Its configuration; None if there is no checkpoint.

    Raises:
        UserError: The package is missing; Transformers' message says what to install.
    """
    own: Any = getattr(config, "quantization_config", None)
    if model is None or config is None or not own:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(own, pre_quantized=True).validate_environment(device_map=None)
    except ImportError as error:
        raise UserError(
            f"the weights of '{model}' are quantized ({method_of(config)}): {error}", key="model"
        ) from error
    except Exception:  # about the device, which is checked when the model is loaded
        return


def method_of(config: PretrainedConfig) -> str | None:
    """Return how the weights that a configuration describes are quantized; None if they are not.

    Types that `teacher.quantization` offers have the same names here.
    """
    found: Any = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    if not found:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    if settings.get("load_in_8bit"):
        return "llm_int8"
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "4 bits"))
    kind = settings.get("quant_type")
    if isinstance(kind, dict) and str(kind.get("default", {}).get("_type", "")).endswith("Int8WeightOnlyConfig"):
        return "int8"
    method = settings.get("quant_method", "unknown")
    return str(getattr(method, "value", method))


# ---- Loading ---------------------------------------------------------------------------------------------------------


def loading(quantization: Quantization, whole: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that quantize the linear layers of a model, except its head.

    Heads are not quantized: a small one saves little memory, and a large one is needed to compute logits by chunks
    (`hf_distill.models.heads`). Layers that share their weights with the embeddings are not quantized either.

    Args:
        quantization: Type of quantization.
        whole: The model without its weights, on the meta device.
        dtype: Precision of the other weights, and of the matrix products.
    """
    import transformers

    kept = kept_whole(whole)
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config: Any = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    else:
        config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
        )
    # With an explicit device, since bitsandbytes would otherwise use a GPU even if the run does not.
    return {"quantization_config": config, "device_map": {"": name_of(parallel.device())}}


def kept_whole(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that are not to be quantized."""
    from torch import nn
    from transformers.quantizers.base import HfQuantizer

    body = f"{model.base_model_prefix}."
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    outside = [] if model.base_model is model else [name for name in linear if not name.startswith(body)]
    # Sorted, since the list becomes part of the configuration and so of the fingerprint.
    return sorted(HfQuantizer.get_modules_to_not_convert(model, outside, add_default_skips=True))


def ready(model: PreTrainedModel, name: str, key: str) -> None:
    """Freeze a model with quantized weights, and try it out on a few tokens.

    Args:
        model: The loaded model.
        name: Its name in the recipe.
        key: Recipe key for the error.

    Raises:
        UserError: No layer is quantized, or the model does not run on this device.
    """
    from torch import nn

    if not any(type(parameter) is not nn.Parameter for parameter in model.parameters()) and key == "quantization":
        raise UserError(
            f"there is nothing to quantize in '{name}': {type(model).__name__} has no linear layers that "
            f"{method_of(model.config)} can quantize. Leave this out, or choose another type.",
            key=key,
        )
    untyped: Any = model
    untyped.eval().requires_grad_(False)
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Otherwise bitsandbytes (0.50) repacks weights in the first forward pass on a CPU. `state_dict()`, which a
            # fingerprint calls, then unpacks them wrongly, and from there on the model gives other outputs.
            module.support_avx512bf16_for_cpu = False
    fault = _uneven(model) or _failure(model)
    if fault:
        method, device = method_of(model.config), model.device.type
        raise UserError(f"'{name}' in {method} does not run on this {device}: {fault}. Choose another type.", key=key)


def _uneven(model: PreTrainedModel) -> str | None:
    """Return which layer bitsandbytes would compute wrongly on a CPU; None if there is none.

    4-bit weights have one scale per block of 64, counted through all rows. Its CPU kernel (0.50) starts a new block in
    each row, so it uses wrong scales if the length of rows is not a multiple of 64.
    """
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None and parameter.device.type == "cpu" and state.shape[-1] % state.blocksize:
            return f"{name} has rows of {state.shape[-1]} weights, not a multiple of {state.blocksize}"
    return None


def _failure(model: Any) -> str | None:
    """Return why a forward pass on a few tokens fails; None if it gives finite numbers."""
    import torch

    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            outputs = model(input_ids=ids, **decoder)
    except Exception as error:  # kernels may raise anything on a device or shape that they do not support
        return first_line(error)
    return None if torch.isfinite(outputs[0]).all() else "its outputs are NaN or infinite"


def is_placed(model: Any, device: torch.device) -> bool:
    """Return whether a model need not be moved to `device`: it is there, or is spread over several devices."""
    return bool(
        getattr(model, "hf_device_map", None)
        or (getattr(model, "is_quantized", False) and name_of(model.device) == name_of(device))
    )


@contextmanager
def evaluable(model: Any) -> Iterator[None]:
    """Context manager: let a `Trainer` be built that only evaluates a frozen model, quantized or spread over devices.

    `Trainer` refuses quantized models that have no trainable adapter, and would move the others to its device.
    """
    frozen = model is not None and not any(one.requires_grad for one in model.parameters())
    hidden = frozen and getattr(model, "is_quantized", False)
    stays = frozen and getattr(model, "hf_device_map", None)
    with (
        replaced(model, "is_quantized", False) if hidden else nullcontext(),
        replaced(model, "to", lambda *_, **__: model) if stays else nullcontext(),
    ):
        yield


def leave_in_place(accelerator: Any, model: Any) -> None:
    """Let an accelerator prepare a frozen model that is spread over devices for evaluation, where it lies.

    accelerate would move it; and in several processes refuse it, as it could not be trained there.
    """
    if getattr(model, "hf_device_map", None) and not any(one.requires_grad for one in model.parameters()):
        accelerator.device_placement = False
        accelerator.verify_device_map = lambda _: False


# ---- What such weights hold ------------------------------------------------------------------------------------------


def plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of the plain tensors inside a (possibly quantized) tensor."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    for part in flatten()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def size(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and their bytes, including quantization scales; shared ones count once.

    >>> import torch
    >>> size(torch.nn.Linear(3, 2))
    (8, 32)
    """
    parameters = list(model.parameters())
    count = sum(weights_of(parameter) for parameter in parameters)
    if not getattr(model, "is_quantized", False):
        return count, sum(parameter.nbytes for parameter in parameters)
    state = [part for name, tensor in model.state_dict().items() for _, part in plain_tensors(name, tensor)]
    return count, sum({part.data_ptr(): part.nbytes for part in state}.values())


def weights_of(parameter: Any) -> int:
    """Return the number of weights in a parameter; bitsandbytes packs two 4-bit weights into one element."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
    return int(shape.numel())


def weights(model: PreTrainedModel) -> dict[str, str]:
    """Return the `dtype` of a model's weights and the `quantization` of its linear layers, or `none`."""
    method = method_of(model.config) if getattr(model, "is_quantized", False) else None
    return {"dtype": str(model.dtype).removeprefix("torch."), "quantization": method or "none"}


def describe_weights(dtype: str, quantization: str) -> str:
    """Return the result of `weights` as text.

    >>> describe_weights("float32", "none"), describe_weights("float32", "int8")
    ('float32', 'int8 (rest float32)')
    """
    return dtype if quantization == "none" else f"{quantization} (rest {dtype})"
