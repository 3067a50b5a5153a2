"""Completions that are written while the student trains: once for all micro-batches of an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, islice
from typing import Any, NamedTuple

import torch

from hf_distill import parallel
from hf_distill.completions.backends import Writer
from hf_distill.completions.sampling import Completion
from hf_distill.completions.section import Completions
from hf_distill.data.example_columns import EXAMPLE_COLUMNS, PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.rereading import Rereading
from hf_distill.data.two_tokenizers import ALIGNED_AT, APART, MARK, PREFIX, SPAN, TEACHER_PROMPT, TEACHER_SPAN
from hf_distill.errors import UserError, under
from hf_distill.files.fingerprint import fingerprint
from hf_distill.training.rollout_log import RolloutLog
from hf_distill.training.token_batches import Example, Uncollated


class Sized(NamedTuple):
    """A collated micro-batch and its number of examples."""

    batch: Any
    size: int


class Rollouts:
    """Replaces the completions of a step's examples by those that a model writes.

    What is drawn depends on the seed, the step and the weights alone, so that a resumed training writes the same.
    With `reuse`, the same micro-batches are trained on for several steps; a checkpoint between them holds the examples.

    Args:
        completions: The section of the recipe.
        writer: Writes with the student.
        seed: Seed of the training.
        device: Where the training runs; the CPU if left out.
        special: Special tokens, which `Completions.special_tokens` may leave out.
        rereading: Says what a teacher with another tokenizer reads of a completion; None where both have the same.
    """

    def __init__(
        self,
        completions: Completions,
        writer: Writer,
        seed: int,
        device: torch.device | None = None,
        special: Iterable[int] = (),
        rereading: Rereading | None = None,
    ) -> None:
        self._rereading = rereading
        self._skipped = frozenset() if completions.special_tokens else frozenset(special)
        self.completions, self.writer, self._seed = completions, writer, seed
        self.log = RolloutLog(device or torch.device("cpu"), ends=completions.prompt_tokens is None)
        # The step before which the present examples were written; None if there are none.
        self._written_at: int | None = None
        self._examples: list[Example] = []
        self._batches: list[Sized] = []

    def begin(self) -> None:
        """Forget the examples of an earlier training."""
        self._written_at, self._examples, self._batches = None, [], []

    def batches(
        self,
        given: Sequence[Uncollated],
        step: int,
        collate: Callable[[list[list[Example]]], list[Any]],
        follow: Callable[[], None],
    ) -> list[Any]:
        """Return the micro-batches of a step, with completions that are written now or were written for an earlier one.

        Args:
            given: The micro-batches of this process as the data has them.
            step: Number of optimiser steps before this one.
            collate: Makes the micro-batches, with all that is asked once for a step.
            follow: Called before something is written: lets the writer take over the weights of the model.

        Raises:
            UserError: An example has no prompt.
        """
        sizes = [len(batch.examples) for batch in given]
        if not self._holds(sum(sizes), step):
            with under("completions"):
                follow()
                self._examples = self.of_step(given, step)
            self._written_at, self._batches = step, []
        assert self._written_at is not None
        self.log.begin_step(step - self._written_at)
        if [one.size for one in self._batches] != sizes:
            rows = iter(self._examples)
            parts = [[next(rows) for _ in range(size)] for size in sizes]
            self._batches = [Sized(batch, size) for batch, size in zip(collate(parts), sizes, strict=True)]
        found = [one.batch for one in self._batches]
        if self.completions.reuse == 1:
            self.begin()
        return found

    def _holds(self, rows: int, step: int) -> bool:
        at = self._written_at
        return at is not None and at <= step < at + self.completions.reuse and len(self._examples) >= rows

    def of_step(self, batches: Sequence[Uncollated], step: int) -> list[Example]:
        """Return the examples of this process in a step, with completions that are written now.

        Args:
            batches: The micro-batches of the step.
            step: Number of optimiser steps before this one.

        Raises:
            UserError: An example has no prompt.
        """
        rows: list[Example] = [example for batch in batches for example in batch.examples]
        every = self.completions.per_prompt
        places = [
            place
            for place, written in enumerate(self._written([len(one.examples) for one in batches], step))
            if written
        ]
        asked = [rows[places[number - number % every]] for number in range(len(places))]
        prompts = [prompt_of(one) for one in asked]
        written = self.writer.write(prompts, self.completions.sampling, self._draws(step)) if prompts else []
        self.log.add(written)
        made = {
            place: with_completion(*one, self._skipped, self._rereading)
            for place, one in zip(places, zip(asked, written, strict=True), strict=True)
        }
        if self._rereading is not None:
            self.log.add_compared(made.values())
        return [made.get(place, row) for place, row in enumerate(rows)]

    def _written(self, sizes: Sequence[int], step: int) -> list[bool]:
        """Return of each row of a step whether its completion is written.

        The draws are those of the whole step, in the order of its rows over all processes, whatever the batch split.

        Args:
            sizes: Numbers of rows of the micro-batches, which are those of every process.
            step: Number of optimiser steps before this one.
        """
        if self.completions.share == 1.0:
            return [True] * sum(sizes)
        processes = parallel.processes()
        generator = torch.Generator().manual_seed(_seed(self._seed, step, "share"))
        draws = torch.rand(sum(sizes) * processes, generator=generator, dtype=torch.float64) < self.completions.share
        every = iter(draws.tolist())
        rows = [[list(islice(every, size)) for _ in range(processes)] for size in sizes]
        return [one for ranks in rows for one in ranks[parallel.rank()]]

    def _draws(self, step: int) -> int:
        return _seed(self._seed, step, parallel.rank())

    def figures(self) -> dict[str, float]:
        """Return what is logged of completions since the last call; all processes must call this."""
        return {**self.log.read(), **self.writer.figures()}

    # ---- Checkpoints ----

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, of all processes, which must call this together; mostly nothing."""
        if self.completions.reuse == 1 or self._written_at is None:
            return {}
        return {"written_at": self._written_at, "examples": parallel.from_all(self._examples)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the examples of a checkpoint; without a state, or of another number of processes, write anew."""
        self.begin()
        if state and len(state["examples"]) == parallel.processes():
            self._written_at, self._examples = state["written_at"], state["examples"][parallel.rank()]


def _seed(*parts: Any) -> int:
    return int(fingerprint(*parts)[:15], 16)


def prompt_of(example: Example) -> list[int]:
    """Return the tokens of an example before its completion, without padding.

    Raises:
        UserError: There are none.
    """
    ids, labels, attended = example["input_ids"], example.get("labels"), example.get("attention_mask")
    if attended is not None:
        ids = [*compress(ids, attended)]
        labels = None if labels is None else [*compress(labels, attended)]
    length = example.get(PROMPT_LENGTH)
    if length is None:
        length = len(ids)
        if labels is not None:
            length = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
    if not length:
        raise UserError(
            "an example has no prompt to complete. Wanted rows with 'prompt_length' tokens of a prompt, or whose "
            "first labels are -100."
        )
    return list(ids[:length])


def with_completion(
    example: Example,
    completion: Completion,
    skipped: frozenset[int] = frozenset(),
    rereading: Rereading | None = None,
) -> dict[str, Any]:
    """Return an example with another completion, whose tokens count for the teacher but not for `labels`.

    Args:
        example: The example.
        completion: What a model wrote.
        skipped: Tokens that do not count at all, such as special ones.
        rereading: Says what a teacher with another tokenizer reads of it; None where both have the same.

    Raises:
        UserError: It has no prompt, or none of such a teacher, or a teacher's tokens, which are those of another text.
    """
    prompt = prompt_of(example)
    kept = {name: example[name] for name in EXAMPLE_COLUMNS if name in example}
    labels = [IGNORED if one in skipped else UNLABELLED for one in completion.ids]
    if rereading is not None:
        kept |= _reread(example, len(prompt), completion, labels, rereading)
    elif TEACHER_PROMPT in example:
        kept |= teacher_columns(example, len(prompt), completion)
    elif MARK in example:
        raise UserError(
            "each model has tokens of its own, and what the student writes has the student's alone. Take a teacher "
            "with the student's tokenizer, or let the student write before the training: hf-distill generate.",
            key="by",
        )
    return {
        **kept,
        "input_ids": [*prompt, *completion.ids],
        "labels": [IGNORED] * len(prompt) + labels,
        PROMPT_LENGTH: len(prompt),
    }


def teacher_columns(example: Example, prompt: int, completion: Completion) -> dict[str, Any]:
    """Return the columns of a teacher that reads another prompt before the same completion.

    Args:
        example: The example with another completion.
        prompt: Length of the student's prompt.
        completion: What was written.
    """
    length = example[TEACHER_PROMPT]
    first, end = length - 1, length - 1 + len(completion.ids)
    return {
        MARK: [*example[MARK][:length], *completion.ids],
        TEACHER_PROMPT: length,
        ALIGNED_AT: [APART] * prompt + [*range(first, end)],
    }


def _reread(
    example: Example, prompt: int, completion: Completion, labels: Sequence[int], rereading: Rereading
) -> dict[str, Any]:
    """Return the columns of a teacher with another tokenizer, which reads the completion after its own prompt.

    Args:
        example: The example with another completion.
        prompt: Length of the student's prompt.
        completion: What was written.
        labels: Of its tokens; -100 for one that does not count.
        rereading: Says what the teacher reads.

    Raises:
        UserError: The example has no prompt of the teacher.
    """
    if TEACHER_PROMPT not in example or MARK not in example:
        raise UserError(
            f"an example has no prompt in the teacher's tokens. Wanted: columns '{MARK}' and '{TEACHER_PROMPT}', as "
            "the task text-generation makes them."
        )
    length = example[TEACHER_PROMPT]
    # A teacher without a prompt reads one token that stands for nothing.
    before = list(example[MARK][: max(1, length)])
    read = rereading(completion.ids, length)
    at = [place if label != IGNORED else APART for place, label in zip(read.at, labels, strict=True)]
    gone = {group for group, label in zip(read.span, labels, strict=True) if label == IGNORED}
    span, their_span = ([-1 if group in gone else group for group in groups] for groups in (read.span, read.their_span))
    # A batch has these for every row or for none, and those of the data may be gone.
    beside = {
        f"{PREFIX}labels": [IGNORED] * len(before) + [UNLABELLED] * len(read.ids),
        SPAN: [-1] * prompt + span,
        TEACHER_SPAN: [-1] * len(before) + their_span,
    }
    return {
        MARK: [*before, *read.ids],
        TEACHER_PROMPT: length,
        ALIGNED_AT: [APART] * prompt + at,
        **{name: column for name, column in beside.items() if name in example},
    }
