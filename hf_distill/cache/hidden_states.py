"""Hidden states in a cache: one column for each stored layer, written from a teacher's outputs and read back.

A row of a column is a list of vectors: one for each token of an example that is not padding (in a decoder: that has a
label), or one for each of its texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.models.layers import Part, States, read_stack
from hf_distill.models.representations import represent

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from transformers import PretrainedConfig

    from hf_distill.rows.base import RowLayout

Array = np.ndarray[Any, Any]
Precision = Literal["float16", "float32", "float64"]


@dataclass(frozen=True)
class StatesColumn:
    """A column of hidden states in a cache.

    Attributes:
        states: The layer, and whether it has a vector for each token or for each text.
        width: Number of entries of a vector.
        precision: Number format of the entries.
    """

    states: States
    width: int
    precision: Precision

    @property
    def name(self) -> str:
        """Name of the column, such as `hidden_4` or `encoder_hidden_12_mean`."""
        part, of = self.states.part, self.states.of
        return "_".join(filter(None, (part, "hidden", str(self.states.layer), of if of != "tokens" else None)))

    @property
    def vector_bytes(self) -> int:
        """Size of a vector in bytes."""
        return self.width * np.dtype(self.precision).itemsize

    def feature(self) -> Any:
        """Return the feature of the column in `datasets`: lists of vectors."""
        from datasets import List, Value

        return List(List(Value(self.precision), length=self.width))

    def mask(self, layout: RowLayout, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens have a vector, bool `(sequences, tokens)`, as in `feature_terms.FeatureTerm`.

        Raises:
            ValueError: The layer is a decoder's, and the batch has no labels.
        """
        if self.states.part != "decoder":
            return layout.tokens(batch)
        if "labels" not in batch:
            raise ValueError(
                "a decoder's hidden states are stored where there is a label, and this batch has no labels."
            )
        return batch["labels"] != IGNORED


def merged(states: Iterable[States]) -> tuple[States, ...]:
    """Return each layer once. If several vectors of a layer are wanted, all of its tokens are stored.

    >>> [str(one) for one in merged([States(4), States(2, "mean"), States(4, "first"), States(1, "first")])]
    ['1 (first)', '2 (mean)', '4']
    """
    found: dict[tuple[str, int], States] = {}
    for one in states:
        other = found.setdefault((one.part or "", one.layer), one)
        if other.of != one.of:
            found[one.part or "", one.layer] = replace(one, of="tokens")
    return tuple(found[key] for key in sorted(found))


def columns_of(config: PretrainedConfig, states: Iterable[States], precision: Precision) -> tuple[StatesColumn, ...]:
    """Return the columns for hidden states of a teacher.

    Args:
        config: Configuration of the teacher.
        states: The hidden states, in any order; each layer becomes one column, as in `merged`.
        precision: Number format to store.

    Raises:
        UserError: The teacher does not have one of the layers; `key` is `layers`.
    """
    columns = []
    for one in merged(states):
        stack = read_stack(config, one.part, "teacher")
        if one.layer > stack.depth:
            raise UserError(
                f"{stack.name} has no layer {one.layer}. Its layers are 1 to {stack.depth}; 0 is the output of its "
                "embeddings.",
                key="layers",
            )
        columns.append(StatesColumn(one, stack.width, precision))
    return tuple(columns)


def in_words(columns: Sequence[StatesColumn]) -> str:
    """Return a description such as `hidden states of layers 2, 4 (mean), 768 wide in float16`."""
    names = ", ".join(str(one.states) for one in columns)
    widths = " and ".join(dict.fromkeys(str(one.width) for one in columns))
    return f"hidden states of layer{'s' * (len(columns) > 1)} {names}, {widths} wide in {columns[0].precision}"


# ---- Writing ---------------------------------------------------------------------------------------------------------


def record(
    outputs: Mapping[str, Any], columns: Sequence[StatesColumn], layout: RowLayout, batch: Mapping[str, Tensor]
) -> dict[str, list[Array]]:
    """Return, for each column, the vectors of every example of a batch, `(vectors, width)` each.

    Args:
        outputs: Outputs of the teacher with hidden states.
        columns: The columns to fill.
        layout: Row layout of the task.
        batch: The batch that the teacher read.

    Raises:
        UserError: A vector is not finite, or not finite in the precision of its column.
    """
    examples = len(next(iter(batch.values())))
    found = {}
    for column in columns:
        states, mask = _layer(outputs, column), column.mask(layout, batch)
        if column.states.of == "tokens":
            states = states[:, : mask.shape[1]]
            vectors = by_example(states, examples)[by_example(mask.to(states.device), examples)]
            counts = by_example(mask, examples).flatten(1).sum(1)
        else:
            one = represent({"hidden_states": (states,)}, mask.to(states.device), column.states.of)
            vectors = by_example(one, examples).flatten(0, 1)
            counts = torch.full((examples,), len(vectors) // examples)
        kept = _exactly(vectors, column)
        ends = np.cumsum(counts.cpu().numpy())
        found[column.name] = np.split(kept, ends[:-1])
    return found


def by_example(sequences: Tensor, examples: int) -> Tensor:
    """Return `(texts * examples, ...)` as `(examples, texts, ...)`; in the input all first texts come first."""
    return sequences.reshape(-1, examples, *sequences.shape[1:]).transpose(0, 1)


def by_text(examples: Tensor) -> Tensor:
    """Return `(examples, texts, ...)` as `(texts * examples, ...)`; the inverse of `by_example`."""
    return examples.transpose(0, 1).flatten(0, 1)


def _layer(outputs: Mapping[str, Any], column: StatesColumn) -> Tensor:
    found = outputs.get(_key(column.states.part))
    if found is None or len(found) <= column.states.layer:
        count = "none" if found is None else f"those of {len(found)} layers"
        raise UserError(
            f"the hidden states of layer {column.states} are to be stored, but the teacher returns {count}.",
            key="layers",
        )
    states: Tensor = found[column.states.layer]
    if states.shape[-1] != column.width:
        raise UserError(
            f"the hidden states of layer {column.states} have {states.shape[-1]} entries, but the teacher's "
            f"configuration says {column.width}.",
            key="layers",
        )
    return states


def _exactly(vectors: Tensor, column: StatesColumn) -> Array:
    """Return vectors in the precision of a column.

    Raises:
        UserError: They are not finite in this precision. Training on an infinite number would show no error.
    """
    kept = vectors.to(getattr(torch, column.precision))
    if not bool(kept.isfinite().all()):
        if not bool(vectors.isfinite().all()):
            raise UserError(
                f"the teacher's hidden states of layer {column.states} have entries that are NaN or infinite, which "
                "cannot be trained on. Load it with dtype: float32 and without bf16, or leave this layer out.",
                key="layers",
            )
        most = float(vectors.abs().max())
        raise UserError(
            f"the teacher's hidden states of layer {column.states} go up to {most:.3g}, but {column.precision} ends at "
            f"{torch.finfo(kept.dtype).max:,.0f}. Set hidden_precision: float32.",
            key="hidden_precision",
        )
    array: Array = kept.cpu().numpy()
    return array


def to_arrow(examples: Sequence[Array], kind: Any) -> pa.Array:
    """Return the vectors of all examples as an Arrow array, without a Python object for every number."""
    import pyarrow as pa

    width = kind.value_type.list_size
    offsets = np.cumsum([0, *map(len, examples)], dtype=np.int32)
    numbers = pa.array(np.concatenate(examples).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(numbers, width)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(kind)


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(
    table: pa.Table, columns: Sequence[StatesColumn], layout: RowLayout, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the hidden states of a batch in their stored precision.

    Args:
        table: The rows of the cache, in the order of the batch.
        columns: The columns to read.
        layout: Row layout of the task.
        batch: The padded batch of the student.

    Returns:
        Column -> `(sequences, tokens, width)`, 0 where nothing is stored; `(sequences, width)` for one vector of each
        text.

    Raises:
        ValueError: The batch has another number of tokens than were stored.
    """
    found = {}
    for column in columns:
        numbers = table.column(column.name).combine_chunks().flatten().flatten()
        vectors = from_dlpack(numbers).reshape(-1, column.width)  # may be the memory-mapped file: do not write
        if column.states.of != "tokens":
            found[column.name] = by_text(vectors.clone().reshape(len(table), -1, column.width))
            continue
        mask = by_example(column.mask(layout, batch), len(table))
        if int(mask.sum()) != len(vectors):
            raise ValueError(
                f"the batch has {int(mask.sum())} tokens, but the cache has {len(vectors)} vectors of layer "
                f"{column.states} for them."
            )
        whole = vectors.new_zeros(*mask.shape, column.width)
        whole[mask] = vectors
        found[column.name] = by_text(whole)
    return found


def replay(
    values: Mapping[str, Tensor], columns: Sequence[StatesColumn], config: PretrainedConfig, batch: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor | None, ...]]:
    """Return hidden states in the form of a teacher's outputs: a tuple of all layers, None for those not stored.

    If one vector of a text is stored, it is repeated at every token: mean, first and last token are then this vector.

    Args:
        values: Column -> tensor from `read`.
        columns: The columns to return.
        config: Configuration of the teacher.
        batch: Has `input_ids` (for a decoder: `labels`) if one vector of a text is stored.
    """
    found: dict[str, list[Tensor | None]] = {}
    for column in columns:
        part, layer = column.states.part, column.states.layer
        if _key(part) not in found:
            found[_key(part)] = [None] * (read_stack(config, part, "teacher").depth + 1)
        states = values[column.name]
        if column.states.of != "tokens":
            tokens = batch[_shaped_like(column)].shape[-1]
            states = states.unsqueeze(1).expand(-1, tokens, -1)
        found[_key(part)][layer] = states
    return {key: tuple(layers) for key, layers in found.items()}


def takes(columns: Iterable[StatesColumn]) -> set[str]:
    """Return the names of the batch columns that `replay` needs besides the stored states."""
    return {_shaped_like(column) for column in columns if column.states.of != "tokens"}


def _shaped_like(column: StatesColumn) -> str:
    return "labels" if column.states.part == "decoder" else "input_ids"


def _key(part: Part | None) -> str:
    return f"{part}_hidden_states" if part else "hidden_states"
