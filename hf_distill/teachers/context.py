"""A teacher that reads another prompt than the student, before the same completions."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.component import component
from hf_distill.data.example_columns import ORIGIN, PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED
from hf_distill.data.loading import ALL
from hf_distill.data.two_tokenizers import ALIGNED_AT, APART, PadBoth, side_by_side
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives
from hf_distill.teachers.base import Teacher, under

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared, Setup, Task
    from hf_distill.teachers.prompted.prompts import Prompt

logger = logging.getLogger(__name__)

KEY = "teacher.context"
OTHERWISE = "the context changes how their completion is tokenised, or shown by the chat template"


@component
class Context:
    """What a teacher reads, and the student does not, before the same completions.

    Attributes:
        prompt: A Jinja template over the columns of a row: instructions, solved examples, a retrieved text
            (`{{ document }}`), the answer. It comes before a prompt that is a text. In a conversation it is the system
            turn, or comes before what that says.
        replace: Put it in place of the system turn, or of the whole prompt, which it may contain (`{{ prompt }}`).
    """

    prompt: str
    replace: bool = False

    @property
    def template(self) -> Prompt:
        """The template."""
        from hf_distill.teachers.prompted.prompts import Prompt  # whose room needs this file

        return Prompt(self.prompt)

    def apply(self, split: Dataset, beside: Dataset, name: str) -> Dataset:
        """Return a raw split with the context in its prompts.

        Args:
            split: Columns named by role: `prompt`, or `messages`.
            beside: The same rows, with further columns of the data.
            name: Of the split, for messages.

        Raises:
            UserError: The template names a column that is not there or cannot be rendered, or there are no prompts.
        """
        from hf_distill.tasks.conversations import with_system
        from hf_distill.tasks.text_tokens import PROMPT_IDS

        role = next((one for one in ("prompt", "messages", "conversations") if one in split.column_names), None)
        if role is None:
            raise UserError(
                "it comes before a prompt, and these are plain texts. Wanted columns 'prompt' and 'completion', or "
                "'messages'.",
                key=KEY,
            )
        template = self.template
        known = dict.fromkeys(one for one in (*split.column_names, *beside.column_names) if one != ORIGIN)
        with under(KEY):
            template.check_columns(known, name)
        columns = {one: (split if one in split.column_names else beside)[one][:] for one in template.columns}
        # A prompt may be a text although its completion is a list of messages.
        texts = role == "prompt" and all(isinstance(one, str | None) for one in split[:1].get("completion", ()))
        cells: list[Any] = []
        for at, cell in enumerate(split[role][:]):
            text = template.render({one: values[at] for one, values in columns.items()})
            if isinstance(cell, str) and texts:
                cells.append(text if self.replace else text + cell)
            else:
                place = f"row {at} of the {name} split"
                cells.append(with_system(cell, text, place, role, replace=self.replace))
        if role != "prompt":  # as text, since messages of several kinds have no common type
            cells = [json.dumps(one, ensure_ascii=False) for one in cells]
        # Ids of prompts, where the data has them, are those without the context.
        own = [one for one in (role, PROMPT_IDS) if one in split.column_names]
        return split.remove_columns(own).add_column(role, cells)


@component
class InContext(Teacher):
    """Base class of teachers that may read another prompt than the student.

    Attributes:
        context: What the teacher reads before the prompt of the student: `{prompt: TEMPLATE}`. Default: nothing.
    """

    context: Context | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the data that the context names, and all others, so that a wrong name is told beside them."""
        names = () if self.context is None else self.context.template.columns
        return (*names, ALL) if names else ()

    @property
    def reads_another_prompt(self) -> bool:
        """Whether it has a context."""
        return self.context is not None

    def check_task(self, task: Task) -> None:
        """Refuse a context where no completion follows a prompt, and a template that is not Jinja."""
        super().check_task(task)
        if self.context is None:
            return
        with under("context"):
            self.context.template.check_syntax()
        if not task.writes:
            raise UserError(
                f"it comes before a prompt that a completion follows, and {task.name} has none. Wanted "
                "text-generation.",
                key="context",
            )
        if getattr(task, "packing", False):
            raise UserError("packed blocks have no prompt that it comes before. Leave out task.packing.", key="context")

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse a context of a teacher with other tokens than the student's."""
        super().check_pair(task, every, pair)
        if self.context is not None and (pair.own_tokens or pair.cut is not None):
            raise UserError(
                "the teacher reads the tokens of the student's completions after it, and here each model has tokens of "
                "its own. Wanted a student with the teacher's tokenizer and all of its tokens.",
                key="context",
            )

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the teacher gives; with a context, of tokens at other positions."""
        return replace(super().gives(task, every, pair), own_tokens=self.context is not None)

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data; with a context, each example also as the teacher reads it.

        Raises:
            UserError: The data does not fit the task or the context.
        """
        if self.context is None:
            return super().prepare(task, splits, beside, setup, pair)
        if setup.completions.by in ("teacher", "mixture"):
            raise UserError(
                f"completions.by: {setup.completions.by} lets the teacher write, which would write without it. Wanted "
                "by: data or student.",
                key=KEY,
            )
        numbered = {name: one.add_column(ORIGIN, np.arange(len(one))) for name, one in splits.items()}
        ours = task.prepare(numbered, setup)
        read = {name: self.context.apply(one, beside[name], name) for name, one in numbered.items()}
        theirs = task.prepare(read, replace(setup, max_length=None))
        return self.freeze(_together(ours, theirs, Room.of(setup, pair))), None


# ---- The same completion at two places -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """How much the teacher can read.

    Attributes:
        tokens: Longest input; None for no limit.
        new_tokens: How many of them are kept for what a model writes.
    """

    tokens: int | None
    new_tokens: int = 0

    @classmethod
    def of(cls, setup: Setup, pair: Pair) -> Room:
        """Return how much the teacher of a run can read."""
        from hf_distill.models.tokenizers import longest_input

        limit = longest_input((pair.teacher,), (pair.tokenizer,))
        return cls(limit, setup.completions.max_new_tokens if setup.completions.in_training else 0)


def _together(ours: Prepared, theirs: Prepared, room: Room) -> Prepared:
    """Return data with each example as the student and as the teacher reads it.

    Args:
        ours: Without the context.
        theirs: With it.
        room: How much the teacher can read.
    """
    both = {name: _paired(getattr(ours, name), getattr(theirs, name), name, room) for name in ("train", "eval")}
    students = {name: side_by_side(student, teacher) for name, (student, teacher) in both.items()}
    teachers = {name: teacher for name, (_, teacher) in both.items()}
    return replace(
        ours,
        **students,
        collator=PadBoth(ours.collator, theirs.collator),
        for_teacher=replace(theirs, **teachers),
    )


def _paired(student: Dataset, teacher: Dataset, name: str, room: Room) -> tuple[Dataset, Dataset]:
    """Return the examples of a split that both models can read, with `aligned_at`, and the same for the teacher.

    Raises:
        UserError: There is none.
    """
    places = {key: at for at, key in enumerate(_keys(teacher))}
    kept, found, aligned, ends = [], [], [], []
    reasons: Counter[str] = Counter()
    for at, key in enumerate(_keys(student)):
        other = places.get(key)
        try:
            if other is None:
                raise _Dropped(OTHERWISE)
            positions, *end = align(student[at], teacher[other], room)
        except _Dropped as error:
            reasons[str(error)] += 1
            continue
        kept.append(at)
        found.append(other)
        aligned.append(positions)
        ends.append(end)
    if not kept:
        why = "; ".join(reasons) or "there are none"
        raise UserError(f"no example of the {name} split can be read with it: {why}.", key=KEY)
    for reason, count in reasons.items():
        logger.warning("%s of %s examples of the %s split are dropped: %s", count, len(student), name, reason)
    ours, theirs = student.select(kept).remove_columns([ORIGIN]), teacher.select(found).remove_columns([ORIGIN])
    return ours.add_column(ALIGNED_AT, aligned), _cut(theirs, ends)


class _Dropped(Exception):
    """An example is left out; the message says why."""


def _keys(split: Dataset) -> Iterator[tuple[int, int]]:
    """Yield of each example the row that it was made of, and which of the examples of that row it is."""
    seen: Counter[int] = Counter()
    for origin in split[ORIGIN][:]:
        yield origin, seen[origin]
        seen[origin] += 1


def align(student: Mapping[str, Any], teacher: Mapping[str, Any], room: Room) -> tuple[list[int], int, int]:
    """Return, for each label of an example, the teacher's position that predicts it; and what the teacher reads.

    The tokens that are learned are the same and in the same order for both models.

    Args:
        student: The example as the student reads it.
        teacher: The example as the teacher reads it.
        room: How much the teacher can read.

    Returns:
        Positions, `APART` for what is not learned; and how many tokens are the teacher's prompt, and all that it reads.

    Raises:
        _Dropped: The tokens differ, or there are too many.
    """
    ours = [at for at, label in enumerate(student["labels"]) if label != IGNORED]
    theirs = [at for at, label in enumerate(teacher["labels"]) if label != IGNORED][: len(ours)]
    read = teacher["input_ids"]
    if [student["input_ids"][at] for at in ours] != [read[at] for at in theirs]:
        raise _Dropped(OTHERWISE)
    prompt = teacher.get(PROMPT_LENGTH, theirs[0] if theirs else len(read))
    end = max(prompt, theirs[-1] + 1 if theirs else 0)
    if room.tokens is not None and max(end, prompt + room.new_tokens) > room.tokens:
        raise _Dropped(f"with the context the teacher would read more than its {room.tokens} tokens")
    positions = [APART] * len(student["labels"])
    for mine, other in zip(ours, theirs, strict=True):
        positions[mine] = other - 1
    return positions, prompt, end


def _cut(split: Dataset, ends: Sequence[Sequence[int]]) -> Dataset:
    """Return the teacher's examples without the tokens after the last one that the student learns.

    Args:
        split: The examples.
        ends: Of each, the number of tokens of its prompt, and of all that is read.
    """
    from datasets import Value

    prompts, lengths = zip(*ends, strict=True)
    names = ("input_ids", "labels")
    made = {name: [row[:end] for row, end in zip(split[name][:], lengths, strict=True)] for name in names}
    for name, values in {**made, "length": lengths, PROMPT_LENGTH: prompts}.items():
        feature = split.features.get(name, Value("int64"))
        rest = split.remove_columns([name]) if name in split.column_names else split
        split = rest.add_column(name, list(values), feature=feature)
    return split
