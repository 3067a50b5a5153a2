"""Reading a label column: what kind of problem it is, what its classes are called, and in which order they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.errors import UserError
from hf_distill.labels import IGNORED, label_names, positions, shorten

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

Problem = Literal["single_label", "multi_label", "regression"]
Kind = Literal["classes", "binary", "values"]
_KINDS: dict[Problem, Kind] = {"single_label": "classes", "multi_label": "binary", "regression": "values"}


@dataclass(frozen=True)
class Labelling:
    """How a label column maps to the student's head.

    Attributes:
        problem: What the labels are.
        width: Columns of the head.
        names: Class names in the order of the head; None where neither data nor models name them.
        teacher_columns: Column of the teacher's head for each of the student's, where the orders differ.
        index: Raw value of a label -> column of the head.
        labelled: Splits with at least one label.
    """

    problem: Problem
    width: int
    names: tuple[str, ...] | None
    teacher_columns: tuple[int, ...] | None
    index: Mapping[Any, int]
    labelled: frozenset[str]
    multi_hot: bool = False

    @property
    def kind(self) -> Kind:
        """Row kind of the problem, as in `rows.ExampleRows`."""
        return _KINDS[self.problem]

    def has_labels(self, split: str) -> bool:
        """Whether any example of the split has a label."""
        return split in self.labelled

    def encode(self, values: Sequence[Any]) -> list[Any]:
        """Return labels as the loss wants them: indices (-100: none), floats (NaN: none), or rows of floats."""
        if self.problem == "single_label":
            return [IGNORED if _missing(value) else self.index[value] for value in values]
        if self.problem == "regression":
            return [math.nan if value is None else float(value) for value in values]
        return [self._multi(value) for value in values]

    def _multi(self, value: Sequence[Any] | None) -> list[float]:
        if value is None:
            return [math.nan] * self.width
        row = [0.0] * self.width
        for position, item in enumerate(value):
            if not self.multi_hot:
                row[self.index[item]] = 1.0
            elif item:
                row[self.index[position]] = 1.0
        return row


def read_labels(
    splits: Mapping[str, Dataset],
    *,
    problem: Problem | None,
    names: list[str] | None,
    teacher: PretrainedConfig | None,
    student: PretrainedConfig | None,
) -> Labelling:
    """Work out the label space of a run.

    The order of the classes is the student's where it brings a trained head, else the teacher's, else the data's;
    the others are matched to it by name, never by number.

    Args:
        splits: Splits that have a `label` column.
        problem: From the recipe; read from the column if None.
        names: Names of integer labels, from the recipe.
        teacher: Configuration of a teacher with a trained head.
        student: Configuration of a student with a trained head.

    Raises:
        UserError: The labels do not fit the problem, the names or the models.
    """
    feature = next((split.features["label"] for split in splits.values()), None)
    # `datasets` writes a missing label of a ClassLabel column as -1 (the test splits of GLUE).
    none = -1 if hasattr(feature, "str2int") else None
    columns = {
        name: [None if value is not None and value == none else value for value in split["label"]]
        for name, split in splits.items()
    }
    problem = problem or _problem(feature, columns, teacher)
    labelled = frozenset(name for name, values in columns.items() if any(not _missing(value) for value in values))
    if problem == "regression":
        width = _regression_width(columns, teacher)
        return Labelling(problem, width, None, None, {}, labelled)
    multi_hot = problem == "multi_label" and _is_multi_hot(columns)
    declared = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    known = tuple(names or declared or ())
    heads = [config.num_labels for config in (student, teacher) if config is not None]
    raw = _raw_classes(columns, problem, multi_hot, known, heads)
    matched = _match(problem, raw, teacher, student, labelled, multi_hot)
    return matched if none is None else replace(matched, index={none: IGNORED, **matched.index})


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value == IGNORED)


def _problem(feature: Any, columns: Mapping[str, list[Any]], teacher: PretrainedConfig | None) -> Problem:
    """Read the problem from the label column, or from the teacher's head where there are no labels."""
    if feature is None:
        if teacher is None:
            return "single_label"
        declared = {"multi_label_classification": "multi_label", "regression": "regression"}
        fallback = "regression" if teacher.num_labels == 1 else "single_label"
        return declared.get(teacher.problem_type or "", fallback)  # type: ignore[return-value]
    values = [value for column in columns.values() for value in column if value is not None]
    if any(isinstance(value, list) for value in values):
        return "multi_label"
    floats = [value for value in values if isinstance(value, float)]
    if not floats:
        return "single_label"
    if all(value.is_integer() for value in floats if math.isfinite(value)):
        raise UserError(
            "the label column holds whole numbers as floats (1.0), which may be classes with gaps or a scale. Say which: "
            "task: {name: text-classification, problem: single_label} or problem: regression.",
            key="columns.label",
        )
    return "regression"


def _regression_width(columns: Mapping[str, list[Any]], teacher: PretrainedConfig | None) -> int:
    for name, values in columns.items():
        for row, value in enumerate(values):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise _bad(name, row, value, "a number (the problem is regression)")
            if not math.isfinite(value):
                raise _bad(name, row, value, "a finite number; leave the label empty where there is none")
    if teacher is not None and teacher.num_labels != 1:
        raise UserError(
            f"the labels are numbers (regression), but the teacher has a head of {teacher.num_labels} classes.",
            key="columns.label",
        )
    return 1


def _bad(split: str, row: int, value: Any, wanted: str) -> UserError:
    return UserError(f"row {row} of the {split} split has the label {value!r}; wanted {wanted}.", key="columns.label")


def _is_multi_hot(columns: Mapping[str, list[Any]]) -> bool:
    """Whether lists are one 0/1 entry per class rather than the names or numbers of the classes that hold."""
    rows = [row for column in columns.values() for row in column if row is not None]
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and lengths != {0} and all(item in (0, 1) for row in rows for item in row) and lengths != {1}


@dataclass(frozen=True)
class _Raw:
    """Classes as the data has them: raw value -> position, and their names where known."""

    values: tuple[Any, ...]
    names: tuple[str, ...] | None


def _raw_classes(
    columns: Mapping[str, list[Any]], problem: Problem, multi_hot: bool, known: tuple[str, ...], heads: list[int]
) -> _Raw:
    """Return the classes of the data, every label checked against them."""
    items = _items(columns, problem)
    if multi_hot:
        return _counted(len(next(row for column in columns.values() for row in column if row is not None)), known)
    if any(isinstance(value, str) for _, _, value in items):
        return _text_classes(items, known)
    if not items and not known and not heads:
        raise UserError("no example has a label, and no model's head says what the classes are.", key="columns.label")
    for split, row, value in items:
        if not isinstance(value, (bool, int)) and not (isinstance(value, float) and value.is_integer()):
            raise _bad(split, row, value, "the number or the name of a class; leave it empty where there is none")
    highest = max((int(value) for _, _, value in items), default=-1)
    raw = _counted(len(known) or (heads[0] if heads else highest + 1), known)
    for split, row, value in items:
        if not 0 <= value < len(raw.values):
            raise _bad(split, row, value, f"0 to {len(raw.values) - 1}, or nothing for a row without label")
    return raw


def _items(columns: Mapping[str, list[Any]], problem: Problem) -> list[tuple[str, int, Any]]:
    """Return every single label with its split and row."""
    items = []
    for split, values in columns.items():
        for row, value in enumerate(values):
            if _missing(value):
                continue
            if problem == "multi_label" and not isinstance(value, list):
                raise _bad(split, row, value, "a list (the problem is multi_label)")
            if problem == "single_label" and isinstance(value, list):
                raise _bad(split, row, value, "one class (the problem is single_label)")
            items += [(split, row, item) for item in (value if isinstance(value, list) else [value])]
    return items


def _counted(width: int, known: tuple[str, ...]) -> _Raw:
    if known and len(known) != width:
        raise UserError(f"{len(known)} label names {shorten(known)} for {width} classes.", key="labels")
    if width < 2:
        raise UserError("all labels are the same class; wanted at least two classes.", key="columns.label")
    return _Raw(tuple(range(width)), known or None)


def _text_classes(items: list[tuple[str, int, Any]], known: tuple[str, ...]) -> _Raw:
    for split, row, value in items:
        if not isinstance(value, str):
            raise _bad(split, row, value, "a text, like the other labels")
        if known and value not in known:
            raise _bad(split, row, value, f"one of {shorten(known)}")
    found = known or tuple(sorted({value for _, _, value in items}))
    if len(found) < 2:
        raise UserError(f"all labels are {found[0]!r}; wanted at least two classes.", key="columns.label")
    return _Raw(found, found)


def _match(
    problem: Problem,
    raw: _Raw,
    teacher: PretrainedConfig | None,
    student: PretrainedConfig | None,
    labelled: frozenset[str],
    multi_hot: bool,
) -> Labelling:
    """Choose the order of the classes and bring data and teacher into it."""
    theirs = label_names(teacher) if teacher is not None else None
    ours = label_names(student) if student is not None else None
    if raw.names is None and ours and theirs and positions(ours, theirs, whose="the teacher") != tuple(range(len(ours))):
        raise UserError(
            "student and teacher name the classes in different orders, so a bare number says nothing. Name the numbers: "
            "data: {labels: [name of 0, name of 1, ...]}.",
            key="labels",
        )
    order = ours or theirs or raw.names
    width = len(raw.values)
    for whose, config in (("the teacher", teacher), ("the student", student)):
        if config is not None and config.num_labels != width:
            raise UserError(f"the data has {width} classes, but {whose} has {config.num_labels}.", key="columns.label")
    # Where the data names its classes they must be the heads' names; else a number means the head's order.
    at = positions(raw.names, order, whose="the model") if raw.names and order else tuple(range(width))
    columns = positions(order, theirs, whose="the teacher") if order and theirs else tuple(range(width))
    return Labelling(
        problem=problem,
        width=width,
        names=order,
        teacher_columns=None if columns == tuple(range(width)) else columns,
        index={value: at[index] for index, value in enumerate(raw.values)},
        labelled=labelled,
        multi_hot=multi_hot,
    )
