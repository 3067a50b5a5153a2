"""Rows of the eval split that are in the train split as well, told by what the models read of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_distill.data.sources import CUT

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Roles of what is to be predicted: the same text with another label is the same text.
_PREDICTED = ("label", "tags", "answers")
# Of a train split with more rows the first ones are looked at.
_MOST = 2_000_000
_BATCH = 10_000


def warn_of_shared_rows(splits: Mapping[str, Dataset], wanted: Mapping[str, str]) -> None:
    """Warn where rows of the eval split are in train as well: the same file, slices that overlap, copies.

    Args:
        splits: `train` and `eval`, columns named by role.
        wanted: How the recipe calls them.
    """
    shared, rows = shared_rows(splits["train"], splits["eval"]), len(splits["eval"])
    if shared:
        logger.warning(
            "%s of %s rows of the eval split ('%s') are also in train ('%s'): the report will say what the student "
            "remembers, not what it learned. %s",
            f"{shared:,}",
            f"{rows:,}",
            wanted["eval"],
            wanted["train"],
            f"Cut them apart: {CUT}" if shared > rows // 2 else "Leave them out of one of the two.",
        )


def shared_rows(train: Dataset, judged: Dataset) -> int:
    """Return how many rows of the eval split have the same inputs as a row of the train split.

    Rows are compared by a 64-bit hash: 200,000 texts take less than a second.
    """
    roles = [role for role in judged.column_names if role not in _PREDICTED]
    if not roles or not set(roles) <= set(train.column_names):
        return 0  # single texts to learn from, pairs to judge by
    wanted = list(_hashes(judged, roles))
    of_train = set(_hashes(train.select(range(min(len(train), _MOST))), roles))
    return sum(one in of_train for one in wanted)


def _hashes(split: Dataset, roles: Sequence[str]) -> Iterator[int]:
    for batch in split.select_columns(list(roles)).with_format("arrow").iter(batch_size=_BATCH):
        columns = [batch[role].to_pylist() for role in roles]
        for values in zip(*columns, strict=True):
            # Lists and mappings (words, messages) have no hash of their own.
            yield hash(tuple(value if isinstance(value, str | None) else repr(value) for value in values))
