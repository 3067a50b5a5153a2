"""How much heads, neurons and hidden channels of a model do on some rows (Minitron, arXiv 2407.14679, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.models.layers import find_stacks
from hf_distill.students.real_tokens import RealTokens, real_tokens, run_body
from hf_distill.students.widths import architecture_of, widths_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Aggregation = Literal["mean", "l2"]


@dataclass(frozen=True)
class WidthImportance:
    """Importance of the parts of a model; larger is more important.

    Attributes:
        heads: Of the heads of each layer, `(layers, heads)`, float64.
        neurons: Of the neurons of each layer, `(layers, neurons)`.
        hidden: Of the hidden channels, `(hidden,)`.
        rows: Number of rows on which they were measured.
    """

    heads: Tensor
    neurons: Tensor
    hidden: Tensor
    rows: int


def measure(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]], over_tokens: Aggregation, over_rows: Aggregation
) -> WidthImportance:
    """Return the importance of a model's parts, from one forward pass over some rows.

    Over the tokens of a row and over rows, `mean` is the mean of absolute values and `l2` the root of the sum of their
    squares.

    Args:
        model: The model, in eval mode.
        batches: What its `forward` takes.
        over_tokens: How values are aggregated over the tokens of a row that are not padding.
        over_rows: How these are aggregated over rows.
    """
    import torch

    sums: dict[tuple[str, object], _Sum] = {}
    rows = 0
    with _watched(model, sums, over_tokens, over_rows):
        for batch in batches:
            run_body(model, batch)
            rows += len(next(iter(batch.values())))
    found: dict[str, list[Tensor]] = {"heads": [], "neurons": [], "hidden": []}
    for (kind, _), total in sums.items():
        found[kind].append(total.value())
    return WidthImportance(
        heads=torch.stack(found["heads"]),
        neurons=torch.stack(found["neurons"]),
        hidden=torch.stack(found["hidden"]).sum(0),
        rows=rows,
    )


class _Sum:
    """A running aggregate over rows, in float64."""

    def __init__(self, over_tokens: Aggregation, over_rows: Aggregation) -> None:
        self.over_tokens, self.over_rows = over_tokens, over_rows
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, values: Tensor, mask: Tensor) -> None:
        """Add absolute values `(rows, tokens, parts)` of the tokens in `mask`."""
        # A row without a token says nothing.
        values, mask = values[mask.any(-1)], mask[mask.any(-1)]
        values = values.float() * mask[..., None]
        by_row = values.square().sum(1).sqrt() if self.over_tokens == "l2" else values.sum(1) / mask.sum(-1)[:, None]
        by_row = by_row.cpu().double()
        total = (by_row.square() if self.over_rows == "l2" else by_row).sum(0)
        self.total = total if self.total is None else self.total + total
        self.rows += len(by_row)

    def value(self) -> Tensor:
        """Return the aggregate, `(parts,)`."""
        assert self.total is not None
        return self.total.sqrt() if self.over_rows == "l2" else self.total / self.rows


@contextmanager
def _watched(
    model: PreTrainedModel, sums: dict[tuple[str, object], _Sum], over_tokens: Aggregation, over_rows: Aggregation
) -> Iterator[None]:
    """Context manager: add what passes through heads, neurons and normalisations to `sums`."""
    architecture, widths = architecture_of(model.config), widths_of(model.config)
    ((_, layers),) = find_stacks(model).values()

    def sum_of(kind: str, place: object) -> _Sum:
        return sums.setdefault((kind, place), _Sum(over_tokens, over_rows))

    def heads(states: Tensor) -> Tensor:
        by_head = states.reshape(*states.shape[:-1], widths.heads, widths.head_dim).float()
        lengths: Tensor = by_head.norm(dim=-1)
        return lengths

    with ExitStack() as stack:
        tokens = stack.enter_context(real_tokens(model))
        for number, layer in enumerate(layers):
            attended, down = layer.get_submodule(architecture.attended), layer.get_submodule(architecture.down)
            _watch_input(stack, attended, tokens, sum_of("heads", number), heads)
            _watch_input(stack, down, tokens, sum_of("neurons", number), abs)
        for name, norm in _norms(model, widths.hidden):
            _watch_output(stack, norm, tokens, sum_of("hidden", name))
        yield


def _watch_input(stack: ExitStack, module: nn.Module, tokens: RealTokens, total: _Sum, values: Any) -> None:
    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        total.add(values(args[0]), tokens.of(args[0]))

    stack.callback(module.register_forward_pre_hook(watch).remove)


def _watch_output(stack: ExitStack, module: nn.Module, tokens: RealTokens, total: _Sum) -> None:
    def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        total.add(output.abs(), tokens.of(output))

    stack.callback(module.register_forward_hook(watch).remove)


def _norms(model: PreTrainedModel, hidden: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the normalisations of hidden states in a model's body, not those of a head's queries and keys."""
    for name, module in model.base_model.named_modules():
        weight = getattr(module, "weight", None)
        is_norm = type(module).__name__.endswith("Norm") and weight is not None and weight.shape == (hidden,)
        if is_norm and name.rpartition(".")[2] not in ("q_norm", "k_norm"):
            yield name, module
