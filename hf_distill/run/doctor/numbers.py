"""Are numbers of the data finite, in range, and not all the same?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.sampling import flat

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.run.doctor.opened import Opened

NAME = "numbers"


def numbers(opened: Opened) -> Iterator[Finding]:
    """Yield the range of numbers among labels and margins of train and eval, and which of them are not finite."""
    for name, split in (("train", opened.prepared.train), ("eval", opened.prepared.eval)):
        for role in [one for one in ("labels", "margin", "example_weight") if one in split.column_names]:
            values = flat(split, role)
            if np.issubdtype(values.dtype, np.floating):
                yield from _of(name, split, role, values)


def _of(name: str, split: Dataset, role: str, values: NDArray[np.float64]) -> Iterator[Finding]:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0]) // (len(values) // len(split))
        yield Finding(
            NAME,
            "mistake",
            f"{len(infinite):,} {role} of {name} are infinite, the first in row {row} (counted from 0)",
            "Drop or repair these rows: the loss would be infinite.",
        )
    known = values[np.isfinite(values)]
    if not len(known):
        return
    if known.min() == known.max() and role == "labels":
        yield Finding(
            NAME,
            "warning",
            f"all {len(known):,} labels of {name} are {known[0]:g}",
            "There is nothing to learn from them, and no correlation with them.",
        )
        return
    missing = int(np.isnan(values).sum())
    none = f", {missing:,} missing" if missing else ""
    yield Finding(
        NAME, "ok", f"{role} of {name} from {known.min():g} to {known.max():g}, mean {known.mean():.3g}{none}"
    )
