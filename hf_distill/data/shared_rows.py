"""Find rows of the eval split that are also in the train split, by comparing the models' inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_distill.data.example_columns import EXAMPLE_COLUMNS
from hf_distill.data.sources import CUT

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Roles that are predicted, not read: the same text with another label counts as the same row.
_PREDICTED = ("label", "tags", "answers")
# Rows of the train split to look at; of a larger one, the first.
_MOST = 2_000_000
_BATCH = 10_000


def warn_of_shared_rows(splits: Mapping[str, Dataset], wanted: Mapping[str, str]) -> None:
    """Warn if rows of the eval split are also in train: the same file, overlapping slices, copies.

    Args:
        splits: `train` and `eval`, columns named by role.
        wanted: Their names in the recipe.
    """
    shared, rows = shared_rows(splits["train"], splits["eval"]), len(splits["eval"])
    if shared:
        logger.warning(
            "%s of %s rows of the eval split ('%s') are also in train ('%s'): the reported scores will be too high, "
            "since the student has seen these rows. %s",
            f"{shared:,}",
            f"{rows:,}",
            wanted["eval"],
            wanted["train"],
            f"Hold out a part of train: {CUT}" if shared > rows // 2 else "Remove them from one of the two.",
        )


def warn_of_shared_transfer(splits: Mapping[str, Dataset]) -> None:
    """Warn if transfer rows are also eval rows, or rows of train: files that overlap, or copies.

    Args:
        splits: `train`, `eval` (unless it is not known yet) and `transfer`, columns named by role.
    """
    transfer, rows = splits["transfer"], len(splits.get("eval", ()))
    if rows and (shared := shared_rows(transfer, splits["eval"])):
        logger.warning(
            "%s of %s rows of the eval split are also in data.transfer: the student learns the teacher's targets for "
            "them, so its scores say less about new texts. Remove them from data.transfer.",
            *(f"{shared:,}", f"{rows:,}"),
        )
    if shared := shared_rows(splits["train"], transfer):
        logger.warning(
            "%s of %s transfer rows are also in train: the student sees these texts twice in an epoch, once with and "
            "once without their label. Remove them from data.transfer, if they should not count twice.",
            *(f"{shared:,}", f"{len(transfer):,}"),
        )


def shared_rows(train: Dataset, evaluated: Dataset) -> int:
    """Return how many rows of the eval split have the same inputs as a row of the train split.

    Rows are compared by a 64-bit hash: 200,000 texts take less than a second.
    """
    roles = [role for role in evaluated.column_names if role not in (*_PREDICTED, *EXAMPLE_COLUMNS)]
    if not roles or not set(roles) <= set(train.column_names):
        return 0  # for example single texts in train and pairs of texts in eval
    wanted = list(_hashes(evaluated, roles))
    of_train = set(_hashes(train.select(range(min(len(train), _MOST))), roles))
    return sum(one in of_train for one in wanted)


def _hashes(split: Dataset, roles: Sequence[str]) -> Iterator[int]:
    for batch in split.select_columns(list(roles)).with_format("arrow").iter(batch_size=_BATCH):
        columns = [batch[role].to_pylist() for role in roles]
        for values in zip(*columns, strict=True):
            # Lists and mappings (words, messages) cannot be hashed directly.
            yield hash(tuple(value if isinstance(value, str | None) else repr(value) for value in values))
