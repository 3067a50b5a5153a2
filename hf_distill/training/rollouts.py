"""Completions that are written while the student trains: once for all micro-batches of an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_distill import parallel
from hf_distill.completions.backends import Writer
from hf_distill.completions.sampling import Completion
from hf_distill.completions.section import Completions
from hf_distill.data.example_columns import EXAMPLE_COLUMNS, PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Uncollated:
    """The examples of a micro-batch before they are padded. Not a list, in which accelerate would look for tensors.

    Attributes:
        examples: The tokenised rows.
    """

    examples: list[Example]


class Rollouts:
    """Replaces the completions of a step's examples by those that a model writes.

    What is drawn depends on the seed, the step and the weights alone, so that a resumed training writes the same.

    Args:
        completions: The section of the recipe.
        writer: Writes with the student.
        seed: Seed of the training.
    """

    def __init__(self, completions: Completions, writer: Writer, seed: int) -> None:
        self.completions, self.writer, self._seed = completions, writer, seed

    def of_step(self, batches: Sequence[Uncollated], step: int) -> list[list[Example]]:
        """Return the examples of the micro-batches of this process with the completions to learn.

        Args:
            batches: The micro-batches of the step.
            step: Number of optimiser steps before this one.

        Raises:
            UserError: An example has no prompt.
        """
        flags = [self._written(number, len(batch.examples), step) for number, batch in enumerate(batches)]
        sizes = [len(batch.examples) for batch in batches]
        rows = [dict(example) for batch in batches for example in batch.examples]
        every = self.completions.per_prompt
        places = [place for place, written in enumerate(flag for batch in flags for flag in batch) if written]
        prompts = [prompt_of(rows[places[number - number % every]]) for number in range(len(places))]
        written = self.writer.write(prompts, self.completions.sampling, self._draws(step)) if prompts else []
        for number, (place, completion) in enumerate(zip(places, written, strict=True)):
            rows[place] = with_completion(rows[places[number - number % every]], completion)
        made = iter(rows)
        return [[next(made) for _ in range(size)] for size in sizes]

    def _written(self, number: int, rows: int, step: int) -> Iterator[bool]:
        """Yield of each row of a micro-batch whether its completion is written.

        The draws are those of the whole step, in the order of its rows over all processes, whatever the batch split.
        """
        if self.completions.share == 1.0:
            yield from [True] * rows
            return
        first = (number * parallel.processes() + parallel.rank()) * rows
        generator = torch.Generator().manual_seed(_seed(self._seed, step, "share"))
        draws = torch.rand(first + rows, generator=generator, dtype=torch.float64)[first:]
        yield from (draws < self.completions.share).tolist()

    def _draws(self, step: int) -> int:
        return _seed(self._seed, step, parallel.rank())


def _seed(*parts: Any) -> int:
    return int(fingerprint(*parts)[:15], 16)


def prompt_of(example: Example) -> list[int]:
    """Return the tokens of an example before its completion.

    Raises:
        UserError: There are none.
    """
    ids, labels = list(example["input_ids"]), example.get("labels")
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
    return ids[:length]


def with_completion(example: Example, completion: Completion) -> dict[str, Any]:
    """Return an example with another completion, whose tokens count for the teacher but not for `labels`."""
    prompt = prompt_of(example)
    kept = {name: example[name] for name in EXAMPLE_COLUMNS if name in example}
    return {
        **kept,
        "input_ids": [*prompt, *completion.ids],
        "labels": [IGNORED] * len(prompt) + [UNLABELLED] * len(completion.ids),
        PROMPT_LENGTH: len(prompt),
    }
