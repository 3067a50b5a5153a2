"""Labels as a head takes them: which column of it a label is, and how the head is configured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_distill.data.label_names import IGNORED
from hf_distill.tasks.problem_type import Problem

Kind = Literal["classes", "binary", "values"]
Names = tuple[str, ...]
_KINDS: dict[Problem, Kind] = {"single_label": "classes", "multi_label": "binary", "regression": "values"}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How a label column maps to the student's head.

    Attributes:
        problem: What the labels are.
        width: Columns of the head.
        names: Class names in the order of the head; None where neither data nor models name them.
        teacher_columns: Column of the teacher's head for each of the student's, where the orders differ.
        index: Label as the data has it -> column of the head; of multi-hot lists, position -> column.
        missing: What stands for "no label".
        multi_hot: Whether lists are one 0 or 1 (or probability) for each class, rather than the classes that hold.
        soft: Whether labels are probabilities: a distribution over classes, or one between no and yes.
        labelled: Splits with at least one label.
    """

    problem: Problem
    width: int
    names: Names | None = None
    teacher_columns: tuple[int, ...] | None = None
    index: Mapping[Any, int]
    missing: tuple[Any, ...]
    multi_hot: bool = False
    soft: bool = False
    labelled: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """Row kind of the problem, as in `rows.ExampleRows`."""
        return _KINDS[self.problem]

    def encode(self, values: Sequence[Any]) -> list[Any]:
        """Return labels as the loss wants them: indices (-100: none), floats (NaN: none), or rows of floats.

        Probabilities are divided by their sum, which rounding may have left beside 1.
        """
        if self.problem == "single_label" and not self.soft:
            return [IGNORED if value in self.missing else self.index[value] for value in values]
        rows = [[math.nan] * self.width if value in self.missing else self._row(value) for value in values]
        return [row[0] for row in rows] if self.problem == "regression" and self.width == 1 else rows

    def settings(self) -> dict[str, Any]:
        """Return the configuration of a head for these labels."""
        settings: dict[str, Any] = {"num_labels": self.width}
        if self.names is not None:
            settings["id2label"] = dict(enumerate(self.names))
            settings["label2id"] = {name: index for index, name in enumerate(self.names)}
        return settings

    def _row(self, value: Any) -> list[float]:
        if self.problem == "regression":
            return [float(item) for item in (value if isinstance(value, list) else [value])]
        if not isinstance(value, list):  # yes or no, of one output
            return [float(value)]
        if self.soft:
            return self._shares(value)
        holding = (position for position, item in enumerate(value) if item) if self.multi_hot else value
        row = [0.0] * self.width
        for item in holding:
            if item not in self.missing:
                row[self.index[item]] = 1.0
        return row

    def _shares(self, value: list[float]) -> list[float]:
        row, whole = [0.0] * self.width, sum(value)
        for place, share in enumerate(value):
            row[self.index[place]] = share / whole
        return row
