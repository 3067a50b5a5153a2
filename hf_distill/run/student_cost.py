"""Chooses the shape of a student that is asked for by what it may cost, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.component import settings
from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.models.outline import outline
from hf_distill.models.parts import Parts
from hf_distill.objectives.guard import guarded
from hf_distill.recipe.writer import describe_entry, student_entry
from hf_distill.report.text import milliseconds
from hf_distill.run.pairing import open_teacher
from hf_distill.teachers.base import described

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.students.base import Student
    from hf_distill.students.cost import Cost


# Keys of the last student of a chain, in a stored recipe, that are not of its entry.
OF_LINK = ("objectives", "training")


class Timed(NamedTuple):
    """Median times of a forward pass, in milliseconds, measured in turns."""

    student: float
    teacher: float


# The shape with the student's configuration in, the times of the two models out.
Timing = Callable[["PretrainedConfig"], Timed]


@dataclass
class _Choice:
    """The shapes among which the run chooses, and what is known of each by its index.

    Attributes:
        recipe: The recipe, whose student is asked for by its cost.
        cost: That cost.
        teacher: Configuration of the teacher.
        shapes: The entries, the cheapest first.
    """

    recipe: Recipe
    cost: Cost
    teacher: PretrainedConfig
    shapes: Sequence[Student]
    _parts: dict[int, Parts] = field(default_factory=dict)

    def parts(self, index: int) -> Parts:
        """Return how many parameters a shape has."""
        if index not in self._parts:
            self._parts[index] = _parts(self.recipe, self.shapes[index].config(self.teacher))
        return self._parts[index]

    @property
    def teachers(self) -> list[PretrainedConfig]:
        """Configurations of the teacher's models.

        Raises:
            UserError: It has none.
        """
        found = described(self.recipe.teacher, self.teacher)
        if not found:
            raise UserError(
                f"there is no teacher model beside the student of which {self.cost.value} could be a share. Say the "
                "number of parameters instead: parameters: 20M.",
                key=self.key,
            )
        return found

    @property
    def depth(self) -> int:
        """Inside how many entries the one is that has a shape and a cost."""
        return sum(one.cost is not None for one in self.recipe.student.every_entry()) - 1

    @property
    def key(self) -> str:
        """Recipe key of the cost below `student`, which may be that of an entry inside the student's."""
        return "student." * self.depth + self.cost.kind

    def sized(self, student: Student) -> Student:
        """Return the entry that has the shape: the student itself, or one inside it."""
        return list(student.every_entry())[self.depth]

    def in_words(self, index: int) -> str:
        """Return what distinguishes a shape from the entry in the recipe: `layers 3`."""
        asked, shaped = (settings(self.sized(one)) for one in (self.recipe.student, self.shapes[index]))
        own = {key: value for key, value in shaped.items() if asked.get(key) != value}
        return describe_entry({key: value for key, value in own.items() if key != "chosen_for"})


def choose_student(
    recipe: Recipe, held: Mapping[str, Any] | None, timing: Callable[[Recipe], Timing] | None
) -> tuple[Student, str]:
    """Return the largest student that does not cost more than the recipe allows, and a line about it.

    A run that began with one of the shapes, chosen for the same cost, keeps it.

    Args:
        recipe: The recipe, whose student has a `cost`.
        held: The recipe stored in the output directory, if there is a run to resume.
        timing: Returns what measures the shapes of a recipe's student; None if nothing is to be measured. A shape is
            then guessed by its number of parameters outside the embeddings.

    Raises:
        UserError: Even the smallest costs more; the message says how much.
    """
    cost = recipe.student.cost
    assert cost is not None
    teacher = open_teacher(recipe)
    with recipe.locate("student"), guarded(recipe.student, "student"):
        choice = _Choice(recipe, cost, teacher, list(recipe.student.shapes(teacher)))
        student, line = _chosen(choice, held, timing)
    outer = [one.name for one in list(recipe.student.every_entry())[: choice.depth]]
    return student, line + (f"; before {' and '.join(outer)} is applied to it" if outer else "")


def _chosen(
    choice: _Choice, held: Mapping[str, Any] | None, timing: Callable[[Recipe], Timing] | None
) -> tuple[Student, str]:
    begun = _begun(choice, held)
    if begun is not None:
        return choice.shapes[begun], f"student: {choice.in_words(begun)}, for {choice.cost} (as this run began)"
    if choice.cost.kind != "latency":
        return _by_parameters(choice)
    _check_timed(choice)
    return _guessed(choice) if timing is None else _by_latency(choice, timing)


def _begun(choice: _Choice, held: Mapping[str, Any] | None) -> int | None:
    """Return the shape with which a run began that is resumed; None if there is none, or not for this cost."""
    last = ((held or {}).get("chain") or [{}])[-1]
    student = (held or {}).get("student") or {key: value for key, value in last.items() if key not in OF_LINK}
    entries = map(student_entry, choice.shapes) if student else ()
    return next((index for index, entry in enumerate(entries) if entry == student), None)


def _largest(shapes: Sequence[Student], costs: Callable[[int], float], limit: float) -> int | None:
    """Return the last shape that costs at most `limit`; None if the first costs more.

    By bisection, since every shape costs at least as much as the one before. The one that is returned was asked for its
    cost.
    """
    within, above = -1, len(shapes)
    while above - within > 1:
        middle = (within + above) // 2
        if costs(middle) <= limit:
            within = middle
        else:
            above = middle
    return within if within >= 0 else None


def _by_parameters(choice: _Choice) -> tuple[Student, str]:
    cost = choice.cost
    whole = sum(_parts(choice.recipe, one).total for one in choice.teachers) if cost.kind == "size" else None
    limit = cost.limit if whole is None else cost.limit * whole
    found = _largest(choice.shapes, lambda index: choice.parts(index).total, limit)

    def told(index: int) -> str:
        parts = choice.parts(index)
        share = "" if whole is None else f", {_up(parts.total / whole)} of the teacher's {count(whole)}"
        return f"{choice.in_words(index)}, {count(parts.total)} parameters{share}"

    if found is None:
        embeddings = round(100 * choice.parts(0).share_of_embeddings)
        raise _too_much(choice, f"{told(0)}; {embeddings} % of them are embeddings")
    return choice.shapes[found], f"student: {cost} is met by {told(found)}"


def _by_latency(choice: _Choice, timing: Callable[[Recipe], Timing]) -> tuple[Student, str]:
    time = timing(replace(choice.recipe, student=choice.shapes[0]))
    measured: dict[int, Timed] = {}

    def share(index: int) -> float:
        measured[index] = time(choice.shapes[index].config(choice.teacher))
        return measured[index].student / measured[index].teacher

    found = _largest(choice.shapes, share, choice.cost.limit)

    def told(index: int) -> str:
        one = measured[index]
        times = f"{milliseconds(one.student)} of {milliseconds(one.teacher)}"
        return f"{choice.in_words(index)}, {_up(one.student / one.teacher)} of the teacher's time ({times})"

    if found is None:
        raise _too_much(choice, told(0))
    return choice.shapes[found], f"student: {choice.cost} is met by {told(found)}, measured on this machine"


def _guessed(choice: _Choice) -> tuple[Student, str]:
    """Return the shape that probably meets a latency: time goes with the parameters outside the embeddings."""
    (teacher,) = (_parts(choice.recipe, one) for one in choice.teachers)
    limit = choice.cost.limit * (teacher.total - teacher.embeddings)
    found = _largest(choice.shapes, lambda at: choice.parts(at).total - choice.parts(at).embeddings, limit) or 0
    return choice.shapes[found], (
        f"student: {choice.cost} is measured when the run begins; guessed here, by the parameters outside the "
        f"embeddings: {choice.in_words(found)}"
    )


def _check_timed(choice: _Choice) -> None:
    """Refuse a teacher whose time is not that of a model of its shape, on the student's inputs."""
    members = [one for _, one in choice.recipe.teacher.members()]
    if choice.teachers and (len(members) > 1 or any(one.own_inputs for one in members)):
        why = "it is several models" if len(members) > 1 else "it makes its own inputs"
    elif choice.recipe.teacher.is_quantized:
        why = "its weights are quantized"
    else:
        return
    raise UserError(
        f"the time of this teacher cannot be measured before it is loaded: {why}. Ask for size or parameters instead.",
        key=choice.key,
    )


def _too_much(choice: _Choice, nearest: str) -> UserError:
    student = choice.recipe.student
    hints = {getattr(one, "smaller", "") for one in student.every_entry()} - {""}
    return UserError(
        f"{choice.cost.value}: no student of {choice.sized(student).name} costs so little. The nearest is {nearest}. "
        f"Ask for that{', or take another student: ' + ' '.join(sorted(hints)) if hints else '.'}",
        key=choice.key,
    )


def _parts(recipe: Recipe, config: PretrainedConfig) -> Parts:
    return Parts.of(outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code))


def _up(share: float) -> float:
    """Return a share with three digits after the point, rounded up: asked for, it is met.

    >>> _up(0.76601), _up(0.5)
    (0.767, 0.5)
    """
    return math.ceil(round(share * 1000, 6)) / 1000
