"""Teachers with quantized weights: what they need, and what such weights hold.

Nothing is quantized here: Transformers does that while it loads a model (`quantization_config`), by torchao or
bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from hf_distill import parallel
from hf_distill.errors import UserError, first_line
from hf_distill.locations import require
from hf_distill.models.patching import replaced

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

Quantization = Literal["int8", "nf4"]

# Which package does it. Both round weights and nothing else: an example's answers do not depend on the others of its
# batch, as they do where LLM.int8() looks for outliers in it.
PACKAGES: dict[Quantization, str] = {"int8": "torchao", "nf4": "bitsandbytes"}


# ---- Before anything is loaded ---------------------------------------------------------------------------------------


def check_installed(quantization: Quantization) -> None:
    """Refuse what needs a package that is not here.

    Raises:
        UserError: With what to install.
    """
    require(PACKAGES[quantization], f"'{quantization}'", "quantization")


def check_whole(model: str, config: PretrainedConfig) -> None:
    """Refuse to quantize a checkpoint that is quantized already.

    Args:
        model: Where it is, as the recipe says.
        config: Its configuration.

    Raises:
        UserError: With how it is quantized, and what to do.
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
    """Refuse a quantized checkpoint whose package is not here.

    Args:
        model: Where it is, as the recipe says.
        config: Its configuration; None where there is no checkpoint.

    Raises:
        UserError: In Transformers' own words, which say what to install.
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
    except Exception:  # of the device, which is asked when it is loaded there
        return


def method_of(config: PretrainedConfig) -> str | None:
    """Return how the weights that a configuration describes are quantized; None where they are not.

    What `teacher.quantization` makes of a model has the name that it has there.
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
    """Return what `from_pretrained` is given so that it quantizes the linear layers of a model's body.

    Heads stay whole: they are small where there are few classes, and what the loss comes from where there are many
    (`hf_distill.models.heads`). So does what shares its weights with the embeddings.

    Args:
        quantization: How.
        whole: The model without its weights, on the meta device.
        dtype: Of all that is not quantized, and of the products.
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
    # Told where to, because bitsandbytes would take a GPU, if there is one, that the run does not use.
    return {"quantization_config": config, "device_map": {"": str(parallel.device())}}


def kept_whole(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that are not to be quantized."""
    from torch import nn
    from transformers.quantizers.base import HfQuantizer

    body = f"{model.base_model_prefix}."
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    outside = [] if model.base_model is model else [name for name in linear if not name.startswith(body)]
    # In order, because it becomes part of the configuration, and that of the fingerprint.
    return sorted(HfQuantizer.get_modules_to_not_convert(model, outside, add_default_skips=True))


def ready(model: PreTrainedModel, name: str, key: str) -> None:
    """Freeze a model with quantized weights, and try it out on a few tokens.

    Args:
        model: Loaded.
        name: What the recipe calls it.
        key: To blame.

    Raises:
        UserError: Nothing of it is quantized, or it does not run here.
    """
    from torch import nn

    if not any(type(parameter) is not nn.Parameter for parameter in model.parameters()) and key == "quantization":
        raise UserError(
            f"there is nothing to quantize in '{name}': {type(model).__name__} has no linear layers that "
            f"{method_of(model.config)} takes. Leave this out, or choose another.",
            key=key,
        )
    untyped: Any = model
    untyped.eval().requires_grad_(False)
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # With it bitsandbytes (0.50) packs weights anew in the first forward pass on a CPU. `state_dict()`, as a
            # fingerprint takes it, unpacks them wrongly, and from there on the model gives other answers.
            module.support_avx512bf16_for_cpu = False
    fault = _uneven(model) or _failure(model)
    if fault:
        method, device = method_of(model.config), model.device.type
        raise UserError(f"'{name}' in {method} does not run on this {device}: {fault}. Choose another.", key=key)


def _uneven(model: PreTrainedModel) -> str | None:
    """Return which layer bitsandbytes would get wrong on a CPU.

    Weights of 4 bits have a scale for each block of 64, counted through all rows. Its kernel for CPUs (0.50) begins
    anew in each row, and where rows are no multiple of 64 multiplies with the scales of others.
    """
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None and parameter.device.type == "cpu" and state.shape[-1] % state.blocksize:
            return f"{name} has rows of {state.shape[-1]} weights, no multiple of {state.blocksize}"
    return None


def _failure(model: Any) -> str | None:
    """Return what happens to a few tokens, if that is not what should."""
    import torch

    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            outputs = model(input_ids=ids, **decoder)
    except Exception as error:  # kernels fail in any way they like on a device or a shape that they do not know
        return first_line(error)
    return None if torch.isfinite(outputs[0]).all() else "its answers are not finite numbers"


def is_placed(model: Any, device: torch.device) -> bool:
    """Whether a model is where it belongs, or cannot be moved: it is spread over several devices."""
    return bool(
        getattr(model, "hf_device_map", None) or (getattr(model, "is_quantized", False) and model.device == device)
    )


@contextmanager
def evaluable(model: Any) -> Iterator[None]:
    """Let a `Trainer` be made for a frozen model with quantized weights, which it is only to evaluate.

    `Trainer` refuses all that have no adapter to be trained.
    """
    hidden = getattr(model, "is_quantized", False) and not any(one.requires_grad for one in model.parameters())
    with replaced(model, "is_quantized", False) if hidden else nullcontext():
        yield


# ---- What such weights hold ------------------------------------------------------------------------------------------


def plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of the ordinary tensors that a tensor consists of, itself if it is one."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    for part in flatten()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def size(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, shared ones once, and their bytes, with the scales of quantized ones.

    >>> import torch
    >>> size(torch.nn.Linear(3, 2))
    (8, 32)
    """
    parameters = list(model.parameters())
    count = sum(_count(parameter) for parameter in parameters)
    if not getattr(model, "is_quantized", False):
        return count, sum(parameter.nbytes for parameter in parameters)
    state = [part for name, tensor in model.state_dict().items() for _, part in plain_tensors(name, tensor)]
    return count, sum({part.data_ptr(): part.nbytes for part in state}.values())


def _count(parameter: Any) -> int:
    """Return how many weights there are; bitsandbytes stores two of 4 bits as one."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
    return int(shape.numel())


def weights(model: PreTrainedModel) -> dict[str, str]:
    """Return what weights are: their `dtype`, and the `quantization` of those in linear layers, or `none`."""
    method = method_of(model.config) if getattr(model, "is_quantized", False) else None
    return {"dtype": str(model.dtype).removeprefix("torch."), "quantization": method or "none"}


def in_words(dtype: str, quantization: str) -> str:
    """Return what `weights` says, for a reader.

    >>> in_words("float32", "none"), in_words("float32", "int8")
    ('float32', 'int8 (rest float32)')
    """
    return dtype if quantization == "none" else f"{quantization} (rest {dtype})"
