"""The label space of a run: what the classes are called, and in which order they stand."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.labels import label_names, positions, real_names, shorten
from hf_distill.tasks.label_column import LabelColumn, read_column
from hf_distill.tasks.labelling import Labelling, Names
from hf_distill.tasks.problem import Problem, check_classes, find_problem, is_multi_hot, value_count

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_SAY_NAMES = "Say which name each number has: data: {labels: [name of 0, name of 1, ...]}."
_NOTHING = ("", "na", "n/a", "nan", "null", "none", "-", "?")


@dataclass(frozen=True)
class _Heads:
    """The models that bring a trained head.

    Attributes:
        student: Configuration.
        teacher: Configuration.
    """

    student: PretrainedConfig | None
    teacher: PretrainedConfig | None

    @property
    def ours(self) -> Names | None:
        """Names of the student's classes, where it has any."""
        return None if self.student is None else label_names(self.student)

    @property
    def theirs(self) -> Names | None:
        """Names of the teacher's classes, where it has any."""
        return None if self.teacher is None else label_names(self.teacher)

    @property
    def width(self) -> int | None:
        """Columns of the heads; None without any."""
        head = self.teacher or self.student
        return None if head is None else head.num_labels

    def check_width(self, width: int, what: str, key: str) -> None:
        """Refuse a head of another size."""
        for whose, head in (("teacher", self.teacher), ("student", self.student)):
            if head is not None and head.num_labels != width:
                names = label_names(head)
                called = f" {shorten(names)}" if names else ""
                raise UserError(
                    f"the labels are {width} {what}, but the {whose}'s head has {head.num_labels} outputs{called}.",
                    key=key,
                )

    def warn_unused(self, classes: _Classes, column: LabelColumn) -> None:
        """Warn of a head of more classes than are learned, where nothing but numbers says that they are the same."""
        whose = "student" if self.teacher is None else "teacher"
        used = len({classes.numbers[label] for label in column.learned})
        if self.width is not None and 0 < used < self.width and not (classes.names or self.ours or self.theirs):
            logger.warning(
                "the train labels use %s of the %s classes of the %s's head, which only numbers them. Was it trained "
                "on these? Then name all, and this is not asked again: data: {labels: [name of 0, name of 1, ...]}",
                *(used, self.width, whose),
            )


@dataclass(frozen=True)
class _Classes:
    """The classes as the data numbers them.

    Attributes:
        numbers: Label as the data has it -> number.
        names: Name of each number, where known.
        width: How many there are.
    """

    numbers: Mapping[Any, int]
    names: Names | None
    width: int


def read_labels(
    splits: Mapping[str, Dataset],
    *,
    problem: Problem | None,
    names: Sequence[str] | None,
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

    None is "no label", and so are -100 among integers, and -1 in a `ClassLabel` column.

    The order of the classes is the student's where it brings a trained head, else the teacher's, else the data's;
    the others are matched to it by name. Numbers that nobody names are taken to mean the same in all of them.

    Args:
        splits: Splits that have the column of labels.
        problem: From the recipe; read from the column if None.
        names: Names of integer labels, from the recipe.
        teacher: Configuration of a teacher with a trained head.
        student: Configuration of a student with a trained head.
        role: Of the column.
        nested: Whether a row holds a list of labels, one for each of its words. An empty list, or None, has none.

    Raises:
        UserError: The labels do not fit the problem, the names or the models.
    """
    column = read_column(splits, role, nested=nested)
    problem = problem or find_problem(column, teacher or student)
    heads = _Heads(student, teacher)
    shared: dict[str, Any] = {"problem": problem, "missing": column.missing, "labelled": column.labelled}
    if problem == "regression":
        if names:
            raise UserError("names are for classes, but this is regression. Leave them out.", key="labels")
        width = value_count(column) or heads.width or 1
        heads.check_width(width, "number(s) for each text", column.key)
        return Labelling(width=width, index={}, **shared)
    check_classes(column, problem)
    multi_hot = problem == "multi_label" and is_multi_hot(column)
    classes = _find_classes(column, real_names(names or column.names or ()), heads, multi_hot)
    if classes.width < 2 and problem == "single_label":
        raise UserError("all labels are the same class; wanted at least two.", key=column.key)
    heads.check_width(classes.width, "classes", column.key)
    if not multi_hot:
        heads.warn_unused(classes, column)
    order, at, teacher_columns = _put_in_order(classes, heads, key="labels" if names else column.key)
    return Labelling(
        width=classes.width,
        names=order,
        teacher_columns=teacher_columns,
        index={value: at[number] for value, number in classes.numbers.items()},
        multi_hot=multi_hot,
        **shared,
    )


# ---- Which classes there are -----------------------------------------------------------------------------------------


def _find_classes(column: LabelColumn, stated: Names | None, heads: _Heads, multi_hot: bool) -> _Classes:
    """Return the classes of the data; every label is one of them.

    Args:
        column: The labels.
        stated: Names of the numbers, from the recipe or the column.
        heads: Models that bring a trained head.
        multi_hot: Whether labels are lists of one 0 or 1 for each class.
    """
    if stated and len(set(stated)) < len(stated):
        raise UserError(f"a name stands twice in {shorten(stated)}.", key="labels")
    if multi_hot:
        width = max(column.lengths)
        if stated and len(stated) != width:
            raise UserError(f"{len(stated)} names {shorten(stated)} for {width} classes.", key="labels")
        return _Classes({number: number for number in range(width)}, stated, width)
    if column.holds(str):
        return _by_name(column, stated, heads)
    if not column.values and not stated and heads.width is None:
        raise UserError("no example has a label, and no model's head says what the classes are.", key=column.key)
    return _by_number(column, {value: int(value) for value in column.values}, stated, heads)


def _by_name(column: LabelColumn, stated: Names | None, heads: _Heads) -> _Classes:
    """Return the classes of text labels: the data says which there are, but only others say in which order."""
    texts: tuple[str, ...] = column.values
    # The names of a student say nothing about a teacher that has none.
    nameless_teacher = heads.teacher is not None and heads.theirs is None
    names = stated or (None if nameless_teacher else heads.ours or heads.theirs)
    found = _look_up(texts, names or ())
    if names and None not in found.values():
        return _Classes({text: number for text, number in found.items() if number is not None}, names, len(names))
    numbers = {text: int(match[1]) for text in texts if (match := re.fullmatch(r"(?:LABEL_)?([0-9]+)", text))}
    if len(numbers) == len(texts):  # and no model that calls its classes so
        return _by_number(column, numbers, stated, heads)
    if names:
        raise column.refuse(lambda text: found[text] is None, f"one of {shorten(names)}")
    if nameless_teacher:
        raise UserError(
            f"the labels are names {shorten(texts)}, but the teacher only numbers its classes. {_SAY_NAMES}",
            key="labels",
        )
    _refuse_gaps(column)
    names = tuple(sorted(texts))
    return _Classes({name: number for number, name in enumerate(names)}, names, len(names))


def _by_number(column: LabelColumn, numbers: Mapping[Any, int], stated: Names | None, heads: _Heads) -> _Classes:
    """Return the classes of numbered labels; numbers that are not 0, 1, 2 ... are their own names."""
    if any(number < 0 for number in numbers.values()):
        raise column.refuse(lambda value: numbers[value] < 0, "0 or more; leave it empty for a row without label")
    width = len(stated) if stated else heads.width
    if width is None:
        order = {number: at for at, number in enumerate(sorted(set(numbers.values())))}
        names = real_names(str(number) for number in order)
        return _Classes({value: order[number] for value, number in numbers.items()}, names, len(order))
    if any(number >= width for number in numbers.values()):
        raise column.refuse(lambda value: numbers[value] >= width, f"0 to {width - 1}, since there are {width} classes")
    return _Classes(numbers, stated, width)


def _look_up(texts: Sequence[str], names: Sequence[str]) -> dict[str, int | None]:
    """Return the position of each text among the names; case only counts where names differ in nothing else."""
    exact = {name: at for at, name in enumerate(names)}
    folded = {name.casefold(): at for at, name in enumerate(names)}
    loose = folded if len(folded) == len(names) else {}
    return {text: exact.get(text, loose.get(text.casefold())) for text in texts}


def _refuse_gaps(column: LabelColumn) -> None:
    """Refuse numbers with an "NA" among them, which is a gap and no class; whoever means a class can name it."""
    gaps = [text for text in column.values if text.strip().casefold() in _NOTHING]
    if gaps and any(re.fullmatch(r"\s*[-+]?[0-9.]+\s*", text) for text in column.values):
        wanted = "a number like the others, or an empty cell where there is no label"
        raise column.refuse(lambda text: text in gaps, wanted)


# ---- In which order --------------------------------------------------------------------------------------------------


def _put_in_order(
    classes: _Classes, heads: _Heads, key: str
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
            f"{_SAY_NAMES}",
            key="labels",
        )
    order = ours or theirs or classes.names
    at: Sequence[int] = unchanged
    if order and classes.names:
        try:
            at = positions(classes.names, order, whose="the model")
        except UserError as error:
            raise UserError(f"{error} {_SAY_NAMES}", key=key) from error
    # A teacher without names was trained on the data's numbers.
    known = theirs or classes.names
    if heads.teacher is None or order is None or known is None:
        return order, at, None
    columns = positions(order, known, whose="the teacher")
    return order, at, None if columns == unchanged else columns


def _differ(ours: Names, theirs: Names) -> bool:
    return positions(ours, theirs, whose="the teacher") != tuple(range(len(ours)))
