"""ONNX of models that write texts: one graph for the prompt and for each further token, with a cache.

Inputs and outputs have the names that optimum gives them, which other runtimes expect: `past_key_values.0.key`,
`present.0.key`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.export.base import Session
from hf_distill.export.graph import exporting, save_graph
from hf_distill.models.inspection import taken_by

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig

    from hf_distill.export.base import Arrays, FinishedStudent
    from hf_distill.export.session import OnnxSession

PAST, PRESENT = "past_key_values", "present"


class WritingSession(Session):
    """A graph with a cache in onnxruntime, on the CPU.

    Called with whole texts, it returns the logits of all their tokens. `step` reads further tokens with the cache.

    Args:
        graph: The graph.
    """

    inputs = ("input_ids", "attention_mask")

    def __init__(self, graph: OnnxSession) -> None:
        self._graph = graph
        self._cache = {name: (shape[1], 0, shape[3]) for name, shape in graph.shapes.items() if name.startswith(PAST)}

    @staticmethod
    def fits(graph: OnnxSession) -> bool:
        """Whether a graph has a cache."""
        return any(name.startswith(PAST) for name in graph.inputs)

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return the `logits` of all tokens, `(texts, tokens, vocabulary)`."""
        return {"logits": self.step(batch["input_ids"], batch["attention_mask"])[0]}

    def alone(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return the `logits` of the last tokens, `(texts, 1, vocabulary)`."""
        return {"logits": self(batch)["logits"][:, -1:]}

    def step(
        self, ids: NDArray[Any], mask: NDArray[Any], past: Arrays | None = None
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Return the logits of some tokens, and the cache with them.

        Args:
            ids: The tokens, `(texts, tokens)`.
            mask: 0 for padding, `(texts, all tokens so far)`.
            past: The cache of the tokens before; None if there are none.
        """
        import numpy as np

        if past is None:
            past = {name: np.zeros((len(ids), *sizes), np.float32) for name, sizes in self._cache.items()}
        positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        read = {name: np.asarray(value, np.int64) for name, value in feeds.items() if name in self._graph.inputs}
        found = self._graph.run({**read, **past})
        logits = found.pop("logits")
        return logits, {name.replace(PRESENT, PAST, 1): value for name, value in found.items()}


def has_other_memory(config: PretrainedConfig) -> bool:
    """Whether a model remembers something else than keys and values of its tokens (Mamba's state). Loads no weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    return type(config) in known and bool(getattr(known[type(config)], "_is_stateful", False))


def write_with_cache(student: FinishedStudent, file: Path, opset: int) -> None:
    """Write the graph of a model that writes texts, with a cache.

    Args:
        student: The finished student.
        file: The file; large weights go into a second one beside it.
        opset: Version of ONNX's operators.

    Raises:
        UserError: PyTorch cannot write it, or its cache does not hold keys and values.
    """
    import torch

    model: Any = student.model
    sizes = _cache_sizes(model)
    # No size is 0 or 1: the exporter takes these for sizes that never change.
    texts, before, tokens = 2, 5, 3
    past = tuple(torch.zeros(texts, heads, before, width) for heads, width in sizes)
    ids = torch.arange(texts * tokens).reshape(texts, tokens) % 5 + 5
    mask = torch.ones(texts, before + tokens, dtype=torch.long)
    mask[1, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
    free = torch.export.Dim.DYNAMIC
    each = [f"{layer}.{part}" for layer in range(len(sizes) // 2) for part in ("key", "value")]
    with exporting(model):
        program = torch.onnx.export(
            _with_cache(model),
            (ids, mask, positions, past),
            dynamo=True,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"{PAST}.{name}" for name in each)],
            output_names=["logits", *(f"{PRESENT}.{name}" for name in each)],
            dynamic_shapes={
                **{key: {0: free, 1: free} for key in ("ids", "mask", "positions")},
                "past": tuple({0: free, 2: free} for _ in past),
            },
            opset_version=opset,
            verbose=False,
        )
    save_graph(program, file, model, _axes)


def _axes(name: str) -> tuple[str, ...]:
    """Return names of the free axes of an input or output."""
    if name.startswith(PAST):
        return ("batch_size", "", "past_sequence_length", "")
    if name.startswith(PRESENT):
        return ("batch_size", "", "total_sequence_length", "")
    return ("batch_size", "total_sequence_length" if name == "attention_mask" else "sequence_length")


def _cache_sizes(model: Any) -> list[tuple[int, int]]:
    """Return heads and width of keys and values, layer by layer.

    Raises:
        UserError: The model has another kind of cache.
    """
    import torch

    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).get("past_key_values")
    layers = getattr(cache, "layers", [])
    found = [getattr(layer, part, None) for layer in layers for part in ("keys", "values")]
    whole = [one for one in found if one is not None and one.dim() == 4]
    if not whole or len(whole) < len(found):
        raise UserError(f"onnx: {other_memory(model.config)}")
    return [(one.shape[1], one.shape[3]) for one in whole]


def other_memory(config: PretrainedConfig) -> str:
    """Return why a model with another kind of memory cannot be written."""
    return (
        f"a {config.model_type} model remembers something else than keys and values of its tokens, for which other "
        "runtimes have no names. Leave this format out."
    )


def _with_cache(model: Any) -> Any:
    """Return a module that takes the inputs in order, with the cache as a tuple, and returns logits and cache."""
    import torch

    more: Callable[[Any], dict[str, Any]] = (
        (lambda positions: {"position_ids": positions}) if "position_ids" in taken_by(model) else lambda positions: {}
    )

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, positions: Any, past: Any) -> Any:
            found = self.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=_filled(past),
                use_cache=True,
                return_dict=True,
                **more(positions),
            )
            every: Any = found.past_key_values.layers
            return (found.logits, *(part for layer in every for part in (layer.keys, layer.values)))

    return WithCache().eval()


def _filled(past: Any) -> Any:
    """Return a cache of Transformers that holds all keys and values, also those of layers with a sliding window."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.layers.append(layer)
    return cache
