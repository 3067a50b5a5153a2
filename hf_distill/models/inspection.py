"""Inspect a model: the model inside wrappers, the inputs of its `forward`, its number of positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_distill.models import sharding

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# Inputs with which a model would compute its own loss.
LABELS = {"labels", "start_positions", "end_positions"}
# Columns that Transformers' collators rename to `labels`.
RENAMED_LABELS = ("label", "label_ids")


def base_model(model: nn.Module) -> nn.Module:
    """Return the Transformers model inside wrappers, or the model itself.

    Wrappers are those of PEFT, `torch.compile`, `DataParallel`, DDP and FSDP, and any module that holds one
    Transformers model and whose `forward` takes `**kwargs`.
    """
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def wrapper_of(model: nn.Module) -> str | None:
    """Return the class name of a wrapper other than PEFT's; None if there is none.

    It is not known what such a wrapper does around the model, so the model cannot be separated from its head.
    """
    while (get_base_model := getattr(model, "get_base_model", None)) is not None:
        model = get_base_model()
    return type(model).__name__ if _inside(model) is not None else None


def _inside(model: nn.Module) -> nn.Module | None:
    if (get_base_model := getattr(model, "get_base_model", None)) is not None:
        peft: nn.Module = get_base_model()
        return peft
    for inside in (model._modules.get("_orig_mod"), sharding.inside_wrapper(model)):
        if inside is not None:
            return inside
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel) or not _takes_any(model):
        return None
    held = _models_in(model)
    return held[0] if len(held) == 1 else None


def _takes_any(model: nn.Module) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _models_in(model: nn.Module) -> list[nn.Module]:
    """Return the Transformers models in a module; models inside another model are left out."""
    from transformers import PreTrainedModel

    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and not any(name.startswith(f"{one}.") for one in found):
            found[name] = module
    return list(found.values())


def taken_by(model: nn.Module) -> frozenset[str]:
    """Return the names of the inputs of a model's `forward`, without the labels.

    Raises:
        ValueError: Its `forward` takes only `**kwargs`, and it is not clear which model inside reads them.
    """
    if (takes := getattr(model, "takes", None)) is not None:  # a cached teacher, which takes what was kept
        return frozenset(takes)
    names: set[str] = set()
    while True:
        parameters = inspect.signature(model.forward).parameters.values()
        names |= {one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
        inside = _inside(model)
        if inside is None:
            break
        model = inside
    if not names:
        held = len(_models_in(model))
        raise ValueError(
            f"{type(model).__name__}.forward takes **kwargs, and it holds {held} Transformers models: which inputs it "
            "reads is not known. Name them in its forward (input_ids, attention_mask, ...)."
        )
    return frozenset(names) - LABELS


FAKE = "_fake_quantizer"  # how torchao's names of such modules end


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: put every module of a model into eval mode, and restore its mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    # On a short text, BigBird switches its attention type permanently: restore that as well.
    switched: list[Any] = [module for module in model.modules() if hasattr(module, "set_attention_type")]
    kinds = [module.attention_type for module in switched]
    model.train(False)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
        for one, kind in zip(switched, kinds, strict=True):
            one.set_attention_type(kind)


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Context manager: switch off the rounding of a student that is trained with it, and on again afterwards."""
    on: list[Any] = rounding(model)
    for one in on:
        one.enabled = False
    try:
        yield
    finally:
        for one in on:
            one.enabled = True


def rounding(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that round while it trains (torchao's fake quantizers) and are switched on."""
    return [one for name, one in model.named_modules() if name.endswith(FAKE) and getattr(one, "enabled", False)]


# Positions of these models start after the padding index, so the first rows of their table are not used.
OFFSET_POSITIONS = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text"),
    *("mpnet", "longformer", "luke", "ibert", "lilt", "markuplm", "layoutlmv3", "esm"),
)


def positions_of(config: PretrainedConfig) -> int | None:
    """Return the longest input in tokens for which a model has positions; None if it has no table of positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0 or getattr(config, "position_biased_input", True) is False:
        return None
    return positions - (config.pad_token_id or 0) - 1 if config.model_type in OFFSET_POSITIONS else positions


def writes(model: Any) -> bool:
    """Return whether `generate` of Transformers lets a model write texts; not a mean of models, or stored targets."""
    check = getattr(model, "can_generate", None)
    return check is not None and bool(check())
