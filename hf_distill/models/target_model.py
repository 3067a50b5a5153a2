"""Names of the columns that hold targets."""

from __future__ import annotations

# Of columns of a batch and of a data set: apart from those under `two_tokenizers.PREFIX`, which are a teacher's inputs.
PREFIX = "cached_"
# Column of a split: which row of the cache belongs to an example.
ROW = f"{PREFIX}row"
