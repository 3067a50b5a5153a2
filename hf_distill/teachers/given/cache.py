"""Put targets that are given as data into the form of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.format import SPARSE, Kept, packed
from hf_distill.cache.replay import CachedTargets, Replay, with_targets
from hf_distill.data.label_names import IGNORED
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import ROW

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.tasks import Prepared
    from hf_distill.teachers.given.token_columns import CompletionTargets

Array = NDArray[Any]


def numbered(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return the splits with a column of row numbers (`ROW`), which stays when a task tokenises and sorts them."""
    return {name: split.add_column(ROW, np.arange(len(split))) for name, split in splits.items()}


def replaying(
    prepared: Prepared, logits: Mapping[str, Array], config: PretrainedConfig, gives: Gives
) -> tuple[Prepared, tuple[Prepared, Replay]]:
    """Return the data without targets; and the data with targets in every batch, with the source that reads them.

    Args:
        prepared: Data with row numbers from `numbered`.
        logits: Split -> targets by row number, float32 `(rows, classes)`.
        config: Configuration in place of the teacher's.
        gives: What the columns give to objectives.
    """
    whole = np.concatenate([logits["train"], logits["eval"]])
    rows = {"train": np.array(prepared.train[ROW]), "eval": np.array(prepared.eval[ROW]) + len(logits["train"])}
    plain = _plain(prepared)
    return plain, with_rows(plain, whole, rows, config, gives)


def with_rows(
    prepared: Prepared, logits: Array, rows: Mapping[str, Array], config: PretrainedConfig, gives: Gives
) -> tuple[Prepared, Replay]:
    """Return the data with targets in every batch, and the source that reads them.

    Args:
        prepared: Data without targets.
        logits: Targets, float32 `(rows, classes)`.
        rows: Split -> row of `logits` for every example.
        config: Configuration of the teacher, or in its place.
        gives: What the targets give to objectives.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    offsets = np.arange(len(logits) + 1, dtype=np.int64) * logits.shape[1]
    column = pa.LargeListArray.from_arrays(offsets, logits.reshape(-1)).cast(pa.list_(pa.float32()))
    kept = Kept(outputs=("logits",))
    targets = CachedTargets(Dataset(pa.table({"logits": column})), kept, prepared.layout)
    replay = Replay(config, kept, fingerprint(logits.shape, blake2b(logits.tobytes()).hexdigest()), gives)
    return with_targets(prepared, targets, rows), replay


def _plain(prepared: Prepared) -> Prepared:
    return replace(prepared, train=prepared.train.remove_columns(ROW), eval=prepared.eval.remove_columns(ROW))


def replaying_tokens(
    prepared: Prepared,
    given: Mapping[str, Sequence[CompletionTargets]],
    config: PretrainedConfig,
    classes: int,
    gives: Gives,
) -> tuple[Prepared, tuple[Prepared, Replay]]:
    """Return what `replaying` returns, for the most likely tokens at every learned position of a completion.

    Args:
        prepared: Data with row numbers from `numbered`.
        given: Split -> targets by row number.
        config: Configuration in place of the teacher's.
        classes: Number of columns of the head that are tokens.
        gives: What the columns give to objectives, as far as it was known before they were read.
    """
    import pyarrow as pa

    top = min(row.top.shape[1] for rows in given.values() for row in rows)
    kept = Kept(top=top, classes=classes)
    splits = {"train": prepared.train, "eval": prepared.eval}
    learned = {name: list(_learned(split, given[name])) for name, split in splits.items()}
    cells = [_bytes(row, part, kept) for rows in learned.values() for row, part in rows]
    columns = {name: pa.array(some, pa.binary()) for name, some in zip(SPARSE, zip(*cells, strict=True), strict=True)}
    content = blake2b()
    for row in cells:
        for one in row:
            content.update(len(one).to_bytes(8, "little") + one)
    replay = Replay(
        config, kept, fingerprint(top, classes, content.hexdigest()), replace(gives, top=top if top < classes else None)
    )
    own = [row.own[part] for row, part in learned["eval"]]
    replay.label_losses = np.array([[-values.sum(), len(values)] for values in own])
    first = len(prepared.train)
    rows = {"train": np.arange(first), "eval": np.arange(first, first + len(prepared.eval))}
    plain = _plain(prepared)
    from datasets import Dataset

    targets = CachedTargets(Dataset(pa.table(columns)), kept, prepared.layout)
    return plain, (with_targets(plain, targets, rows), replay)


def _learned(split: Dataset, given: Sequence[CompletionTargets]) -> Iterator[tuple[CompletionTargets, slice]]:
    """Yield, for each example, its targets and the slice of its positions that have a label."""
    for number, labels in zip(split[ROW], split["labels"], strict=True):
        row = given[number]
        found = [label for label in labels if label != IGNORED]
        part = slice(row.first, row.first + len(found))  # fewer than all if the text is truncated
        assert found == row.tokens[part]
        yield row, part


def _bytes(row: CompletionTargets, part: slice, kept: Kept) -> tuple[bytes, bytes, bytes]:
    """Return the bytes of a cache row, in the order of `SPARSE`."""
    log_probabilities = row.log_probabilities[part, : kept.top]
    remaining = np.full(len(log_probabilities), -np.inf)
    if kept.top < kept.classes:
        with np.errstate(divide="ignore"):
            remaining = np.log(np.maximum(1 - np.exp(log_probabilities).sum(-1), 0))
    numbers = packed(row.top[part, : kept.top], kept.index_bytes)
    values = [one.astype(kept.precision).tobytes() for one in (log_probabilities, remaining)]
    return numbers.tobytes(), values[0], values[1]
