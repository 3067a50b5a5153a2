"""The train rows that students learn from, where `data.pseudo_labels` leaves some out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.label_names import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.run.fit import Fitter
    from hf_distill.tasks import Prepared

    Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SureRows:
    """The rows from which students learn.

    Attributes:
        rows: Those of the train split that stay, in ascending order.
        asked: The rows of the train split without a label.
        sure: For these, the class, -100 for not sure; or the labels `(asked, labels)`, NaN where not sure.
        soft: Whether the student learns only the teacher's distribution of them.
        threshold: How sure the teacher had to be.
    """

    rows: Array
    asked: Array
    sure: Array
    soft: bool
    threshold: float

    def of(self, fitter: Fitter) -> Fitter:
        """Return a fitter that trains on these rows."""
        prepared = fitter.prepared
        if not self.soft:
            prepared = replace(prepared, train=self._with_labels(prepared), labelled=True)
        return replace(fitter, prepared=replace(prepared, train=prepared.train.select(self.rows)))

    def _with_labels(self, prepared: Prepared) -> Dataset:
        """Return the train split with the teacher's classes as labels of the rows that have none."""
        train, known = prepared.train, "labels" in prepared.train.column_names
        labels: list[Any] = train["labels"][:] if known else [None] * len(train)
        # Labels of one class may be distributions over the classes.
        spread = self.sure.ndim == 1 and any(isinstance(label, list) for label in labels)
        classes = np.eye(int(prepared.head.settings["num_labels"]))
        for row, own in zip(self.asked[is_sure(self.sure)], self.sure[is_sure(self.sure)], strict=True):
            labels[row] = classes[own].tolist() if spread else own.tolist()
        if not known:
            nothing: Any = IGNORED if self.sure.ndim == 1 else [math.nan] * self.sure.shape[1]
            return train.add_column("labels", [nothing if label is None else label for label in labels])
        return train.remove_columns("labels").add_column("labels", labels, feature=train.features["labels"])

    @property
    def count(self) -> int:
        """Number of rows without a label that stay."""
        return int(is_sure(self.sure).sum())

    def in_words(self) -> str:
        """Return the line that a run prints."""
        then = "" if self.soft else ", whose labels are now its classes"
        return (
            f"pseudo-labels: the teacher is sure (at least {self.threshold:g}) of {self.count:,} of "
            f"{len(self.asked):,} train rows without a label{then}; the student does not learn from the others"
        )

    def facts(self, names: tuple[str, ...] | None) -> dict[str, Any]:
        """Return what the report says.

        Args:
            names: Names of the classes.
        """
        several = self.sure.ndim == 2
        width = self.sure.shape[1] if several else int(max(self.sure.max(initial=-1) + 1, len(names or ())))
        found = (self.sure == 1).sum(0) if several else np.bincount(self.sure[self.sure >= 0], minlength=width)
        called = names or tuple(map(str, range(width)))
        return {
            "threshold": self.threshold,
            "soft": self.soft,
            "rows": f"{self.count:,} of {len(self.asked):,}",
            "classes": {name: int(number) for name, number in zip(called, found, strict=True)},
        }


def is_sure(sure: Array) -> Array:
    """Return which rows the teacher is sure of, bool `(asked,)`: of the class, or of one of several labels."""
    return np.asarray(sure >= 0 if sure.ndim == 1 else ~np.isnan(sure).all(-1))
