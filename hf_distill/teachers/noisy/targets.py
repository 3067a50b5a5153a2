"""Asks private teachers about public rows, once: the noisy answers are stored, and read back in training."""

from __future__ import annotations

import io
import json
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill import parallel
from hf_distill.cache.replay import LEAST, Data
from hf_distill.data.example_columns import without_examples
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.data.labelled import has_label
from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.ownership import ANSWERS
from hf_distill.models.target_model import TargetSource
from hf_distill.teachers.given.cache import with_rows
from hf_distill.teachers.noisy.privacy import PrivacyBudget, PrivacyTerms
from hf_distill.teachers.noisy.voters import GIVES, PrivateTeachers
from hf_distill.teachers.noisy.votes import answers

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_distill.teachers.base import Storing

Array = NDArray[Any]


class NoisyAnswers:
    """The answers of private teachers, in one file of the run's directory.

    A run that is resumed reads them: to ask again would cost epsilon again. Answers that other recipes got in the same
    directory count towards the budget.

    Args:
        terms: How they are asked.
        teachers: The trained teachers.
        storing: Data and arguments of the run.
    """

    def __init__(self, terms: PrivacyTerms, teachers: PrivateTeachers, storing: Storing) -> None:
        self.terms, self.teachers, self.storing = terms, teachers, storing
        self.found = False
        self.path = Path(str(storing.args.output_dir)).expanduser() / ANSWERS
        data = storing.data
        self._public = np.flatnonzero(~has_label(data.train))
        key = fingerprint(
            [Path(folder).name for folder in teachers.folders],
            [dataset_fingerprint(without_examples(split)) for split in (data.train.select(self._public), data.eval)],
            asdict(terms),
        )
        self.file = self.path / f"{key}.npz"

    @property
    def size(self) -> int:
        """Size of the file in bytes, approximately: an index and a class for each row that may be answered."""
        return 16 * len(self._public)

    def in_words(self) -> str:
        """Return what was asked and answered, and what it cost."""
        told = self.teachers.privacy
        return (
            f"{told['answered']:,} of {told['asked']:,} rows answered, {told['mechanism']}; epsilon at most "
            f"{told['epsilon']:.3g} at delta {told['delta']:g}"
        )

    def fill(self, args: TrainingArguments) -> None:
        """Ask the teachers, or read their answers if they were asked before.

        Raises:
            UserError: No query fits the budget, no row was answered, or a file of answers is damaged.
        """
        self.found = parallel.asked_once(self.file.exists)
        if not self.found:
            budget, earlier = parallel.asked_once(self._budget)
            order = np.random.default_rng(self.terms.seed).permutation(self._public)[: budget.reach]
            votes, sums, evaluated = self._ask(order, args)
            parallel.asked_once(lambda: self._release(order, votes, sums, evaluated, budget, earlier))
            parallel.wait()
        self.stored = _read(self.file)
        self.teachers.privacy = json.loads(str(self.stored["privacy"]))
        self.storing.say(f"{'Found: ' if self.found else ''}{self.in_words()}, in {self.file}")
        if not len(self.stored["rows"]):
            raise UserError(
                f"no row was answered: none had {self.terms.threshold:g} votes after noise. Epsilon is spent all the "
                "same; take a lower threshold and a larger budget.",
                key="threshold",
            )

    def apply(self, prepared: Data) -> tuple[Data, TargetSource]:
        """Return the rows that were answered, with the answers, and the eval split with the teachers' mean."""
        data: Any = prepared  # of a recipe: a trainer alone trains no teachers
        chosen = self.stored["rows"]
        own = replace(
            data,
            train=data.train.select(chosen),
            for_teacher=None,
            transfer_rows=int(data.transferred[chosen].sum()),
        )
        rows = {"train": np.arange(len(chosen)), "eval": np.arange(len(chosen), len(chosen) + len(own.eval))}
        targets = np.concatenate([self.stored["answers"], self.stored["evaluated"]])
        found: Any = with_rows(own, targets, rows, self.teachers.config, GIVES)
        return found  # type: ignore[no-any-return]

    def _budget(self) -> tuple[PrivacyBudget, list[dict[str, Any]]]:
        """Return what is left of the budget, and what earlier answers in this directory cost."""
        terms = self.terms
        earlier = [json.loads(str(_read(file)["privacy"])) for file in sorted(self.path.glob("*.npz"))]
        spent = sum(one["of these answers"]["epsilon"] for one in earlier)
        queries = min(len(self._public), terms.queries or len(self._public))
        try:
            return PrivacyBudget(terms.accountant, terms.budget - spent, queries), earlier
        except UserError as error:
            if not spent:
                raise
            raise UserError(
                f"earlier answers in {self.path} spent epsilon {spent:.3g} of {terms.budget:g}, and no query fits into "
                "the rest. Go back to their recipe, or take a larger budget: epsilons of the same private rows add up.",
                key="budget",
            ) from error

    def _ask(self, order: Array, args: TrainingArguments) -> tuple[Array, Array, Array]:
        """Return votes and sums of distributions for the rows to ask, and the sums for the eval split."""
        data = self.storing.data
        splits = {"asked": data.train.select(order), "eval": data.eval}
        every: list[tuple[Array, Array, Array]] = []

        def ask() -> None:
            for index in parallel.share_of(len(self.teachers.folders)):
                found = self.teachers.distributions(index, splits, data, args)
                votes = np.eye(found["asked"].shape[1])[found["asked"].argmax(1)]
                every[:] = [_added([*every, (votes, found["asked"], found["eval"])])]

        parallel.together(ask)
        return _added([one for part in parallel.from_all(every) for one in part])

    def _release(
        self,
        order: Array,
        votes: Array,
        sums: Array,
        evaluated: Array,
        budget: PrivacyBudget,
        earlier: list[dict[str, Any]],
    ) -> None:
        """Draw the noise, and write the answers as one file: it is whole, or nothing was told."""
        terms = self.terms
        rows, found = answers(votes, sums if terms.soft else None, budget, terms.threshold, _noise())
        ordered = np.argsort(order[rows])
        mean = evaluated / terms.count
        self.path.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(
            content,
            rows=order[rows][ordered],
            answers=_logarithms(found[ordered]),
            evaluated=_logarithms(mean),
            privacy=np.array(json.dumps(self._privacy(budget, earlier))),
        )
        write_atomic(self.file, content.getvalue())

    def _privacy(self, budget: PrivacyBudget, earlier: list[dict[str, Any]]) -> dict[str, Any]:
        terms = self.terms
        own = {"epsilon": float(budget.epsilon), "delta": terms.accountant.delta}
        told = {
            **{name: value + sum(one["of these answers"][name] for one in earlier) for name, value in own.items()},
            "mechanism": terms.words,
            "teachers": terms.count,
            "asked": budget.asked,
            "answered": budget.answered,
            "protects": "each row with a label, from whoever sees the student: another one could be in its place",
            "not covered": "the teacher's scores and the agreement with it, which are computed without noise",
        }
        return {**told, "of these answers": own, "earlier answers": len(earlier)}


def _noise() -> np.random.Generator:
    """Return a generator that nobody can repeat: whoever knows the noise can take it off the answers."""
    return np.random.default_rng(secrets.randbits(256))


def _added(parts: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    votes, sums, evaluated = (np.sum(some, axis=0) for some in zip(*parts, strict=True))
    return votes, sums, evaluated


def _logarithms(distributions: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(distributions), LEAST).astype(np.float32)


def _read(file: Path) -> dict[str, Array]:
    """Return the arrays of a file of answers.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{file} is damaged, and to ask its rows again would cost epsilon again. Restore it; or remove it, knowing "
            "that its epsilon is spent and that this run will not count it.",
            key="budget",
        ) from error
