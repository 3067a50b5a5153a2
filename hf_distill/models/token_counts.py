"""Count how often each token occurs in tokenised data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.two_tokenizers import PREFIX, is_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenCounts:
    """How often each token occurs.

    Attributes:
        train: In the train split with the rows of `data.transfer`, without private rows, by id, `(tokens,)`.
        eval: In the eval split.
    """

    train: NDArray[np.int64]
    eval: NDArray[np.int64]


def count_tokens(split: Dataset, tokens: int) -> NDArray[np.int64]:
    """Return how often each token occurs in a tokenised split, in the columns that the student reads.

    Args:
        split: The split.
        tokens: Number of tokens, so one more than the highest id.
    """
    from hf_distill.data import column

    total = np.zeros(tokens, dtype=np.int64)
    for name in split.column_names:
        if is_ids(name) and not name.startswith(PREFIX):
            values: Any = column(split, name)
            while hasattr(values.type, "value_type"):  # lists, or lists of lists where an example is several texts
                values = values.combine_chunks().flatten() if hasattr(values, "combine_chunks") else values.flatten()
            total += np.bincount(values.to_numpy(zero_copy_only=False), minlength=tokens)
    return total
