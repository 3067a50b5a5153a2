"""Queries, keys and values: where the models of Transformers compute them, and how to get hold of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill.errors import UserError
from hf_distill.models.layers import Part

if TYPE_CHECKING:
    from hf_distill.models.layers import Stack

KINDS = ("queries", "keys", "values")
# What the three projections of a layer are called.
NAMES = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen, Gemma, BART
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
    ("q", "k", "v"),  # T5, MPNet
)
# Attention of a decoder to its encoder: no relation between the tokens of one text.
CROSS = {"crossattention", "encoder_attn", "EncDecAttention", "cross_attn", "cross_attention"}


def _thirds(vectors: Tensor, _: int) -> tuple[Tensor, ...]:
    return vectors.chunk(3, -1)


def _by_head(vectors: Tensor, heads: int) -> tuple[Tensor, ...]:
    return tuple(part.flatten(-2) for part in vectors.reshape(*vectors.shape[:-1], heads, -1).chunk(3, -1))


# One projection for all three: by model type, its name, and how its output is taken apart.
FUSED: Mapping[str, tuple[str, Callable[[Tensor, int], tuple[Tensor, ...]]]] = {
    "gpt2": ("c_attn", _thirds),
    "modernbert": ("Wqkv", _thirds),
    "gpt_neox": ("query_key_value", _by_head),
}


class Vectors:
    """Gets the queries, keys and values of chosen layers out of a model's forward pass.

    Not a module: the model must not become part of a term.

    Args:
        model: A Transformers model.
        stack: Its blocks.
        part: Which stack of an encoder-decoder.

    Attributes:
        causal: Whether a token sees no later ones.

    Raises:
        UserError: They are computed in a way that is not known here.
    """

    def __init__(self, model: nn.Module, stack: Stack, part: Part | None) -> None:
        self._model: Any = model
        self._stack = stack
        self._kept: dict[tuple[int, str], Tensor] = {}
        self._calls: dict[str, int] = {}
        config: Any = model.config
        kind: str = config.model_type
        self._fused = FUSED.get(kind)
        self._projections = _find(model, part, self._fused and self._fused[0])
        found = {name: len(modules) for name, modules in self._projections.items()}
        # Of ALBERT's blocks several are one and the same module, called once for each.
        self._shared = kind == "albert" and config.inner_group_num == 1
        if not found or not (self._shared or set(found.values()) == {stack.depth}):
            raise UserError(
                f"'relations' looks into the {stack.depth} layers of {stack.name} for projections called "
                f"{', '.join('/'.join(names) for names in NAMES)}, and found "
                f"{', '.join(f'{number} {name}' for name, number in found.items()) or 'none'}: where its queries, keys "
                "and values are is not known here. Compare hidden states, or attention, instead.",
                key="name",
            )
        self.causal = _is_causal(self._model, next(iter(self._projections.values()))[0])

    def __deepcopy__(self, _: Any) -> Vectors:
        """Return itself: the copy of a term watches the same model, and is not a second one."""
        return self

    @contextmanager
    def watching(self, kinds: Iterable[str], layers: Iterable[int]) -> Iterator[None]:
        """Keep what is computed while it is open.

        Args:
            kinds: Of `KINDS`.
            layers: Indices, from 1.
        """
        wanted = {(layer, kind) for layer in layers for kind in kinds}
        self._kept, self._calls = {}, {}
        with ExitStack() as stack:
            for name, modules in self._projections.items():
                for index, (_, module) in enumerate(modules, start=1):
                    hook = self._hook(name, None if self._shared else index, wanted)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _hook(self, name: str, index: int | None, wanted: set[tuple[int, str]]) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            self._calls[name] = self._calls.get(name, 0) + 1
            layer = index or self._calls[name]
            parts = {name: output} if self._fused is None else dict(zip(KINDS, self._take_apart(output), strict=True))
            for kind, vectors in parts.items():
                # The first call only: DeBERTa projects its table of distances by the same weights afterwards.
                if (layer, kind) in wanted:
                    self._kept.setdefault((layer, kind), vectors)

        return keep

    def _take_apart(self, output: Tensor) -> tuple[Tensor, ...]:
        assert self._fused is not None
        return self._fused[1](output, self._stack.heads or 1)

    def take(self) -> dict[tuple[int, str], Tensor]:
        """Return what was kept, by layer and kind, `(sequences, tokens, width)` each, and forget it.

        Raises:
            ValueError: The student's has no gradient.
        """
        kept, self._kept = self._kept, {}
        checkpointing = self._model.training and _is_checkpointing(self._model)
        if torch.is_grad_enabled() and checkpointing and not all(vectors.requires_grad for vectors in kept.values()):
            raise ValueError(
                "'relations' would train nothing: re-entrant gradient checkpointing computes the layers without "
                "gradient. Set use_reentrant: false in activation_checkpointing_kwargs (before Transformers 5.23 "
                "gradient_checkpointing_kwargs)."
            )
        return kept


def _is_checkpointing(model: Any) -> bool:
    now = getattr(model, "is_activation_checkpointing", None)  # the older name warns
    return bool(model.is_gradient_checkpointing if now is None else now)


def _find(model: nn.Module, part: Part | None, fused: str | None) -> dict[str, list[tuple[str, nn.Module]]]:
    """Return the projections of all layers in their order, with their names, by kind; empty if none are there."""
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if not CROSS.intersection(path := name.split(".")) and (part is None or part in path)
    ]
    for names in ((fused,),) if fused else NAMES:
        found = [[(path, module) for path, module in modules if path.split(".")[-1] == name] for name in names]
        if all(found):
            return dict(zip([fused] if fused else KINDS, found, strict=True))
    return {}


def _is_causal(model: Any, projection: tuple[str, nn.Module]) -> bool:
    from transformers.models.auto import modeling_auto

    attention = model.get_submodule(projection[0].rpartition(".")[0])
    known = getattr(attention, "is_causal", None)
    if known is not None:
        return bool(known)
    kind = model.config.model_type
    return (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
