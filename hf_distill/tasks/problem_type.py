"""Find what labels are: one class for each example, several classes, or numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.data import column as arrow_column
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.tasks.label_column import LabelColumn
from hf_distill.tasks.one_output import meaning
from hf_distill.tasks.soft_labels import is_one_hot, is_soft, refuse_soft

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Problem = Literal["single_label", "multi_label", "regression"]
# Names of the problems in a model's configuration (`problem_type`).
PROBLEM_TYPES: dict[Problem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# Largest float32. Losses are computed in float32, in which a larger label would be infinite.
_LARGEST = 3.4028234663852886e38
_IN_WORDS = {"single_label": "one class", "multi_label": "several classes", "regression": "numbers"}


def find_problem(column: LabelColumn, head: PretrainedConfig | None) -> Problem:
    """Return the problem, read from the labels, and from a model's head if the labels are ambiguous.

    Args:
        column: The labels.
        head: Configuration of a model with a trained head.

    Raises:
        UserError: The labels are ambiguous and there is no head, or the head was trained for another problem.
    """
    trained = _trained_for(head, column)
    if not column.labelled:
        return trained or "single_label"
    found = _looks_like(column, trained, head)
    if trained == "multi_label" and head is not None and head.num_labels == 1 and not column.lists:
        return trained  # yes or no, written as 1 or 0
    if trained and found != trained:
        raise UserError(
            f"the labels are {_IN_WORDS[found]} for each text, but the model's head was trained to predict "
            f"{_IN_WORDS[trained]}. Name another model or, if this is intended, set "
            f"task: {{name: text-classification, problem: {found}}}.",
            key="columns.label",
        )
    return found


def _trained_for(head: PretrainedConfig | None, column: LabelColumn) -> Problem | None:
    """Return the problem that a head was trained for; None if its configuration does not say."""
    if head is None:
        return None
    said: dict[str | None, Problem] = {name: problem for problem, name in PROBLEM_TYPES.items()}
    return said.get(head.problem_type, meaning(head, column) if head.num_labels == 1 else None)


def _looks_like(column: LabelColumn, trained: Problem | None, head: PretrainedConfig | None) -> Problem:
    scale = trained == "regression"
    if column.lists:
        if scale:
            return "regression"
        one_class = is_soft(column) or (trained == "single_label" and is_one_hot(column))
        return "single_label" if one_class else "multi_label"
    # Numbers written as text come from a column with an "n/a"; `value_count` then refuses the "n/a".
    if column.holds(int) or any(map(_spells_number, column.values)):
        return "regression" if scale else "single_label"
    if not column.holds(int, float):
        return "single_label"
    if any(not value.is_integer() for value in column.values if isinstance(value, float)):
        return "regression"
    if head is None:
        raise UserError(
            "the labels are whole numbers written as floats (1.0): classes in a column with missing values, or "
            "regression. Set task: {name: text-classification, problem: single_label}, or problem: regression.",
            key="columns.label",
        )
    return trained or "single_label"


def value_count(column: LabelColumn, *, spelled: bool = False) -> int | None:
    """Return the number of values of each example in regression; None without labels.

    Args:
        column: The labels.
        spelled: Read numbers from text. True if the recipe names the labels that are not numbers.

    Raises:
        UserError: A label is not a finite number, or lists have different lengths.
    """
    if spelled and column.values and all(_spells_number(value) for value in column.values):
        return 1
    if any(not _is_number(value) for value in column.values):
        # One "n/a" makes the whole column text. Then the message shows the "n/a", not the first label.
        spelled = all(_is_number(value) or _spells_number(value) for value in column.values)
        wanted = (
            "finite numbers up to 3.4e38 (float32), not text (the problem is regression); leave a label empty where "
            "there is none"
        )
        raise column.refuse(lambda value: not (_is_number(value) or (not spelled and _spells_number(value))), wanted)
    lengths = column.lengths if column.lists else frozenset({1} if column.values else ())
    most = max(lengths, default=1)
    if lengths - {most} or most == 0:
        wanted = f"{max(most, 1)} values, as in other rows"
        raise column.refuse(lambda row: len(row) != max(most, 1), wanted, whole=True)
    return most if lengths else None


def _is_number(value: Any) -> bool:
    # Compared, not converted: an integer may be too large for a float. NaN fails every comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _spells_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and _is_number(float(value))
    except ValueError:
        return False


def check_classes(column: LabelColumn, problem: Problem) -> None:
    """Refuse labels that cannot be classes.

    Raises:
        UserError: A label is not a class, or is a list where one class is wanted (or the reverse).
    """
    if column.labelled and column.lists != (problem == "multi_label"):
        wanted = "a list" if problem == "multi_label" else "one class"
        raise column.refuse(lambda _: True, f"{wanted} (the problem is {problem})", whole=True)
    # `is_multi_hot` has a better message for floats in lists.
    if any(not _is_class(value) for value in column.values if not (column.lists and isinstance(value, float))):
        raise column.refuse(
            lambda value: not _is_class(value), "the name or the number of a class; leave it empty where there is none"
        )
    texts = sum(isinstance(value, str) for value in column.values)
    if 0 < texts < len(column.values):
        raise column.refuse(lambda value: isinstance(value, str), "a number, like the other labels")


def _is_class(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and value.is_integer())


def is_multi_hot(column: LabelColumn) -> bool:
    """Whether lists have one 0 or 1 for each class, rather than the classes that apply.

    They do if all lists, except empty ones, have the same length and hold only 0 and 1. Lists of a single integer are
    ambiguous and count as classes. Floats and booleans are never numbers of classes.

    Raises:
        UserError: The lists fit neither reading, so one of them is wrong.
    """
    if column.names or column.holds(str) or not column.values:
        return False
    lengths = column.lengths - {0}
    integers = column.holds(int)
    if len(lengths) == 1 and all(value in (0, 1) for value in column.values):
        return not (integers and lengths == {1})
    if integers:
        _check_repeats(column)
        return False
    if (error := refuse_soft(column)) is not None:
        raise error
    most = max(lengths)
    raise column.refuse(
        lambda row: len(row) not in (0, most) or any(item not in (0, 1) for item in row),
        f"one 0 or 1 for each of {most} classes, since the lists hold floats or booleans, or probabilities that sum to "
        f"1 in every row; for {most} numbers to "
        "predict set task: {name: text-classification, problem: regression}",
        whole=True,
    )


def _check_repeats(column: LabelColumn) -> None:
    """Refuse lists that hold a number twice: probably 0/1 entries with a wrong length, not numbers of classes."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for split in column.splits.values():
        for chunk in arrow_column(split, "label").chunks:
            pairs = pa.table({"row": pc.list_parent_indices(chunk), "item": pc.list_flatten(chunk)})
            if pairs.group_by(["row", "item"]).aggregate([]).num_rows < pairs.num_rows:
                raise column.refuse(
                    lambda row: len(set(row)) < len(row),
                    "each class once; lists of one 0 or 1 for each class must all be of the same length",
                    whole=True,
                )


Kind = Literal["classes", "binary", "values"]


Names = tuple[str, ...]


_KINDS: dict[Problem, Kind] = {"single_label": "classes", "multi_label": "binary", "regression": "values"}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How a label column maps to the student's head.

    Attributes:
        problem: Kind of the labels.
        width: Number of columns of the head.
        names: Class names in the order of the head; None if neither data nor models name them.
        teacher_columns: Column of the teacher's head for each column of the student's; None if the orders are the same.
        index: Label in the data -> column of the head; for multi-hot lists, position -> column.
        missing: Values that mean "no label".
        multi_hot: Whether lists have one 0 or 1 (or probability) for each class, rather than the classes that apply.
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
        """Kind of the rows, as in `rows.ExampleRows`."""
        return _KINDS[self.problem]

    def encode(self, values: Sequence[Any]) -> list[Any]:
        """Return labels as the loss takes them: indices (-100: no label), floats (NaN: no label), or rows of floats.

        Probabilities are divided by their sum, which may differ from 1 by rounding.
        """
        if self.problem == "single_label" and not self.soft:
            return [IGNORED if value in self.missing else self.index[value] for value in values]
        rows = [[math.nan] * self.width if value in self.missing else self._row(value) for value in values]
        return [row[0] for row in rows] if self.problem == "regression" and self.width == 1 else rows

    def in_key(self) -> str:
        """Return what `encode` depends on, for the cache: not which of the splits have labels."""
        return repr(replace(self, labelled=()))

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
        if not isinstance(value, list):  # yes/no label of a single output
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
