"""Apply a model's output head to some rows of its input at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_distill.models.heads import OutputHead

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)


@dataclass(frozen=True)
class Side:
    """The output head of one model, with its input.

    Attributes:
        head: The output head.
        hidden: Input of the head at the rows that count, `(rows, width)`, on the head's device.
        dtype: Precision of the matrix product.
        classes: Number of columns that are tokens; None for all.
        shared: For a teacher: the columns whose tokens the student has too; None for all of `classes`.
    """

    head: OutputHead
    hidden: Tensor
    dtype: torch.dtype
    classes: int | None = None
    shared: Tensor | None = None

    @property
    def width(self) -> int:
        """Number of columns of the head."""
        return len(self.head.linear.weight)

    def finish(self, raw: Tensor) -> Tensor:
        """Return the model's logits at the columns that are tokens, float32 or better, from the raw product."""
        upcast = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        logits = self.head.finish(upcast)[:, : self.classes]
        return logits if self.shared is None else logits.index_select(-1, self.shared.to(logits.device))

    def logits(self) -> Tensor:
        """Return the logits of all rows, `(rows, classes)`, with their autograd graph."""
        linear = self.head.linear
        bias: Tensor | None = linear.bias
        bias = None if bias is None else bias.to(self.dtype)
        raw = torch.nn.functional.linear(self.hidden.to(self.dtype), linear.weight.to(self.dtype), bias)
        return self.finish(raw)


def project(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `rows @ weight.T + bias` for few rows and many columns.

    On a CPU in float32 it uses oneDNN, as torch.compile does. PyTorch's default is MKL, which takes up to 1.7 times as
    long for this shape on other processors than Intel's (256 rows of width 768, 30522 columns, AMD EPYC 9004).
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and _HAS_ONEDNN:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product
    return torch.nn.functional.linear(rows, weight, bias)


class Projector:
    """Applies a head chunk by chunk; its weights are converted once to the precision of the product."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.weight = side.head.linear.weight.detach().to(side.dtype)
        bias: Tensor | None = side.head.linear.bias
        self.bias = None if bias is None else bias.detach().to(side.dtype)
        self.hidden = side.hidden.detach()

    def raw(self, part: slice) -> Tensor:
        """Return the raw product for some rows."""
        return project(self.rows(part), self.weight, self.bias)

    def rows(self, part: slice) -> Tensor:
        """Return the input of some rows in the precision of the product."""
        return self.hidden[part].to(self.weight.dtype)
