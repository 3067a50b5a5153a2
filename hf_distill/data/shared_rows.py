"""Find rows of the eval split that are also in the train split, by comparing the models' inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_distill.data.example_columns import EXAMPLE_COLUMNS
from hf_distill.data.sources import CUT

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Roles that are predicted, not read: the same text with another label counts as the same row.
_PREDICTED = ("label", "tags", "answers")
# Rows of the train split to look at; of a larger one, the first.
MOST_COMPARED = 2_000_000
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
    """Return how many rows of the eval split have the same inputs as a row of the train split."""
    return len(same_rows(train, evaluated))


def same_rows(train: Dataset, evaluated: Dataset, spell: Callable[[str], str] | None = None) -> list[tuple[int, int]]:
    """Return the rows of the eval split with the same inputs as a row of the train split: its number, and that one's.

    Rows are compared by a 64-bit hash: 200,000 texts take less than a second.

    Args:
        train: The train split, columns named by role.
        evaluated: The eval split, columns named by role.
        spell: How a text is compared; default: as it is.
    """
    roles = inputs_of(evaluated)
    if not roles or not set(roles) <= set(train.column_names):
        return []  # for example single texts in train and pairs of texts in eval
    wanted = set(theirs := list(row_hashes(evaluated, roles, spell)))
    found: dict[int, int] = {}
    for row, one in enumerate(row_hashes(train.select(range(min(len(train), MOST_COMPARED))), roles, spell)):
        if one in wanted:
            found.setdefault(one, row)
    return [(row, found[one]) for row, one in enumerate(theirs) if one in found]


def inputs_of(split: Dataset) -> list[str]:
    """Return the columns of a split that models read, by role."""
    return [role for role in split.column_names if role not in (*_PREDICTED, *EXAMPLE_COLUMNS)]


def row_hashes(split: Dataset, roles: Sequence[str], spell: Callable[[str], str] | None = None) -> Iterator[int]:
    """Yield a hash of each row's values in some columns; arguments as of `same_rows`."""
    for batch in split.select_columns(list(roles)).with_format("arrow").iter(batch_size=_BATCH):
        columns = [batch[role].to_pylist() for role in roles]
        for values in zip(*columns, strict=True):
            # Lists and mappings (words, messages) cannot be hashed directly.
            texts = (value if isinstance(value, str | None) else repr(value) for value in values)
            yield hash(tuple(text if spell is None or text is None else spell(text) for text in texts))
