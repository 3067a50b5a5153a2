"""Weights of classes in the label loss: as many numbers as the head has columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hf_distill.data.label_names import shorten
from hf_distill.errors import UserError, did_you_mean

NO_CLASSES = (
    "class weights are for one class of several, and here are numbers, several labels a row, tokens of a vocabulary, "
    "or no labels. Leave it out."
)
ClassWeights = Literal["balanced"] | list[float] | dict[str, float]


def resolve(weights: ClassWeights, names: Sequence[str], counts: Any, key: str = "class_weights") -> list[float]:
    """Return one weight for each class.

    Args:
        weights: `"balanced"`: `n / (k * n_c)` of the `n` labels of the train split, `n_c` of them of class `c`, and `k`
            classes that occur, as in scikit-learn; a class that does not occur gets 1. A list in the order of the
            head, or name -> weight, 1 for those left out.
        names: Of the classes, in the order of the head.
        counts: Labels of each class in the train split, None without; only for `"balanced"`.
        key: Of the setting.

    Raises:
        UserError: They are not one finite number of 0 or more for each class, or a name is unknown.

    >>> resolve("balanced", ["no", "yes"], [3, 1])
    [0.6666666666666666, 2.0]
    >>> resolve({"yes": 3.0}, ["no", "yes"], None)
    [1.0, 3.0]
    """
    if weights == "balanced":
        counts = [] if counts is None else [float(count) for count in counts]
        if not sum(counts):
            raise UserError("there are no labels in the train split to balance. Give the weights as a list.", key=key)
        present = sum(count > 0 for count in counts)
        return [float(sum(counts) / (present * count)) if count else 1.0 for count in counts]
    if isinstance(weights, Mapping):
        at = {name: place for place, name in enumerate(names)}
        unknown = next((name for name in weights if name not in at), None)
        if unknown is not None:
            hint = did_you_mean(unknown, names)
            raise UserError(f"there is no class '{unknown}'.{hint or f' The classes are {_shown(names)}.'}", key=key)
        found = [float(weights.get(name, 1.0)) for name in names]
    else:
        found = [float(weight) for weight in weights]
    if len(found) != len(names):
        raise UserError(f"{len(found)} weights for {len(names)} classes {_shown(names)}.", key=key)
    if any(not math.isfinite(weight) or weight < 0 for weight in found) or not any(found):
        raise UserError("wanted finite numbers of 0 or more, not all of them 0.", key=key)
    return found


def _shown(names: Sequence[Any]) -> str:
    return shorten(list(map(str, names)))
