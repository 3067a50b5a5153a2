"""The label space of a run: what the classes are called, and in which order they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.data.label_names import positions, shorten
from hf_distill.errors import UserError
from hf_distill.tasks.classes import SAY_NAMES, Classes, Heads, find_classes
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
    """Work out the label space of a run.

    What a column holds, where the recipe does not say (`problem`):

    - text, booleans, integers: one class an example. Integers are a scale where the teacher is a regression model.
    - floats: regression. Whole numbers may also be classes, read as floats because of gaps: the teacher's head decides,
      and without one the column is refused.
    - lists: several classes an example. Those of one length throughout that hold only 0 and 1 are one entry a class;
      in others the items are the classes that hold, by name or by number. In both, an empty list means that none holds.
      Floats that sum to 1 in every row, and are not all 0 and 1, are a distribution over the classes: soft labels,
      one class an example.
    - 0 and 1, where the head has one output and a sigmoid behind it (a cross-encoder): one label, which holds or not.

    None is "no label", and so are -100 among integers, and -1 in a `ClassLabel` column.

    The order of the classes is the student's where it brings a trained head, else the teacher's, else the data's;
    the others are matched to it by name. Numbers that nobody names are taken to mean the same in all of them.

    Args:
        splits: Splits that have the column of labels.
        problem: From the recipe; read from the column if None.
        names: From the recipe: names of integer labels, or what each label means (None: no label).
        teacher: Configuration of a teacher with a trained head.
        student: Configuration of a student with a trained head.
        role: Of the column.
        nested: Whether a row holds a list of labels, one for each of its words. An empty list, or None, has none.

    Raises:
        UserError: The labels do not fit the problem, the names or the models.
    """
    stated = Stated.of(names)
    column = read_column(splits, role, nested=nested, nothing=stated.nothing)
    problem = problem or find_problem(column, teacher or student)
    heads = Heads(student, teacher)
    shared: dict[str, Any] = {"problem": problem, "missing": column.missing, "labelled": column.labelled}
    if problem == "regression":
        if stated.names or stated.meanings:
            raise UserError("names are for classes, but this is regression. Leave them out.", key="labels")
        width = value_count(column, spelled=bool(stated.nothing)) or heads.width or 1
        heads.check_width(width, "number(s) for each text", column.key)
        return Labelling(width=width, index={}, **shared)
    if problem == "multi_label" and column.labelled and not column.lists and heads.width == 1:
        if stated.names or stated.meanings:
            raise UserError("the head has one output, for which 0 is no and 1 yes. Leave the names out.", key="labels")
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
    classes: Classes, heads: Heads, key: str
) -> tuple[Names | None, Sequence[int], tuple[int, ...] | None]:
    """Choose the order of the student's head and bring data and teacher into it.

    Args:
        classes: Of the data.
        heads: Models that bring a trained head.
        key: What names the data's classes.

    Returns:
        The names in order; column of the head for each number of the data; column of the teacher's head for each
        of the student's, None where they are the same.
    """
    ours, theirs = heads.ours, heads.theirs
    unchanged = tuple(range(classes.width))
    # Bare numbers are the teacher's. Are they also the positions of the student's names?
    if ours and heads.teacher is not None and classes.names is None and (theirs is None or _differ(ours, theirs)):
        other = f"as {shorten(theirs)}" if theirs else "without names"
        raise UserError(
            f"the student has its classes as {shorten(ours)}, the teacher {other}, and the data does not name them. "
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
