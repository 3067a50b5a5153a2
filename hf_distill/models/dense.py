"""Linear layers after the pooling of a sentence encoder: settings and weights of `Dense` of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_distill.errors import UserError

WEIGHTS = "model.safetensors"
# Modules from which an activation may come; no other module is imported.
_HOMES = ("torch.nn.modules.activation", "torch.nn.modules.linear")
_KEY = "sentence_embedding"


@dataclass(frozen=True)
class Dense:
    """One layer: `activation(x W^T + b)`. A residual connection adds `x`, or `x R^T` if the widths differ.

    Attributes:
        in_features: Width of its input.
        out_features: Width of its output.
        bias: Whether it has `b`.
        activation: Name of a class of `torch.nn` that takes no arguments.
        residual: Whether `x` is added.
    """

    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False

    def config(self) -> dict[str, Any]:
        """Return the content of the module's `config.json`, as sentence-transformers writes it."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("activation", "residual")}
        path = f"{getattr(nn, self.activation).__module__}.{self.activation}"
        # Versions before 5.7 have no residual connection and fail on an unknown key.
        rest = {"use_residual": True} if self.residual else {}
        return {**kept, "activation_function": path, **rest}


def read_dense(config: Mapping[str, Any]) -> Dense:
    """Return the layer that a `config.json` describes.

    Raises:
        ValueError: It is not a layer after the pooling, or its activation is not one of `torch.nn`. The message
            continues the sentence "it has a Dense ...".
    """
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _KEY):
            raise ValueError(f"whose {key} is {config[key]}, not {_KEY}")
    sizes = config.get("in_features"), config.get("out_features")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError("whose config.json does not say how wide it is (in_features, out_features)")
    said = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = said.rpartition(".")[2]
    if not said.startswith("torch.nn.") or not _is_activation(name):
        raise ValueError(f"whose activation {said} is not an activation of torch.nn without settings and weights")
    residual = bool(config.get("use_residual", False))
    return Dense(
        int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)), name, residual
    )


def _is_activation(name: str) -> bool:
    """Return whether `torch.nn` has a class of this name that is a function of one tensor without weights."""
    kind = getattr(nn, name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or kind.__module__ not in _HOMES:
        return False
    try:
        return not any(True for _ in kind().parameters())
    except TypeError:  # it takes arguments: MultiheadAttention, Linear
        return False


class DenseLayer(nn.Module):
    """The layer with its weights, named as sentence-transformers names them.

    Args:
        described: Its settings. Its weights are drawn with torch's random generator.
    """

    def __init__(self, described: Dense) -> None:
        super().__init__()
        self.described = described
        self.linear = nn.Linear(described.in_features, described.out_features, bias=described.bias)
        self.activation: nn.Module = getattr(nn, described.activation)()
        self.residual: nn.Linear | None = None
        if described.residual and described.in_features != described.out_features:
            self.residual = nn.Linear(described.in_features, described.out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Apply the layer: `(texts, in_features)` -> `(texts, out_features)`."""
        found: Tensor = self.activation(self.linear(vectors))
        if not self.described.residual:
            return found
        added: Tensor = vectors if self.residual is None else self.residual(vectors)
        return found + added


def dense_stack(described: Sequence[Dense]) -> nn.Sequential:
    """Return the layers as one `nn.Sequential`, in eval mode."""
    return nn.Sequential(*(DenseLayer(one) for one in described)).eval()


def load_stack(stack: nn.Sequential, files: Sequence[Path]) -> None:
    """Load the weights of all layers, each from its own file.

    Raises:
        UserError: A file cannot be read, or does not hold the layer's tensors.
    """
    for layer, file in zip(stack, files, strict=True):
        try:
            weights = load_file(file)
        # SafetensorError derives directly from Exception.
        except Exception as error:
            raise UserError(f"the weights of its Dense cannot be read ({file}): {error}", key="model") from error
        wanted = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if wanted != found:
            raise UserError(
                f"the weights of its Dense do not fit its config.json: {file} has {found}; wanted "
                f"{wanted}. Fetch or save the model again.",
                key="model",
            )
        layer.load_state_dict(weights)


def save_layer(directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights of a layer into its folder."""
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, directory / WEIGHTS)
