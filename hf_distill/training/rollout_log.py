"""What the logs of a training say about the completions that are written in it, and when they warn."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from hf_distill import parallel
from hf_distill.completions.sampling import Completion
from hf_distill.completions.statistics import Written, acceptance, describe, top_overlap
from hf_distill.data.label_names import IGNORED
from hf_distill.data.two_tokenizers import ALIGNED_AT, APART
from hf_distill.objectives import divergences
from hf_distill.objectives.functional import log_distributions
from hf_distill.rows.base import MixtureRows, Rows, SparseRows

logger = logging.getLogger(__name__)

# Rows of a step on which the two models are compared, beside the loss: enough for a curve, cheap for any vocabulary.
LOOKED_AT = 32
# Share of repeated runs of tokens above which completions count as loops.
LOOPING = 0.5
# Share of the written tokens that are compared with a teacher of another tokenizer, below which most teach nothing.
HALF = 0.5
# Completions by which warnings judge: of a few, all may be alike by chance.
JUDGED_BY = 32
FIGURES = ("own_reverse_kl", "own_forward_kl", "own_acceptance", "own_overlap", "own_teacher_mass", "own_student_mass")
# With a teacher of another tokenizer: its probability of all tokens for which the student has one.
SHARED_MASS = "shared_mass"


class RolloutLog:
    """Adds up what is logged of completions since the last log.

    Args:
        device: Where the training runs.
        ends: Whether completions should end by themselves; not those of plain texts.
    """

    def __init__(self, device: torch.device, *, ends: bool = True) -> None:
        self._ends = ends
        self._written: list[Written] = []
        self._staleness: list[int] = []
        # Of a few rows in each step: the sum of each figure, and the number of rows.
        self._sums = torch.zeros(len(FIGURES) + 2, dtype=torch.float32, device=device)
        # Of each completion that a teacher of another tokenizer reads: the tokens that count, and those compared.
        self._compared: list[tuple[int, int]] = []
        self._mapped = False
        self._looks = False
        self._warned: set[str] = set()
        # The last ones of all processes, however many steps lie between two logs.
        self._recent: deque[Written] = deque(maxlen=8 * JUDGED_BY)

    def add(self, completions: Sequence[Completion]) -> None:
        """Count the completions that were written for a step."""
        # The text itself is as large as the data: a hash of it tells completions apart as well.
        for one in completions:
            counted = Written.of(one.ids, one.ended)
            self._written.append(Written(counted.length, counted.ended, counted.repeated, counted.runs, hash(one.ids)))

    def add_compared(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Count which tokens are compared with a teacher of another tokenizer.

        Args:
            examples: With the completions of a step.
        """
        for one in examples:
            counts = sum(label != IGNORED for label in one["labels"])
            self._compared.append((counts, sum(place != APART for place in one[ALIGNED_AT])))

    def begin_step(self, staleness: int) -> None:
        """Note how many steps ago the completions of this step were written."""
        self._staleness.append(staleness)
        self._looks = True

    @torch.no_grad()
    def look(self, rows: Rows) -> None:
        """Compare the models on a few rows that the student wrote; once a step, whatever the number of micro-batches.

        Args:
            rows: The rows of a micro-batch.
        """
        if not self._looks:
            return
        self._looks = False
        given = rows.first(LOOKED_AT).compared
        few = given.at(1.0)
        teacher = few.teacher.at(1.0) if isinstance(few.teacher, MixtureRows) else few.teacher
        if teacher is None or (isinstance(teacher, SparseRows) and not _comparable(teacher)):
            return
        log_p, log_q = log_distributions(few.student, teacher)
        # Of some tokens and a bucket, the likeliest of each model would nearly all be the same.
        tops = top_overlap(log_p, log_q) if log_p.shape == few.student.shape else [log_p[:, 0] * torch.nan] * 3
        values = [
            divergences.kl(log_q, log_p),
            divergences.kl(log_p, log_q),
            acceptance(log_p, log_q),
            *tops,
        ]
        shared = torch.ones_like(values[0])
        if given.mapping is not None and isinstance(given.teacher, torch.Tensor):
            self._mapped, shared = True, given.mapping.shared_mass(given.teacher).to(shared)
        values.append(shared)
        own = (given.labels < 0).to(log_p)  # a token with a label is one of the data
        sums = torch.stack([*((one * own).sum() for one in values), own.sum()])
        self._sums += sums.to(self._sums)

    def read(self) -> dict[str, float]:
        """Return the figures of all processes since the last call, and start again; all processes must call this."""
        written = list(chain.from_iterable(parallel.from_all(self._written)))
        *sums, rows = parallel.summed(self._sums).tolist()
        figures = describe(written)
        if rows:
            known = zip((*FIGURES, SHARED_MASS), sums, strict=True)
            found = {name: total / rows for name, total in known if not math.isnan(total)}
            figures |= {name: one for name, one in found.items() if self._mapped or name != SHARED_MASS}
        figures |= _coverage([*chain.from_iterable(parallel.from_all(self._compared))])
        if any(self._staleness):
            figures["staleness"] = sum(self._staleness) / len(self._staleness)
        self._recent += written
        if figures and parallel.is_first():
            judged = describe([*self._recent]) if len(self._recent) >= JUDGED_BY else {}
            self._warn({**figures, **judged}, len(self._recent) if judged else 0)
        self._written, self._staleness, self._compared = [], [], []
        self._sums.zero_()
        return figures

    def _warn(self, figures: dict[str, float], number: int) -> None:
        for key, text in _alarms(figures, number):
            if key not in self._warned and (self._ends or key != "ended"):
                self._warned.add(key)
                logger.warning("%s", text)


def _comparable(teacher: SparseRows) -> bool:
    """Whether there is a distribution at temperature 1; a teacher that gives one number a token has none."""
    return teacher.temperature == 1.0 and teacher.indices.shape[-1] > 0


def _coverage(compared: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return the shares of written tokens that are compared, and of completions of which none is.

    >>> _coverage([(4, 3), (0, 0), (4, 0)])
    {'compared_tokens': 0.375, 'not_aligned': 0.5}
    """
    written = [one for one in compared if one[0]]
    if not written:
        return {}
    tokens, found = (sum(numbers) for numbers in zip(*written, strict=True))
    without = sum(not one for _, one in written)
    return {"compared_tokens": found / tokens, "not_aligned": without / len(written)}


def _alarms(figures: dict[str, float], number: int) -> list[tuple[str, str]]:
    """Return what is wrong with completions, with a key for each."""
    if number < 2:
        return []
    found = []
    if not figures["completion_length"]:
        found.append(("empty", f"all {number} completions are empty: the student ends every text at once"))
    elif not figures["ended"]:
        found.append(
            (
                "ended",
                f"none of {number} completions has an end: the student does not stop, or completions.max_new_tokens is "
                "too small. Compare the end-of-text tokens of both models, or train on the data first",
            )
        )
    if figures.get("compared_tokens", 1.0) < HALF:
        found.append(
            (
                "apart",
                f"only {figures['compared_tokens']:.0%} of the tokens in {number} completions are compared, as the "
                "teacher splits the others otherwise; they teach nothing. Set task: {alignment: prefix}, or choose a "
                "teacher of the student's family",
            )
        )
    if figures["repeated_4grams"] > LOOPING:
        found.append(
            (
                "loops",
                f"{figures['repeated_4grams']:.0%} of the runs of four tokens in {number} completions are repetitions: "
                "the student writes in loops. Lower the learning rate, or train on the data first (stages)",
            )
        )
    if round(figures["distinct"] * number) == 1 and figures["completion_length"]:
        found.append(("same", f"all {number} completions are the same, whatever the prompt. Lower the learning rate"))
    return found
