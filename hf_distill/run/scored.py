"""A student's predictions on the eval split, held to compare it with the student of another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.data.example_columns import GROUP
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.models.target_model import ROW

if TYPE_CHECKING:
    from hf_distill.tasks import Prepared
    from hf_distill.tasks.evaluator import Predictions


@dataclass(frozen=True)
class Scored:
    """A student's predictions on the eval split, to compare it row by row with another one.

    Attributes:
        prepared: The data.
        predictions: The predictions.
    """

    prepared: Prepared
    predictions: Predictions

    def error_of_difference(self, other: Scored | None) -> float | None:
        """Return the standard error of the difference in the headline metric, by a paired bootstrap over the rows.

        None if it cannot be computed, as without another student, or if its rows are not the same in the same order.
        """
        if other is None or self._rows() != other._rows():
            return None
        return self.prepared.evaluator.gain_error(self.predictions, other.predictions)

    def _rows(self) -> str:
        split = self.prepared.eval
        return dataset_fingerprint(split.remove_columns([one for one in (ROW, GROUP) if one in split.column_names]))
