"""Which classes a column of labels has, and what they are called: by the recipe, the data, or the models' heads."""

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
SAY_NAMES = "Say which name each number has: data: {labels: [name of 0, name of 1, ...]}."


@dataclass(frozen=True)
class Heads:
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

    def warn_unused(self, classes: Classes, column: LabelColumn) -> None:
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
class Classes:
    """The classes as the data numbers them.

    Attributes:
        numbers: Label as the data has it -> number.
        names: Name of each number, where known.
        width: How many there are.
    """

    numbers: Mapping[Any, int]
    names: Names | None
    width: int


def find_classes(column: LabelColumn, stated: Stated, heads: Heads, multi_hot: bool) -> Classes:
    """Return the classes of the data; every label is one of them.

    Args:
        column: The labels.
        stated: What the recipe says of them.
        heads: Models that bring a trained head.
        multi_hot: Whether labels are lists of one 0 or 1 for each class.

    Raises:
        UserError: A label is none of the classes that the recipe or the models name, or nobody can tell what it is.
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
    """Return the position of the names of True and False, which are no matter of order."""
    said = [name.casefold() for name in names or ()]
    for no, yes in (("false", "true"), ("no", "yes")):
        if sorted(said) == [no, yes]:
            return {False: said.index(no), True: said.index(yes)}
    return None


def _by_meaning(column: LabelColumn, stated: Stated, heads: Heads) -> Classes:
    """Return the classes of labels of which the recipe says what some or all mean; the others keep their names."""
    own = {value: column.names[value] if column.names else spell(value) for value in column.values}
    if not column.holds(str) and not column.names and set(own.values()) - set(stated.meanings):
        wanted = f"one of those that data.labels names ({shorten(list(stated.meanings))}), or a line there for this one"
        raise column.refuse(lambda value: spell(value) not in stated.meanings, wanted)
    texts = {value: stated.meanings.get(text, text) for value, text in own.items()}
    declared = [name for name in column.names or () if name not in stated.nothing]
    known = [stated.meanings.get(name, name) for name in declared] or stated.meanings.values()
    every = tuple(dict.fromkeys((*known, *sorted(set(texts.values()) - set(known)))))
    # Where models name the classes, these are what the meanings must be; else they are the classes.
    trained = heads.theirs or (heads.ours if heads.teacher is None else None)
    return _by_name(column, texts, None if trained else every, stated, heads)


def _by_name(
    column: LabelColumn, texts: Mapping[Any, str], names: Names | None, stated: Stated, heads: Heads
) -> Classes:
    """Return the classes of text labels: the data says which there are, but only others say in which order.

    Args:
        column: The labels.
        texts: Label -> what it is called.
        names: Of all classes, from the recipe or the data set.
        stated: What the recipe says of labels.
        heads: Models that bring a trained head.
    """
    # The names of a student say nothing about a teacher that has none.
    nameless_teacher = heads.teacher is not None and heads.theirs is None
    names = names or (None if nameless_teacher else heads.ours or heads.theirs)
    found = _look_up(tuple(texts.values()), names or ())
    if names and None not in found.values():
        numbers = {label: number for label, text in texts.items() if (number := found[text]) is not None}
        return Classes(numbers, names, len(names))
    spelled = {label: int(match[1]) for label, text in texts.items() if (match := _NUMBER.fullmatch(text))}
    if len(spelled) == len(texts):  # and no model that calls its classes so
        return _by_number(column, spelled, names if stated.names or column.names else None, heads)
    if names:
        raise column.refuse(lambda label: found[texts[label]] is None, f"one of {shorten(names)}", stated.way_out)
    if nameless_teacher:
        raise UserError(
            f"the labels are names {shorten(list(texts.values()))}, but the teacher only numbers its classes. "
            f"{SAY_NAMES}",
            key="labels",
        )
    refuse_gaps(column)
    return _own_names(column, texts, stated)


def _own_names(column: LabelColumn, texts: Mapping[Any, str], stated: Stated) -> Classes:
    """Return the classes of texts that nobody names: what is written differently is another class."""
    check_texts(column, texts, stated)
    names = tuple(sorted({tidy(text) for text in texts.values()}))
    at = {name: number for number, name in enumerate(names)}
    return Classes({label: at[tidy(text)] for label, text in texts.items()}, names, len(names))


_NUMBER = re.compile(r"(?:LABEL_)?([0-9]+)")


def _by_number(column: LabelColumn, numbers: Mapping[Any, int], stated: Names | None, heads: Heads) -> Classes:
    """Return the classes of numbered labels.

    Where the names of the classes are numbers, or begin with them (`1 star`), and are those of the labels, these are
    meant by value; else by position. Without names or heads, numbers that are not 0, 1, 2 ... are their own names.
    """
    if (by_value := _by_value(column, numbers, stated, heads)) is not None:
        return by_value
    if any(number < 0 for number in numbers.values()):
        hint = (
            f" If it is a class, say what each label means: data: {{labels: {{'{min(numbers.values())}': NAME, ...}}}}."
        )
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
            hint = f" Where they are counted from 1, say so: data: {{labels: {said}}}."
        wanted = f"0 to {width - 1}, since there are {width} classes"
        raise column.refuse(lambda value: numbers[value] >= width, wanted, hint)
    return Classes(numbers, stated, width)


def _by_value(column: LabelColumn, numbers: Mapping[Any, int], stated: Names | None, heads: Heads) -> Classes | None:
    """Return the classes of numbers that are the names of these; None where they can only be positions.

    Raises:
        UserError: The names are the recipe's, in the order of 0, 1, 2 ..., and the labels may be meant by value too.
    """
    names = stated or heads.ours or heads.theirs
    called = label_numbers(names or ())
    # Integers of a `ClassLabel` are positions among its names, whatever these are.
    if names is None or called is None or column.names or not numbers or not set(numbers.values()) <= set(called):
        return None
    place = {number: at for at, number in enumerate(called)}
    other = [number for number in sorted(set(numbers.values())) if place[number] != number]
    if other and all(0 <= number < len(names) for number in numbers.values()):
        number = other[0]
        either = f"the label {number} may be '{names[place[number]]}' or, counted from 0, '{names[number]}'"
        way_out = f"data: {{labels: {{'{number}': {names[number]}, ...}}}}"
        if stated and any(not name.strip().lstrip("+-").isdecimal() for name in names):
            raise UserError(f"{either}. Say which, for every label: {way_out}.", key="labels")
        logger.warning("%s: taken for the former. If the latter is meant, say so for every label: %s", either, way_out)
    if not stated:  # in the order of the numbers, which is that of a teacher without names
        called, names = zip(*sorted(zip(called, names, strict=True)), strict=True)
        place = {number: at for at, number in enumerate(called)}
    return Classes({value: place[number] for value, number in numbers.items()}, names, len(names))


def _look_up(texts: Sequence[str], names: Sequence[str]) -> dict[str, int | None]:
    """Return the position of each text among the names; case only counts where names differ in nothing else."""
    exact = {name: at for at, name in enumerate(names)}
    alike = {folded(name): at for at, name in enumerate(names)}
    loose = alike if len(alike) == len(names) else {}
    found = {text: exact.get(text, loose.get(folded(text))) for text in texts}
    ours, theirs = label_numbers(dict.fromkeys(texts)), label_numbers(names)
    if None not in found.values() or not ours or not theirs or not set(ours) <= set(theirs):
        return found
    if all(_NUMBER.fullmatch(text) for text in texts):
        return found  # bare numbers may be positions as well
    return {text: theirs.index(number) for text, number in zip(dict.fromkeys(texts), ours, strict=True)}
