"""The format of a cache: what is stored of a teacher, in which columns, and how a batch is read from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from hf_distill.cache import hidden_states
from hf_distill.cache.hidden_states import StatesColumn
from hf_distill.models.inspection import base_model
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import PREFIX

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Features

    from hf_distill.models.layers import States
    from hf_distill.rows.base import RowLayout

Array = np.ndarray[Any, Any]
SPARSE = ("indices", "log_probabilities", "remaining")


@dataclass(frozen=True)
class Kept:
    """What is stored of a teacher: whole outputs, or sparse rows (the most likely classes of each row).

    Attributes:
        outputs: Names of the outputs that are stored whole, as `RowLayout.logits` reads them; empty for sparse rows.
        by_token: Whether whole outputs have a value for every token.
        top: Number of most likely classes stored of a sparse row.
        tail: Number of the other classes that are sampled by their probability, with replacement.
        temperature: Temperature of the stored probabilities.
        precision: Number format of what is stored.
        classes: Number of columns of the head that are classes.
        states: Hidden states that are stored too.
        left_out: Tokens that are not classes; classes are numbered without them.
        means: Of a mean of several teachers' distributions: every temperature at which it was taken. Whole outputs have
            columns for each, 1 first; sparse rows are at one, and the likeliest class at temperature 1 comes first.
            Empty for one teacher, and for a mean that is right at all temperatures.
    """

    outputs: tuple[str, ...] = ()
    by_token: bool = False
    top: int = 0
    tail: int = 0
    temperature: float = 1.0
    precision: Literal["float16", "float32", "float64"] = "float32"
    classes: int = 0
    states: tuple[StatesColumn, ...] = ()
    left_out: tuple[int, ...] = ()
    means: tuple[float, ...] = ()

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
        states: Iterable[States] = (),
        hidden_precision: Literal["float16", "float32"] = "float16",
    ) -> Kept:
        """Return what to store of a teacher: rows over a vocabulary sparse, all other outputs whole.

        Args:
            teacher: The model.
            layout: Row layout of the task.
            top: Number of most likely classes stored of a sparse row; all classes if there are fewer.
            temperature: Temperature of the probabilities of sparse rows.
            precision: Number format of sparse rows. Whole outputs are small and always stored exactly.
            tail: Number of sampled classes of a sparse row; ignored if all classes are stored.
            states: Hidden states to store too.
            hidden_precision: Number format of the hidden states.

        Raises:
            UserError: The teacher does not have one of the layers.
        """
        exact: Any = "float64" if next(teacher.parameters()).dtype == torch.float64 else "float32"
        config: Any = base_model(teacher).config
        columns = hidden_states.columns_of(config, states, exact if hidden_precision == "float32" else hidden_precision)
        if not is_sparse(teacher, layout):
            return cls(outputs=layout.outputs, by_token=layout.outputs_by_token, precision=exact, states=columns)
        head: Any = base_model(teacher).get_output_embeddings()  # type: ignore[operator]
        left_out: tuple[int, ...] = getattr(layout, "left_out", ())
        classes = min(getattr(layout, "classes", None) or len(head.weight), len(head.weight) + len(left_out))
        classes -= len(left_out)
        if (mapping := getattr(layout, "mapping", None)) is not None:
            classes = mapping.classes
        if precision == "float32":
            precision = exact
        tail = tail if top < classes else 0
        settings: Any = {"tail": tail, "temperature": temperature, "precision": precision, "classes": classes}
        settings["left_out"] = left_out
        return cls(top=min(top, classes), states=columns, **settings)

    @property
    def is_sparse(self) -> bool:
        """Whether sparse rows are stored, not whole outputs."""
        return not self.outputs

    def gives(self) -> Gives:
        """Return what the cache gives to objectives."""
        return Gives(
            "a cached teacher",
            classes="all" if not self.is_sparse else "drawn" if self.tail else "top",
            temperature=self.temperature if self.is_sparse else None,
            exact_logits=not self.is_sparse,
            top=None if not self.is_sparse or self.top == self.classes else self.top,
            states=tuple(one.states for one in self.states),
            more_states="Add them to its layers; left out, those are stored that objectives name.",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of a cache, without the hash."""
        return (*self.answers, *(one.name for one in self.states))

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the columns with outputs or sparse rows, without hidden states."""
        return (
            SPARSE
            if self.is_sparse
            else tuple(self.column(one, at) for at in self.means or (1.0,) for one in self.outputs)
        )

    @staticmethod
    def column(output: str, temperature: float) -> str:
        """Return the name of the column of an output, of a mean that was taken at a temperature."""
        return output if temperature == 1.0 else f"{output}_at_{temperature:g}"

    @property
    def index_bytes(self) -> int:
        """Number of bytes of a class index, little-endian."""
        return 2 if self.classes <= 2**16 else 3 if self.classes <= 2**24 else 4

    def row_bytes(self) -> int:
        """Return the size of a sparse row in bytes."""
        number = np.dtype(self.precision).itemsize
        return (self.top + self.tail) * self.index_bytes + (self.top + 1) * number

    def in_words(self) -> str:
        """Return a description such as `the likeliest 64 of 30,522 tokens`."""
        some = "all" if self.top == self.classes else f"the likeliest {self.top}"
        if self.tail:
            some += f" and {self.tail} sampled"
        return f"{some} of {self.classes:,} tokens"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for `cache.json` and for messages about differences."""
        found = {**asdict(self), "outputs": list(self.outputs), "left_out": list(self.left_out)}
        del found["states"]
        if not self.left_out:  # caches of earlier versions do not have it
            del found["left_out"]
        found["means"] = list(self.means)
        if not self.means:
            del found["means"]
        for one in self.states:
            layers = found.setdefault("layers", "")
            found["layers"] = f"{layers}, {one.states}" if layers else str(one.states)
            found["hidden_precision"] = one.precision
        return found

    def only(self, wanted: Iterable[States]) -> Kept:
        """Return the same with only the hidden states in `wanted`."""
        layers = {(one.part, one.layer) for one in wanted}
        some = tuple(one for one in self.states if (one.states.part, one.states.layer) in layers)
        return replace(self, states=some)

    def features(self, dims: int) -> Features:
        """Return the columns of a cache as `datasets.Features`.

        Args:
            dims: Number of dimensions of an output for one example.
        """
        from datasets import Features, List, Value

        whole: Any = Value("binary" if self.is_sparse else self.precision)
        if not self.is_sparse:
            for _ in range(dims):
                whole = List(whole)
        answers = dict.fromkeys(self.answers, whole)
        return Features({"example": Value("binary"), **answers, **{one.name: one.feature() for one in self.states}})


def is_sparse(teacher: nn.Module, layout: RowLayout) -> bool:
    """Whether a model's rows are over a vocabulary, so that sparse rows are stored."""
    base: Any = base_model(teacher)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return layout.by_position and head is not None


def packed(indices: Array, size: int) -> Array:
    """Return integers as their `size` low bytes, uint8 `(rows, classes * size)`."""
    single = np.ascontiguousarray(indices.astype("<u4")).view(np.uint8).reshape(*indices.shape, 4)
    return np.ascontiguousarray(single[..., :size]).reshape(len(indices), indices.shape[1] * size)


def _unpacked(content: bytes, size: int) -> Array:
    """Return the integers that `packed` converted to bytes, int32 `(numbers,)`."""
    single = np.frombuffer(content, np.uint8).reshape(-1, size)
    whole = np.zeros((len(single), 4), np.uint8)
    whole[:, :size] = single
    return whole.view("<u4")[:, 0].astype(np.int32)


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(table: pa.Table, kept: Kept, tokens: Tensor | None) -> dict[str, Tensor]:
    """Return the stored outputs or rows of a batch as tensors; their names begin with `PREFIX`.

    Sparse rows are in the order of the examples, `(rows, top)`; outputs are padded like the batch.

    Args:
        table: The rows of the cache, in the order of the batch.
        kept: What they hold.
        tokens: Whether each token of the batch is not padding, bool `(batch, tokens)`; None unless `by_token`.
    """
    if kept.is_sparse:
        return dict(_read_sparse(table, kept))
    found = {}
    for name in kept.answers:
        array = table.column(name).combine_chunks()
        values = _dense(array if tokens is None else array.flatten())
        if tokens is not None:
            whole = values.new_zeros(*tokens.shape, *values.shape[1:])
            whole[tokens] = values
            values = whole
        found[f"{PREFIX}{name}"] = values
    return found


def _read_sparse(table: pa.Table, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    for name in SPARSE:
        content = b"".join(table.column(name).to_pylist())
        if name == "indices":
            values = _unpacked(content, kept.index_bytes).reshape(-1, kept.top + kept.tail)
        else:
            values = np.frombuffer(content, kept.precision).copy()
        yield f"{PREFIX}{name}", torch.from_numpy(values.reshape(-1, kept.top) if name == SPARSE[1] else values)


def _dense(array: pa.Array) -> Tensor:
    """Return an array of (nested) lists, all of one length at each level, as a tensor."""
    import pyarrow as pa

    shape = [len(array)]
    while pa.types.is_list(array.type):
        inner = array.flatten()
        shape.append(len(inner) // max(1, len(array)))
        array = inner
    # A copy, because the array may be the memory-mapped file, which must not be written.
    return from_dlpack(array).reshape(shape).clone()
