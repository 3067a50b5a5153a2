"""The label space of a run: the classes, their names and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.data.label_names import positions, shorten
from hf_distill.errors import UserError
from hf_distill.tasks.classes import SAY_NAMES, Classes, TrainedHeads, find_classes
from hf_distill.tasks.label_column import LabelColumn, read_column
from hf_distill.tasks.one_output import check_yes_or_no
from hf_distill.tasks.problem_type import (
    Labelling,
    Names,
    Problem,
    check_classes,
    find_problem,
    is_multi_hot,
    value_count,
)
from hf_distill.tasks.soft_labels import is_one_hot, is_soft
from hf_distill.tasks.stated_labels import Stated

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig


def read_labels(
    splits: Mapping[str, Dataset],
    *,
    problem: Problem | None,
    names: Sequence[str] | Mapping[str, str | None] | None,
    teacher: PretrainedConfig | None,
    student: PretrainedConfig | None,
    role: str = "label",
    nested: bool = False,
) -> Labelling:
    """Return how the labels of a run map to the student's head.

    If the recipe does not set `problem`, it is read from the column:

    - text, booleans, integers: one class for each example. Integers are regression if the teacher is a regression
      model.
    - floats: regression. Whole numbers may also be classes, which are read as floats if values are missing: the
      teacher's head decides, and without one the column is refused.
    - lists: several classes for each example. Lists of 0 and 1 that all have the same length have one entry for each
      class; the items of other lists are the classes that apply, by name or number. In both, an empty list means that
      no class applies. Floats that sum to 1 in every row, and are not all 0 and 1, are a distribution over the
      classes: soft labels, with one class for each example.
    - 0 and 1, if the head has one output and a sigmoid after it (a cross-encoder): one yes/no label.

    None means "no label"; so do -100 among integers, and -1 in a `ClassLabel` column.

    The classes are in the order of the student's trained head, else the teacher's, else the data's. The others are
    matched to it by name. Numbers without names are assumed to mean the same in all of them.

    Args:
        splits: Splits with the label column.
        problem: `task.problem` of the recipe; None to read it from the column.
        names: `data.labels` of the recipe: the names of 0, 1, 2, ..., or label -> name (None: no label).
        teacher: Configuration of a teacher with a trained head.
        student: Configuration of a student with a trained head.
        role: Role of the label column.
        nested: Whether a row holds one label for each of its words; an empty list or None means no labels.

    Raises:
        UserError: The labels do not fit the problem, the names or the models.
    """
    stated = Stated.of(names)
    column = read_column(splits, role, nested=nested, nothing=stated.nothing)
    problem = problem or find_problem(column, teacher or student)
    heads = TrainedHeads(student, teacher)
    shared: dict[str, Any] = {"problem": problem, "missing": column.missing, "labelled": column.labelled}
    if problem == "regression":
        if stated.names or stated.meanings:
            raise UserError("names are for classes, but this is regression. Leave them out.", key="labels")
        width = value_count(column, spelled=bool(stated.nothing)) or heads.width or 1
        heads.check_width(width, "number(s) for each text", column.key)
        return Labelling(width=width, index={}, **shared)
    if problem == "multi_label" and column.labelled and not column.lists and heads.width == 1:
        if stated.names or stated.meanings:
            raise UserError(
                "the head has one output, for which 0 means no and 1 means yes. Leave the names out.", key="labels"
            )
        check_yes_or_no(column)
        return Labelling(width=1, names=heads.ours or heads.theirs, index={}, soft=_between(column), **shared)
    soft = problem == "single_label" and (is_soft(column) or is_one_hot(column))
    if not soft:
        check_classes(column, problem)
    by_place = soft or (problem == "multi_label" and is_multi_hot(column))
    classes = find_classes(column, stated, heads, by_place)
    if classes.width < 2 and problem == "single_label":
        raise UserError("all labels are the same class; wanted at least two.", key=column.key)
    heads.check_width(classes.width, "classes", column.key)
    if not by_place:
        heads.warn_unused(classes, column)
    order, at, teacher_columns = _put_in_order(classes, heads, key="labels" if names else column.key)
    return Labelling(
        width=classes.width,
        names=order,
        teacher_columns=teacher_columns,
        index={value: at[number] for value, number in classes.numbers.items()},
        multi_hot=by_place,
        soft=soft,
        **shared,
    )


def _between(column: LabelColumn) -> bool:
    return any(value not in (0, 1) for value in column.values)


# ---- In which order --------------------------------------------------------------------------------------------------


def _put_in_order(
    classes: Classes, heads: TrainedHeads, key: str
) -> tuple[Names | None, Sequence[int], tuple[int, ...] | None]:
    """Choose the order of classes in the student's head, and map data and teacher to it.

    Args:
        classes: The classes of the data.
        heads: Models with a trained head.
        key: Recipe key that names the classes of the data.

    Returns:
        The names in order; the column of the head for each number in the data; the column of the teacher's head for
        each column of the student's, None if they are the same.
    """
    ours, theirs = heads.ours, heads.theirs
    unchanged = tuple(range(classes.width))
    # Numbers without names are the teacher's classes; they may not be the positions of the student's names.
    if ours and heads.teacher is not None and classes.names is None and (theirs is None or _differ(ours, theirs)):
        other = f"are {shorten(theirs)}" if theirs else "have no names"
        raise UserError(
            f"the student's classes are {shorten(ours)}, the teacher's {other}, and the data does not name them. "
            f"{SAY_NAMES}",
            key="labels",
        )
    order = ours or theirs or classes.names
    at: Sequence[int] = unchanged
    if order and classes.names:
        try:
            at = positions(classes.names, order, whose="the model")
        except UserError as error:
            raise UserError(f"{error} {SAY_NAMES}", key=key) from error
    # A teacher without names was trained on the data's numbers.
    known = theirs or classes.names
    if heads.teacher is None or order is None or known is None:
        return order, at, None
    columns = positions(order, known, whose="the teacher")
    return order, at, None if columns == unchanged else columns


def _differ(ours: Names, theirs: Names) -> bool:
    return positions(ours, theirs, whose="the teacher") != tuple(range(len(ours)))
