"""Targets that are given as data, put where a cache has a teacher's answers."""

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
    from hf_distill.teachers.token_columns import Positions

Array = NDArray[Any]


def numbered(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return the splits with the number of every row, which a task keeps while it reads and sorts them."""
    return {name: split.add_column(ROW, np.arange(len(split))) for name, split in splits.items()}


def replaying(
    prepared: Prepared, logits: Mapping[str, Array], config: PretrainedConfig, gives: Gives
) -> tuple[Prepared, tuple[Prepared, Replay]]:
    """Return the data as it is without a teacher; and with the targets in every batch, and a teacher that gives them.

    Args:
        prepared: Data whose rows are `numbered`.
        logits: Split -> targets by number of the row, float32 `(rows, classes)`.
        config: What stands for the teacher's.
        gives: What the columns hold.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    whole = np.concatenate([logits["train"], logits["eval"]])
    rows = {"train": np.array(prepared.train[ROW]), "eval": np.array(prepared.eval[ROW]) + len(logits["train"])}
    offsets = np.arange(len(whole) + 1, dtype=np.int64) * whole.shape[1]
    column = pa.LargeListArray.from_arrays(offsets, whole.reshape(-1)).cast(pa.list_(pa.float32()))
    kept = Kept(outputs=("logits",))
    targets = CachedTargets(Dataset(pa.table({"logits": column})), kept, prepared.layout)
    plain = _plain(prepared)
    replay = Replay(config, kept, fingerprint(whole.shape, blake2b(whole.tobytes()).hexdigest()), gives)
    return plain, (with_targets(plain, targets, rows), replay)


def _plain(prepared: Prepared) -> Prepared:
    return replace(prepared, train=prepared.train.remove_columns(ROW), eval=prepared.eval.remove_columns(ROW))


def replaying_tokens(
    prepared: Prepared, given: Mapping[str, Sequence[Positions]], config: PretrainedConfig, classes: int, gives: Gives
) -> tuple[Prepared, tuple[Prepared, Replay]]:
    """Return what `replaying` does, of the likeliest tokens at every position of a completion that is learned.

    Args:
        prepared: Data whose rows are `numbered`.
        given: Split -> what is given, by number of the row.
        config: What stands for the teacher's.
        classes: How many columns of the head are tokens.
        gives: What the columns hold, as far as it was known before they were read.
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


def _learned(split: Dataset, given: Sequence[Positions]) -> Iterator[tuple[Positions, slice]]:
    """Yield, example by example, what is given for it, and for which of its positions there is a label."""
    for number, labels in zip(split[ROW], split["labels"], strict=True):
        row = given[number]
        found = [label for label in labels if label != IGNORED]
        part = slice(row.first, row.first + len(found))  # less than all where the text is cut
        assert found == row.tokens[part]
        yield row, part


def _bytes(row: Positions, part: slice, kept: Kept) -> tuple[bytes, bytes, bytes]:
    """Return a row of a cache, in the order of `SPARSE`."""
    log_probabilities = row.log_probabilities[part, : kept.top]
    remaining = np.full(len(log_probabilities), -np.inf)
    if kept.top < kept.classes:
        with np.errstate(divide="ignore"):
            remaining = np.log(np.maximum(1 - np.exp(log_probabilities).sum(-1), 0))
    numbers = packed(row.top[part, : kept.top], kept.index_bytes)
    values = [one.astype(kept.precision).tobytes() for one in (log_probabilities, remaining)]
    return numbers.tobytes(), values[0], values[1]
