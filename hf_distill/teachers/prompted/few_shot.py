"""Choose the solved examples of a prompt among the labelled train rows, and the class prior of these labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_distill.tasks import Prepared


def classes_of_rows(prepared: Prepared, names: Sequence[str], *, several: bool) -> NDArray[np.int64]:
    """Return the classes of each train row in the order of the file; -1 where the label is not known.

    Args:
        prepared: The data, with row numbers.
        names: Names of the classes in the order of the result.
        several: Whether a row can have several classes.

    Returns:
        Index of the class, `(rows,)`; with several, 1 or 0 for each class, `(rows, classes)`.
    """
    from hf_distill.models.target_model import ROW

    width = (len(names),) if several else ()
    found = np.full((len(prepared.train), *width), -1, dtype=np.int64)
    if not prepared.labelled:
        return found
    rows = np.asarray(prepared.train[ROW][:])
    values = prepared.train["labels"][:]
    students = list(prepared.label_names or names)
    if several:
        order = [students.index(name) for name in names]
        known = np.nan_to_num(np.asarray(values, dtype=np.float64)[:, order], nan=-1)
        found[rows] = known.round().astype(np.int64)
        return found
    of = {number: names.index(name) for number, name in enumerate(students)}
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim == 2:  # distributions over the classes: the likeliest
        numbers = np.where(np.isnan(numbers).any(-1), -1, numbers.argmax(-1))
    found[rows] = [of.get(int(number), -1) for number in numbers]
    return found


def draw(classes: NDArray[np.int64], count: int, names: Sequence[str], seed: int) -> list[int]:
    """Return the row numbers of examples, as many of each class as of any other (one more or less), in random order.

    Args:
        classes: Index of the class of each row; below 0 where it is not known.
        count: How many.
        names: Names of the classes.
        seed: Decides which; a class's rows do not depend on the rows of other classes.

    Raises:
        UserError: There are too few rows with a label.
    """
    chance = np.random.default_rng(seed)
    shuffled = [chance.permutation(np.flatnonzero(classes == at)).tolist() for at in range(len(names))]
    taken = [count // len(names) + (at < count % len(names)) for at in range(len(names))]
    for name, rows, wanted in zip(names, shuffled, taken, strict=True):
        if len(rows) < wanted:
            raise UserError(
                f"{count} examples are {wanted} of '{name}', and {len(rows) or 'none'} of the train rows {_have(rows)} "
                "this label. Wanted fewer examples, or labels in the train split.",
                key="examples",
            )
    chosen = [row for rows, wanted in zip(shuffled, taken, strict=True) for row in rows[:wanted]]
    return [chosen[at] for at in chance.permutation(len(chosen))]


def _have(rows: Sequence[Any]) -> str:
    return "has" if len(rows) < 2 else "have"


def shares(classes: NDArray[np.int64], names: Sequence[str]) -> list[float]:
    """Return the share of each class among the rows whose label is known.

    Raises:
        UserError: A class has no row.
    """
    counts = [int((classes == at).sum()) for at in range(len(names))]
    if lacking := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise UserError(
            f"no train row is labelled '{lacking[0]}', so the labels do not say how frequent it is. Wanted a label of "
            "every class, or prior: uniform.",
            key="prior",
        )
    return [count / sum(counts) for count in counts]
