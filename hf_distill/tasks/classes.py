"""Find the classes of a label column and their names, from the recipe, the data or the models' heads."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data.label_names import folded, label_names, label_numbers, real_names, shorten, tidy
from hf_distill.errors import UserError
from hf_distill.tasks.doubtful_labels import check_texts, refuse_gaps, warn_of_many
from hf_distill.tasks.label_column import LabelColumn
from hf_distill.tasks.stated_labels import Stated, spell

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

Names = tuple[str, ...]
SAY_NAMES = "Give the name of each number: data: {labels: [name of 0, name of 1, ...]}."


@dataclass(frozen=True)
class TrainedHeads:
    """The models with a trained head for the task.

    Attributes:
        student: Configuration of the student; None if its head is not trained yet.
        teacher: Configuration of the teacher; None if its head is not trained yet.
    """

    student: PretrainedConfig | None
    teacher: PretrainedConfig | None

    @property
    def ours(self) -> Names | None:
        """Class names of the student's head; None if it has none."""
        return None if self.student is None else label_names(self.student)

    @property
    def theirs(self) -> Names | None:
        """Class names of the teacher's head; None if it has none."""
        return None if self.teacher is None else label_names(self.teacher)

    @property
    def width(self) -> int | None:
        """Number of columns of the heads; None without a trained head."""
        head = self.teacher or self.student
        return None if head is None else head.num_labels

    def check_width(self, width: int, what: str, key: str) -> None:
        """Refuse a head with another number of outputs than `width`."""
        for whose, head in (("teacher", self.teacher), ("student", self.student)):
            if head is not None and head.num_labels != width:
                names = label_names(head)
                called = f" {shorten(names)}" if names else ""
                raise UserError(
                    f"the labels are {width} {what}, but the {whose}'s head has {head.num_labels} outputs{called}.",
                    key=key,
                )

    def warn_unused(self, classes: Classes, column: LabelColumn) -> None:
        """Warn if the labels use only some classes of a head and nothing but numbers links labels and classes."""
        whose = "student" if self.teacher is None else "teacher"
        used = len({classes.numbers[label] for label in column.learned})
        if self.width is not None and 0 < used < self.width and not (classes.names or self.ours or self.theirs):
            logger.warning(
                "the train labels use %s of the %s classes of the %s's head, which only numbers them. If it was "
                "trained on these labels, name all classes: data: {labels: [name of 0, name of 1, ...]}",
                *(used, self.width, whose),
            )


@dataclass(frozen=True)
class Classes:
    """The classes as the data numbers them.

    Attributes:
        numbers: Label in the data -> number of its class.
        names: Name of each number; None if they have no names.
        width: Number of classes.
    """

    numbers: Mapping[Any, int]
    names: Names | None
    width: int


def find_classes(column: LabelColumn, stated: Stated, heads: TrainedHeads, multi_hot: bool) -> Classes:
    """Return the classes of the data; every label is one of them.

    Args:
        column: The labels.
        stated: What the recipe says about labels.
        heads: Models with a trained head.
        multi_hot: Whether labels are lists of one 0 or 1 for each class.

    Raises:
        UserError: A label is not among the classes that the recipe or the models name, or its class is ambiguous.
    """
    names = stated.names or real_names(column.names or ())
    if multi_hot:
        if stated.meanings:
            raise UserError("the labels are one 0 or 1 for each class; wanted a list of names.", key="labels")
        width = max(column.lengths)
        if names and len(names) != width:
            raise UserError(f"{len(names)} names {shorten(names)} for {width} classes.", key="labels")
        return Classes({number: number for number in range(width)}, names, width)
    if stated.meanings or (column.names and stated.nothing):
        return _by_meaning(column, stated, heads)
    if column.holds(str):
        return _by_name(column, {text: text for text in column.values}, names, stated, heads)
    if column.holds(bool) and (found := _truths(names or heads.ours or heads.theirs)):
        return Classes({value: found[value] for value in column.values}, names or heads.ours or heads.theirs, 2)
    if not column.values and not names and heads.width is None:
        raise UserError("no example has a label, and no model's head says what the classes are.", key=column.key)
    return _by_number(column, {value: int(value) for value in column.values}, names, heads)


def _truths(names: Names | None) -> dict[bool, int] | None:
    """Return the positions of False and True if the names are no/yes or false/true, in any order; else None."""
    said = [name.casefold() for name in names or ()]
    for no, yes in (("false", "true"), ("no", "yes")):
        if sorted(said) == [no, yes]:
            return {False: said.index(no), True: said.index(yes)}
    return None


def _by_meaning(column: LabelColumn, stated: Stated, heads: TrainedHeads) -> Classes:
    """Return the classes if the recipe maps labels to names; a label that it does not map is its own name."""
    own = {value: column.names[value] if column.names else spell(value) for value in column.values}
    if not column.holds(str) and not column.names and set(own.values()) - set(stated.meanings):
        wanted = f"one of those that data.labels names ({shorten(list(stated.meanings))}), or a line there for this one"
        raise column.refuse(lambda value: spell(value) not in stated.meanings, wanted)
    # Spaces at the ends make no other label elsewhere, and messages show a label without them.
    texts = {value: stated.meanings.get(text, stated.meanings.get(tidy(text), text)) for value, text in own.items()}
    declared = [name for name in column.names or () if name not in stated.nothing]
    known = [stated.meanings.get(name, name) for name in declared] or stated.meanings.values()
    every = tuple(dict.fromkeys((*known, *sorted(set(texts.values()) - set(known)))))
    # If a model names its classes, the recipe must use these names; else the recipe's names are the classes.
    trained = heads.theirs or (heads.ours if heads.teacher is None else None)
    return _by_name(column, texts, None if trained else every, stated, heads)


def _by_name(
    column: LabelColumn, texts: Mapping[Any, str], names: Names | None, stated: Stated, heads: TrainedHeads
) -> Classes:
    """Return the classes of text labels. The data has their names, but not their order.

    Args:
        column: The labels.
        texts: Label -> its name.
        names: Names of all classes, from the recipe or the data set.
        stated: What the recipe says about labels.
        heads: Models with a trained head.
    """
    # The student's names do not apply to a teacher without names.
    nameless_teacher = heads.teacher is not None and heads.theirs is None
    names = names or (None if nameless_teacher else heads.ours or heads.theirs)
    found = _look_up(tuple(texts.values()), names or ())
    if names and None not in found.values():
        numbers = {label: number for label, text in texts.items() if (number := found[text]) is not None}
        return Classes(numbers, names, len(names))
    spelled = {label: int(match[1]) for label, text in texts.items() if (match := _NUMBER.fullmatch(text))}
    if len(spelled) == len(texts):  # numbers written as text, and no model has these names
        return _by_number(column, spelled, names if stated.names or column.names else None, heads)
    if names:
        bad = {label: text for label, text in texts.items() if found[text] is None}
        mapped = next(
            (f" data.labels says that {label!r} is '{text}'." for label, text in bad.items() if label != text), ""
        )
        raise column.refuse(lambda label: label in bad, f"one of {shorten(names)}", stated.way_out or mapped)
    if nameless_teacher:
        raise UserError(
            f"the labels are names {shorten(list(texts.values()))}, but the teacher only numbers its classes. "
            f"{SAY_NAMES}",
            key="labels",
        )
    refuse_gaps(column)
    return _own_names(column, texts, stated)


def _own_names(column: LabelColumn, texts: Mapping[Any, str], stated: Stated) -> Classes:
    """Return the classes of texts if neither recipe nor models name them: every different text is a class."""
    check_texts(column, texts, stated)
    names = tuple(sorted({tidy(text) for text in texts.values()}))
    at = {name: number for number, name in enumerate(names)}
    return Classes({label: at[tidy(text)] for label, text in texts.items()}, names, len(names))


_NUMBER = re.compile(r"(?:LABEL_)?([0-9]+)")


def _by_number(column: LabelColumn, numbers: Mapping[Any, int], stated: Names | None, heads: TrainedHeads) -> Classes:
    """Return the classes of numeric labels.

    If the names of the classes are numbers or begin with numbers (`1 star`), and the labels are among them, a label is
    matched by value; else it is the position of its class. Without names or heads, numbers other than 0, 1, 2, ... are
    their own names.
    """
    if (by_value := _by_value(column, numbers, stated, heads)) is not None:
        return by_value
    if any(number < 0 for number in numbers.values()):
        hint = f" If it is a class, name each label: data: {{labels: {{'{min(numbers.values())}': NAME, ...}}}}."
        wanted = "0 or more; leave it empty for a row without label"
        raise column.refuse(lambda value: numbers[value] < 0, wanted, hint)
    width = len(stated) if stated else heads.width
    if width is None:
        warn_of_many(column)
        order = {number: at for at, number in enumerate(sorted(set(numbers.values())))}
        names = real_names(str(number) for number in order)
        return Classes({value: order[number] for value, number in numbers.items()}, names, len(order))
    if any(number >= width for number in numbers.values()):
        hint = ""
        if min(numbers.values()) > 0 and max(numbers.values()) == width:
            names = stated or heads.ours or heads.theirs
            said = f"{{'1': {names[0]}, '2': {names[1]}, ...}}" if names else f"['1', '2', ... '{width}']"
            hint = f" If the labels count from 1, say so: data: {{labels: {said}}}."
        wanted = f"0 to {width - 1}, since there are {width} classes"
        raise column.refuse(lambda value: numbers[value] >= width, wanted, hint)
    return Classes(numbers, stated, width)


def _by_value(
    column: LabelColumn, numbers: Mapping[Any, int], stated: Names | None, heads: TrainedHeads
) -> Classes | None:
    """Return the classes if labels match the numbers in the class names; None if labels can only be positions.

    Raises:
        UserError: The recipe names 0, 1, 2, ... in order, but the labels could also match the names by value.
    """
    names = stated or heads.ours or heads.theirs
    called = label_numbers(names or ())
    # Integers of a `ClassLabel` column are always positions.
    if names is None or called is None or column.names or not numbers or not set(numbers.values()) <= set(called):
        return None
    place = {number: at for at, number in enumerate(called)}
    other = [number for number in sorted(set(numbers.values())) if place[number] != number]
    if other and all(0 <= number < len(names) for number in numbers.values()):
        number = other[0]
        either = f"the label {number} may be '{names[place[number]]}' or, counted from 0, '{names[number]}'"
        way_out = f"data: {{labels: {{'{number}': {names[number]}, ...}}}}"
        if stated and any(not name.strip().lstrip("+-").isdecimal() for name in names):
            raise UserError(f"{either}. Map every label to its name: {way_out}.", key="labels")
        logger.warning(
            "%s: the first is used. If the second is meant, map every label to its name: %s", either, way_out
        )
    if not stated:  # a teacher without names has its classes in the order of the numbers
        called, names = zip(*sorted(zip(called, names, strict=True)), strict=True)
        place = {number: at for at, number in enumerate(called)}
    return Classes({value: place[number] for value, number in numbers.items()}, names, len(names))


def _look_up(texts: Sequence[str], names: Sequence[str]) -> dict[str, int | None]:
    """Return the position of each text among the names, None if absent; case matters only if names differ in case."""
    exact = {name: at for at, name in enumerate(names)}
    alike = {folded(name): at for at, name in enumerate(names)}
    loose = alike if len(alike) == len(names) else {}
    found = {text: exact.get(text, loose.get(folded(text))) for text in texts}
    ours, theirs = label_numbers(dict.fromkeys(texts)), label_numbers(names)
    if None not in found.values() or not ours or not theirs or not set(ours) <= set(theirs):
        return found
    if all(_NUMBER.fullmatch(text) for text in texts):
        return found  # plain numbers can also be positions
    return {text: theirs.index(number) for text, number in zip(dict.fromkeys(texts), ours, strict=True)}
