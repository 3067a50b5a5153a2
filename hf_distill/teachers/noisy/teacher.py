"""Teachers of private rows: students learn from their noisy votes, at a price in epsilon that is accounted (PATE)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from hf_distill import parallel
from hf_distill.component import component
from hf_distill.data.labelled import has_label
from hf_distill.errors import UserError
from hf_distill.locations import require
from hf_distill.teachers.around import AroundTeacher
from hf_distill.teachers.base import FineTune, FineTuning, StoredTargets, Storing, Teacher, under
from hf_distill.teachers.noisy.privacy import PACKAGE, Accountant, Mechanism, PrivacyTerms, check_fits
from hf_distill.teachers.noisy.votes import shard

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head
    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared, Setup, Task

logger = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# More queries than any data has rows to ask about.
_MANY = 10**6
_NAMES: dict[Mechanism, str] = {
    "laplace": "LNMax, Laplace noise of scale {noise:g} on every count",
    "gnmax": "GNMax, Gaussian noise of {noise:g} on every count",
    "confident": "Confident-GNMax, Gaussian noise of {noise:g} on every count, threshold {threshold:g} with noise of "
    "{threshold_noise:g}",
}


@component
class NoisyTeacher(AroundTeacher):
    """Teachers on disjoint parts of private rows; students learn from their noisy votes (PATE).

    The rows with a label are private: only the teachers see them. The rows without a label are public: the teachers are
    asked about them, and the student learns from the answers alone (Papernot et al. 2017, arXiv 1610.05755, and 2018,
    arXiv 1802.08908).

    Attributes:
        teacher: The teacher that is trained, `finetuned`, once on each part.
        noise: Noise on the number of votes of each class: the standard deviation of Gaussian noise, or the scale `1 /
            gamma` of Laplace noise. More noise costs less of the budget, and needs more teachers to be heard through.
        budget: Highest epsilon of all answers together. As many rows are asked as fit; the run is refused if none does.
        count: Number of teachers.
        mechanism: `gnmax` answers with the class that has the most votes after Gaussian noise, `laplace` after Laplace
            noise; `confident` is `gnmax` for rows on which enough teachers agree, and leaves out the others.
        threshold: For `confident`: number of votes, after noise, from which a row is answered. Default: none.
        threshold_noise: For `confident`: standard deviation of the noise on the votes that are compared with the
            threshold. Every row that is asked pays for it, answered or not. Default: none.
        soft: Answer with the mean of the teachers' distributions after Gaussian noise, instead of one class. It costs
            the same.
        delta: Probability with which the bound on epsilon may fail. Wanted less than one over the number of private
            rows.
        queries: How many rows to ask about at most, taken at random. Default: all rows without a label.
        seed: Seed of the parts and of the order of the rows. The noise has none: it is drawn anew from the operating
            system, and the answers are stored.
    """

    name: ClassVar[str] = "noisy"

    teacher: Teacher
    noise: Positive
    budget: Positive
    count: Annotated[int, Field(ge=2)] = 25
    mechanism: Mechanism = "gnmax"
    threshold: Positive | None = None
    threshold_noise: Positive | None = None
    soft: bool = False
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    queries: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        """Refuse a teacher that is not trained by the run, and settings of another mechanism."""
        inner = self.teacher
        if inner.has_head or inner.caches or not inner.fine_tuning or [path for path, _ in inner.members()] != [""]:
            raise ValueError(f"teacher: wanted one that is trained on the private rows, finetuned; found {inner.name}")
        given = [name for name in ("threshold", "threshold_noise") if getattr(self, name) is not None]
        if self.mechanism == "confident" and len(given) < 2:
            raise ValueError("mechanism: confident needs both threshold and threshold_noise")
        if self.mechanism != "confident" and given:
            raise ValueError(f"{given[0]}: belongs to mechanism: confident. Leave it out")
        if self.threshold is not None and self.threshold > self.count:
            raise ValueError(
                f"threshold: {self.threshold:g} votes are more than {self.count} teachers have: only noise would answer"
            )
        if self.soft and self.mechanism == "laplace":
            raise ValueError("soft: is accounted for Gaussian noise alone. Take mechanism: gnmax or confident")

    @property
    def accountant(self) -> Accountant:
        """What queries cost."""
        return Accountant(self.mechanism, self.noise, self.threshold_noise, self.delta)

    @property
    def terms(self) -> PrivacyTerms:
        """How teachers are asked."""
        return PrivacyTerms(
            self.accountant,
            self.budget,
            self.count,
            self.threshold,
            self.soft,
            self.queries,
            self.seed,
            self._mechanism_in_words(),
        )

    def _mechanism_in_words(self) -> str:
        settings = {"noise": self.noise, "threshold": self.threshold or 0, "threshold_noise": self.threshold_noise or 0}
        words = _NAMES[self.mechanism].format(**settings)
        return (
            words.replace("every count", "every mean probability times the number of teachers") if self.soft else words
        )

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield path and entry of the model that is trained."""
        yield "teacher", self.teacher

    @property
    def not_cached(self) -> str:
        """Why noisy answers are not cached."""
        return "the answers of noisy teachers are stored anyway, so that no row is asked twice. Take the entry itself"

    @property
    def caches(self) -> bool:
        """Always true: the answers are stored, and never drawn again."""
        return True

    @property
    def keeps_private(self) -> bool:
        """Always true: the rows with a label are private."""
        return True

    def check_task(self, task: Task) -> None:
        """Refuse a task without votes, a missing package, and a budget that no query fits."""
        require(PACKAGE, "a noisy teacher", key="name")
        if task.head_kind != "labels":
            raise UserError(
                f"{task.name} has no classes to vote on, one for each row. It is for text-classification.", key="name"
            )
        with under("teacher"):
            self.teacher.check_task(task)
        check_fits(self.accountant, self.budget, self.accountant.fitting(self.budget, 1))

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the answers give to objectives: distributions."""
        from hf_distill.teachers.noisy.voters import GIVES

        return GIVES

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description of the teachers that `--check` prints."""
        return f"{self.count} times {size(config)}, each trained on its own part of the rows with a label"

    def cached_in_words(self, task: Task, objectives: Sequence[Objective], pair: Pair) -> str:
        """Return how many rows can be asked, and what they cost at most."""
        wanted = self.queries or _MANY
        fitting = self.accountant.fitting(self.budget, wanted)
        epsilon = self.accountant.epsilon(fitting, fitting) if fitting == wanted else self.budget
        more = ", more if not all are answered" if self.mechanism == "confident" and fitting < wanted else ""
        return (
            f"{self._mechanism_in_words()}: up to {fitting:,} queries{more}; epsilon at most {epsilon:.3g} at delta "
            f"{self.delta:g}"
        )

    def answers(self, rows: int) -> int | None:
        """Return how many rows can be answered at most within the budget; None if all are."""
        most = self.accountant.fitting(self.budget, min(rows, self.queries or rows))
        return None if most == rows and self.mechanism != "confident" else most

    def rows_in_words(self, labelled: str) -> str:
        """Return in words that each teacher is trained on its own part of the rows with a label."""
        return f"each of {self.count} teachers on its own part of the {labelled}"

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data; refuse data without private or public rows, and warn of parts without a class."""
        prepared, stored = super().prepare(task, splits, beside, setup, pair)
        with under("teacher"):
            self._check_rows(prepared)
        return prepared, stored

    def _check_rows(self, prepared: Prepared) -> None:
        layout = prepared.layout
        if layout.outputs_by_token or not layout.has_named_classes:
            raise UserError(
                "a row has several labels, or values, and each of them would be a query that costs epsilon. Wanted "
                "text-classification with one class for each row.",
                key="name",
            )
        known = has_label(prepared.train) if prepared.labelled else np.zeros(len(prepared.train), dtype=bool)
        private = int(known.sum())
        if private < self.count:
            raise UserError(
                f"{self.count} teachers need as many private rows, each with a label, and the train split has "
                f"{private:,}. Take fewer teachers.",
                key="count",
            )
        if known.all():
            raise UserError(
                "all rows of the train split have a label, so all are private, and no row is left to ask about. Add "
                "public texts without labels: data.transfer, or rows of train with an empty label.",
                key="name",
            )
        if parallel.is_first():
            self._warn(np.array(prepared.train.select(np.flatnonzero(known))["labels"]), private)

    def _warn(self, labels: Any, private: int) -> None:
        if self.delta >= 1 / private:
            logger.warning(
                "teacher.delta: %g is not below one over the number of private rows (%s): a bound that fails for one "
                "row in so many protects none of them. Wanted less than %.1g.",
                *(self.delta, f"{private:,}", 1 / private),
            )
        if labels.ndim != 1:  # distributions
            return
        parts = [labels[shard(private, self.count, index, self.seed)] for index in range(self.count)]
        classes = len(np.unique(labels))
        lacking = sum(len(np.unique(part)) < classes for part in parts)
        if lacking:
            logger.warning(
                "teacher.count: %s of %s parts of the private rows lack a class (about %s rows each), so that their "
                "teachers will hardly vote for it. Take fewer teachers.",
                *(f"{lacking:,}", f"{self.count:,}", f"{private // self.count:,}"),
            )

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the teachers, each trained on its part or found trained; one is in memory at a time."""
        import torch

        from hf_distill.teachers.noisy.voters import PrivateTeachers

        seed, folders = torch.initial_seed(), []
        for index in range(self.count):
            torch.manual_seed(seed + index)  # the same new head, whether the teachers before it were trained or loaded

            def on_part(model: PreTrainedModel, how: FineTuning, index: int = index) -> PreTrainedModel:
                def rows(number: int) -> list[int]:
                    return [int(row) for row in shard(number, self.count, index, self.seed)]

                return fine_tune(model, replace(how, rows=rows, private=True, which=str(index + 1)))

            with under("teacher"):
                model: Any = self.teacher.load(head, on_part)
            folders.append(str(model.name_or_path))
        return PrivateTeachers(folders, head, model.config, trust_remote_code=self.trusts_code)

    def cache_for(self, model: Any, storing: Storing) -> StoredTargets:
        """Return the stored answers of the run, given already or not."""
        from hf_distill.teachers.noisy.targets import NoisyAnswers

        return NoisyAnswers(self.terms, model, storing)
