"""What is kept of a teacher's answers: the columns of a cache, written from its outputs and read into a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.head_rows import CHUNK_BYTES, ELSEWHERE, side_of, slices
from hf_distill.heads import capturing, open_head
from hf_distill.layouts import base_model
from hf_distill.projection import Projector, Side
from hf_distill.rows import RowLayout, SparseRows

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Features

Array = np.ndarray[Any, Any]
# Of columns of a batch and of a data set: apart from those under `own_tokens.PREFIX`, which are a teacher's inputs.
PREFIX = "cached_"
SPARSE = ("indices", "log_probabilities", "remaining")


@dataclass(frozen=True)
class Kept:
    """What is kept of a teacher's answers.

    Attributes:
        outputs: Outputs that are kept whole, as `RowLayout.logits` reads them; empty where rows are kept sparse.
        by_token: Whether they have a value for every token.
        top: How many classes of a row are kept.
        tail: How many of the other classes are drawn, each as often as it is likely (with replacement).
        temperature: At which their probabilities are taken.
        precision: Of what is kept.
        classes: How many columns of the head are classes.
    """

    outputs: tuple[str, ...] = ()
    by_token: bool = False
    top: int = 0
    tail: int = 0
    temperature: float = 1.0
    precision: Literal["float16", "float32", "float64"] = "float32"
    classes: int = 0

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        layout: RowLayout,
        *,
        top: int,
        temperature: float,
        precision: Literal["float16", "float32"],
        tail: int = 0,
    ) -> Kept:
        """Return what to keep of a teacher: rows over a vocabulary sparse, everything else whole.

        Args:
            teacher: The model.
            layout: Of the task.
            top: Classes of a row, where it is sparse; all, where there are not as many.
            temperature: Likewise.
            precision: Likewise. What is kept whole is small, and always exact.
            tail: Likewise; none, where all classes are kept.
        """
        exact: Any = "float64" if next(teacher.parameters()).dtype == torch.float64 else "float32"
        if not is_sparse(teacher, layout):
            return cls(outputs=layout.outputs, by_token=layout.outputs_by_token, precision=exact)
        head: Any = base_model(teacher).get_output_embeddings()  # type: ignore[operator]
        classes = min(getattr(layout, "classes", None) or len(head.weight), len(head.weight))
        if precision == "float32":
            precision = exact
        tail = tail if top < classes else 0
        return cls(top=min(top, classes), tail=tail, temperature=temperature, precision=precision, classes=classes)

    @property
    def is_sparse(self) -> bool:
        """Whether only the likeliest classes of a row are kept."""
        return not self.outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of a cache."""
        return SPARSE if self.is_sparse else self.outputs

    @property
    def index_bytes(self) -> int:
        """Bytes of a class's number, little-endian."""
        return 2 if self.classes <= 2**16 else 3 if self.classes <= 2**24 else 4

    def row_bytes(self) -> int:
        """Return how much a sparse row takes."""
        number = np.dtype(self.precision).itemsize
        return (self.top + self.tail) * self.index_bytes + (self.top + 1) * number

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "outputs": list(self.outputs)}

    def features(self, dims: int) -> Features:
        """Return the columns of a cache as `datasets` knows them.

        Args:
            dims: Of an output, for one example.
        """
        from datasets import Features, List, Value

        whole: Any = Value("binary" if self.is_sparse else self.precision)
        if not self.is_sparse:
            for _ in range(dims):
                whole = List(whole)
        return Features({"example": Value("binary"), **dict.fromkeys(self.names, whole)})


def is_sparse(teacher: nn.Module, layout: RowLayout) -> bool:
    """Whether a model's rows are over a vocabulary, so that they are kept sparse."""
    base: Any = base_model(teacher)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return layout.by_position and head is not None


# ---- Writing ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Runs a teacher and takes down what is to be kept.

    Args:
        teacher: In eval mode, on its device.
        layout: Of the task.
        kept: What to keep.
        bf16: Whether to compute under autocast to bfloat16, as a training with `bf16` does.
    """

    def __init__(self, teacher: nn.Module, layout: RowLayout, kept: Kept, *, bf16: bool) -> None:
        self.teacher, self.layout, self.kept, self.bf16 = teacher, layout, kept, bf16
        self.head = open_head(teacher) if kept.is_sparse else None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], inputs: Mapping[str, Any], seed: int = 0) -> dict[str, list[Any]]:
        """Return the columns of the examples of a batch.

        Args:
            batch: All of it.
            inputs: What `forward` takes.
            seed: Of what is drawn.
        """
        first = next(iter(batch.values()))
        # Drawn where the logits are made, which of a model spread over devices may be another one.
        drawn_on = first.device if self.head is None else self.head.linear.weight.device
        generator = torch.Generator(drawn_on).manual_seed(seed)
        device = first.device.type
        seen = capturing(self.teacher, self.head) if self.head is not None else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16), seen as captured:
            outputs = self.teacher(**inputs)
        if not self.kept.is_sparse:
            return {name: self._whole(outputs[name], batch) for name in self.kept.outputs}
        if captured is not None and self.head is not None:
            places = self.layout.places(batch)
            assert places is not None
            side = side_of(self.head, captured, places, self.kept.classes)
            rows, example = top_rows(side, self.kept, generator), places.example
        else:
            logits = self.layout.logits(outputs)
            all_rows = self.layout.select(logits, None, batch)
            rows, example = sparse_rows(all_rows.student, self.kept, generator), all_rows.example
        return self._sparse(rows, torch.bincount(example, minlength=len(next(iter(batch.values())))))

    def _whole(self, output: Tensor, batch: Mapping[str, Tensor]) -> list[Array]:
        values = output.to(getattr(torch, self.kept.precision)).cpu()
        if not self.kept.by_token:
            return [value.numpy() for value in values]
        mask = self.layout.tokens(batch).cpu()
        return [value[: len(here)][here].numpy() for value, here in zip(values, mask, strict=True)]

    def _sparse(self, rows: SparseRows, counts: Tensor) -> dict[str, list[Any]]:
        ends = counts.cumsum(0).tolist()
        columns = {
            "indices": _packed(rows.indices.cpu().numpy(), self.kept.index_bytes),
            "log_probabilities": rows.log_probabilities.cpu().numpy().astype(self.kept.precision),
            "remaining": rows.remaining.cpu().numpy().astype(self.kept.precision),
        }
        return {
            name: [values[start:end].tobytes() for start, end in zip([0, *ends], ends, strict=False)]
            for name, values in columns.items()
        }


def _packed(indices: Array, size: int) -> Array:
    """Return numbers as their `size` low bytes, `(rows, classes * size)`."""
    single = np.ascontiguousarray(indices.astype("<u4")).view(np.uint8).reshape(*indices.shape, 4)
    return np.ascontiguousarray(single[..., :size]).reshape(len(indices), indices.shape[1] * size)


def _unpacked(content: bytes, size: int) -> Array:
    """Return the numbers that `_packed` made bytes of."""
    single = np.frombuffer(content, np.uint8).reshape(-1, size)
    whole = np.zeros((len(single), 4), np.uint8)
    whole[:, :size] = single
    return whole.view("<u4")[:, 0].astype(np.int32)


def sparse_rows(logits: Tensor, kept: Kept, generator: torch.Generator) -> SparseRows:
    """Return the likeliest classes of some rows, and after them those that were drawn from the others.

    Only `indices` tells of the latter: each stands for an equal part of the remaining mass.
    """
    rows = SparseRows.of(logits, kept.top, kept.temperature)
    if not kept.tail:
        return rows
    others = (logits.float() / kept.temperature).scatter(-1, rows.indices, -torch.inf).softmax(-1)
    drawn = others.new_zeros(len(logits), kept.tail, dtype=torch.int64)
    if len(logits):
        drawn = torch.multinomial(others, kept.tail, replacement=True, generator=generator)
    return SparseRows(torch.cat((rows.indices, drawn), -1), rows.log_probabilities, rows.remaining, kept.temperature)


def top_rows(side: Side, kept: Kept, generator: torch.Generator) -> SparseRows:
    """Return what is kept of a model's rows, without ever making all logits."""
    # The classes of a whole chunk are sorted, and what that takes is several times the chunk.
    budget = min(ELSEWHERE, CHUNK_BYTES.get(side.hidden.device.type, ELSEWHERE))
    chunk = max(1, min(budget // (4 * side.width), len(side.hidden)))
    projector = Projector(side)
    parts = [
        sparse_rows(side.finish(projector.raw(part)), kept, generator) for part in slices(0, len(side.hidden), chunk)
    ] or [sparse_rows(side.hidden.new_zeros(0, kept.classes), kept, generator)]
    indices, log_probabilities, remaining = (torch.cat([getattr(part, name) for part in parts]) for name in SPARSE)
    return SparseRows(indices, log_probabilities, remaining, kept.temperature)


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(table: pa.Table, kept: Kept, tokens: Tensor | None) -> dict[str, Tensor]:
    """Return what is kept of the examples of a batch as tensors under `PREFIX`.

    Sparse rows follow each other, those of the first example first, `(rows, top)`; outputs are padded as the batch is.

    Args:
        table: The rows of a cache, in the order of the batch.
        kept: What they hold.
        tokens: Which tokens of the batch are no padding, `(batch, tokens)`; None where nothing was kept by token.
    """
    if kept.is_sparse:
        return dict(_read_sparse(table, kept))
    found = {}
    for name in kept.outputs:
        values = [torch.from_numpy(_array(value)) for value in table.column(name)]
        if tokens is None:
            found[f"{PREFIX}{name}"] = torch.stack(values)
        else:
            whole = values[0].new_zeros(*tokens.shape, *values[0].shape[1:])
            whole[tokens] = torch.cat(values)
            found[f"{PREFIX}{name}"] = whole
    return found


def _read_sparse(table: pa.Table, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    for name in SPARSE:
        content = b"".join(table.column(name).to_pylist())
        if name == "indices":
            values = _unpacked(content, kept.index_bytes).reshape(-1, kept.top + kept.tail)
        else:
            values = np.frombuffer(content, kept.precision).copy()
        yield f"{PREFIX}{name}", torch.from_numpy(values.reshape(-1, kept.top) if name == SPARSE[1] else values)


def _array(value: Any) -> Array:
    """Return a (nested) list of a table as an array."""
    import pyarrow as pa

    array, shape = value.values, [len(value.values)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        inner = array.flatten()
        shape.append(len(inner) // max(1, len(array)))
        array = inner
    found: Array = array.to_numpy(zero_copy_only=False).reshape(shape).copy()
    return found
