"""What the logs of a training say about the completions that are written in it, and when they warn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain

import torch

from hf_distill import parallel
from hf_distill.completions.sampling import Completion
from hf_distill.completions.statistics import Written, acceptance, describe, top_overlap
from hf_distill.objectives import divergences
from hf_distill.objectives.functional import log_distributions
from hf_distill.rows.base import MixtureRows, Rows, SparseRows

logger = logging.getLogger(__name__)

# Rows of a step on which the two models are compared, beside the loss: enough for a curve, cheap for any vocabulary.
LOOKED_AT = 32
# Share of repeated runs of tokens above which completions count as loops.
LOOPING = 0.5
FIGURES = ("own_reverse_kl", "own_forward_kl", "own_acceptance", "own_overlap", "own_teacher_mass", "own_student_mass")


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
        self._sums = torch.zeros(len(FIGURES) + 1, dtype=torch.float32, device=device)
        self._looks = False
        self._warned: set[str] = set()

    def add(self, completions: Sequence[Completion]) -> None:
        """Count the completions that were written for a step."""
        # The text itself is as large as the data: a hash of it tells completions apart as well.
        for one in completions:
            counted = Written.of(one.ids, one.ended)
            self._written.append(Written(counted.length, counted.ended, counted.repeated, counted.runs, hash(one.ids)))

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
        few = rows.first(LOOKED_AT).at(1.0)
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
        own = (few.labels < 0).to(log_p)  # a token with a label is one of the data
        sums = torch.stack([*((one * own).sum() for one in values), own.sum()])
        self._sums += sums.to(self._sums)

    def read(self) -> dict[str, float]:
        """Return the figures of all processes since the last call, and start again; all processes must call this."""
        written = list(chain.from_iterable(parallel.from_all(self._written)))
        *sums, rows = parallel.summed(self._sums).tolist()
        figures = describe(written)
        if rows:
            known = zip(FIGURES, sums, strict=True)
            figures |= {name: total / rows for name, total in known if not math.isnan(total)}
        if any(self._staleness):
            figures["staleness"] = sum(self._staleness) / len(self._staleness)
        if figures and parallel.is_first():
            self._warn(figures, len(written))
        self._written, self._staleness = [], []
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
