"""Rows without a label of which the teacher is sure: which they are, and which classes it names."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hf_distill.component import component
from hf_distill.data.label_names import IGNORED

Array = NDArray[Any]


@component
class PseudoLabels:
    """Leave rows without a label out of the student's training if the teacher is unsure of them.

    With several labels a row, the teacher is sure of a label if its probability is at least `threshold`, or at most 1
    minus it; a row stays if it is sure of one. The baseline, and a teacher that is fine-tuned, never learn from them.

    Attributes:
        threshold: A row stays if the teacher's largest probability is at least this: above that of a guess (1 divided
            by the number of classes; 0.5 with several labels a row) and below 1.
        soft: Whether the student only learns the teacher's distribution of the rows that stay. With `false` the
            teacher's class also becomes their label, for the objectives that learn from labels.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)]
    soft: bool = True


def sure_class(probabilities: Array, threshold: float) -> Array:
    """Return the most likely class of each row, -100 where its probability is below the threshold, `(rows,)`.

    Args:
        probabilities: `(rows, classes)`.
        threshold: The least probability.

    >>> sure_class(np.array([[0.05, 0.95], [0.6, 0.4]]), 0.9).tolist()
    [1, -100]
    """
    return np.where(probabilities.max(-1) >= threshold, probabilities.argmax(-1), IGNORED)


def sure_labels(probabilities: Array, threshold: float) -> Array:
    """Return 1 for each label that applies, 0 for each that does not, and NaN where that is not sure, `(rows, labels)`.

    Args:
        probabilities: Of each label, `(rows, labels)`.
        threshold: The least probability that a label applies, or does not.

    >>> sure_labels(np.array([[0.95, 0.05, 0.5]]), 0.9).tolist()
    [[1.0, 0.0, nan]]
    """
    sure = np.maximum(probabilities, 1 - probabilities) >= threshold
    return np.where(sure, (probabilities > 0.5).astype(float), np.nan)
