"""Hidden states in a cache: one column for each layer that is kept, written from a teacher's outputs and replayed.

A row of a column is a list of vectors: those of the tokens of an example that are no padding (in a decoder: that have a
label), or a single one for each of its texts.
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
class KeptStates:
    """A column of a cache.

    Attributes:
        states: What is in it.
        width: Entries of a vector.
        precision: Theirs.
    """

    states: States
    width: int
    precision: Precision

    @property
    def name(self) -> str:
        """Name of the column: `hidden_4`, `encoder_hidden_12_mean`."""
        part, of = self.states.part, self.states.of
        return "_".join(filter(None, (part, "hidden", str(self.states.layer), of if of != "tokens" else None)))

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return self.width * np.dtype(self.precision).itemsize

    def feature(self) -> Any:
        """Return the column as `datasets` knows it: lists of vectors."""
        from datasets import List, Value

        return List(List(Value(self.precision), length=self.width))

    def mask(self, layout: RowLayout, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens count, bool `(sequences, tokens)`, as `feature_terms.FeatureTerm` has it.

        Raises:
            ValueError: They are a decoder's, and the batch has no labels.
        """
        if self.states.part != "decoder":
            return layout.tokens(batch)
        if "labels" not in batch:
            raise ValueError("the hidden states of a decoder are kept where it has a label, and here are no labels.")
        return batch["labels"] != IGNORED


def merged(states: Iterable[States]) -> tuple[States, ...]:
    """Return each layer once; where several vectors of it are wanted, with all of its tokens.

    >>> [str(one) for one in merged([States(4), States(2, "mean"), States(4, "first"), States(1, "first")])]
    ['1 (first)', '2 (mean)', '4']
    """
    found: dict[tuple[str, int], States] = {}
    for one in states:
        other = found.setdefault((one.part or "", one.layer), one)
        if other.of != one.of:
            found[one.part or "", one.layer] = replace(one, of="tokens")
    return tuple(found[key] for key in sorted(found))


def columns_of(config: PretrainedConfig, states: Iterable[States], precision: Precision) -> tuple[KeptStates, ...]:
    """Return the columns for hidden states of a teacher.

    Args:
        config: The teacher's.
        states: Which, in any order; see `merged`.
        precision: Of what is kept.

    Raises:
        UserError: It has no such layer; `key` is `layers`.
    """
    columns = []
    for one in merged(states):
        stack = read_stack(config, one.part, "teacher")
        if one.layer > stack.depth:
            raise UserError(
                f"{stack.name} has no layer {one.layer}. Its layers are 1 to {stack.depth}, 0 is the output of its "
                "embeddings.",
                key="layers",
            )
        columns.append(KeptStates(one, stack.width, precision))
    return tuple(columns)


def in_words(columns: Sequence[KeptStates]) -> str:
    """Return `hidden states of layers 2, 4 (mean), 768 wide in float16`."""
    names = ", ".join(str(one.states) for one in columns)
    widths = " and ".join(dict.fromkeys(str(one.width) for one in columns))
    return f"hidden states of layer{'s' * (len(columns) > 1)} {names}, {widths} wide in {columns[0].precision}"


# ---- Writing ---------------------------------------------------------------------------------------------------------


def record(
    outputs: Mapping[str, Any], columns: Sequence[KeptStates], layout: RowLayout, batch: Mapping[str, Tensor]
) -> dict[str, list[Array]]:
    """Return the vectors of every example of a batch, `(vectors, width)` each.

    Args:
        outputs: Of the teacher, with its hidden states.
        columns: What to keep.
        layout: Of the task.
        batch: As the teacher read it.

    Raises:
        UserError: Some are not finite, or not in the precision in which they are to be kept.
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
    """Return `(examples, texts, ...)` of `(texts * examples, ...)`, all first texts first, as `rows.fold` has them."""
    return sequences.reshape(-1, examples, *sequences.shape[1:]).transpose(0, 1)


def by_text(examples: Tensor) -> Tensor:
    """Return `(texts * examples, ...)` of `(examples, texts, ...)`."""
    return examples.transpose(0, 1).flatten(0, 1)


def _layer(outputs: Mapping[str, Any], column: KeptStates) -> Tensor:
    found = outputs.get(_key(column.states.part))
    if found is None or len(found) <= column.states.layer:
        count = "none" if found is None else f"those of {len(found)} layers"
        raise UserError(
            f"the hidden states of layer {column.states} are to be kept, and the teacher returns {count}.", key="layers"
        )
    states: Tensor = found[column.states.layer]
    if states.shape[-1] != column.width:
        raise UserError(
            f"the hidden states of layer {column.states} have {states.shape[-1]} entries, where the teacher's "
            f"configuration says {column.width}.",
            key="layers",
        )
    return states


def _exactly(vectors: Tensor, column: KeptStates) -> Array:
    """Return vectors in the precision of a column.

    Raises:
        UserError: They cannot be: what is infinite only there would train as quietly as the right number.
    """
    kept = vectors.to(getattr(torch, column.precision))
    if not bool(kept.isfinite().all()):
        if not bool(vectors.isfinite().all()):
            raise UserError(
                f"the teacher's hidden states of layer {column.states} have entries that are NaN or infinite, from "
                "which nothing can be learned. Load it with dtype: float32 and without bf16, or leave this layer out.",
                key="layers",
            )
        most = float(vectors.abs().max())
        raise UserError(
            f"the teacher's hidden states of layer {column.states} go up to {most:.3g}, and {column.precision} ends at "
            f"{torch.finfo(kept.dtype).max:,.0f}. Set hidden_precision: float32.",
            key="hidden_precision",
        )
    array: Array = kept.cpu().numpy()
    return array


def to_arrow(examples: Sequence[Array], kind: Any) -> pa.Array:
    """Return a column of a table, without a Python object for every number."""
    import pyarrow as pa

    width = kind.value_type.list_size
    offsets = np.cumsum([0, *map(len, examples)], dtype=np.int32)
    numbers = pa.array(np.concatenate(examples).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(numbers, width)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(kind)


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(
    table: pa.Table, columns: Sequence[KeptStates], layout: RowLayout, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the hidden states of a batch in the precision in which they were kept.

    Args:
        table: The rows of a cache, in the order of the batch.
        columns: What is to be read of them.
        layout: Of the task.
        batch: What the student reads, padded.

    Returns:
        Column -> `(sequences, tokens, width)`, 0 where nothing was kept; `(sequences, width)` where it is one vector
        for every text.

    Raises:
        ValueError: The batch has not as many tokens as were kept.
    """
    found = {}
    for column in columns:
        numbers = table.column(column.name).combine_chunks().flatten().flatten()
        vectors = from_dlpack(numbers).reshape(-1, column.width)  # it may be the file itself: not to be written
        if column.states.of != "tokens":
            found[column.name] = by_text(vectors.clone().reshape(len(table), -1, column.width))
            continue
        mask = by_example(column.mask(layout, batch), len(table))
        if int(mask.sum()) != len(vectors):
            raise ValueError(
                f"the batch has {int(mask.sum())} tokens, and the cache {len(vectors)} vectors of layer "
                f"{column.states} for them."
            )
        whole = vectors.new_zeros(*mask.shape, column.width)
        whole[mask] = vectors
        found[column.name] = by_text(whole)
    return found


def replay(
    values: Mapping[str, Tensor], columns: Sequence[KeptStates], config: PretrainedConfig, batch: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor | None, ...]]:
    """Return outputs as a teacher has them: a tuple of all layers, None for those that were not kept.

    What was kept as one vector for a text is this vector at every token of it: its mean, its first and its last.

    Args:
        values: Column -> what `read` returned.
        columns: Those to be replayed.
        config: Of the teacher.
        batch: With `input_ids`, and `labels` for a decoder, where one vector was kept.
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


def takes(columns: Iterable[KeptStates]) -> set[str]:
    """Return which columns of a batch `replay` needs besides the states."""
    return {_shaped_like(column) for column in columns if column.states.of != "tokens"}


def _shaped_like(column: KeptStates) -> str:
    return "labels" if column.states.part == "decoder" else "input_ids"


def _key(part: Part | None) -> str:
    return f"{part}_hidden_states" if part else "hidden_states"
