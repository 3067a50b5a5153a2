"""Several teachers together: students learn from the mean of their distributions or logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.teachers.base import FineTune, FineTuning, Teacher, under
from hf_distill.teachers.ensemble.averaging import GIVES, Ensemble, order_of
from hf_distill.teachers.ensemble.routing import read_route, routed
from hf_distill.teachers.published.parties import class_order, published_together
from hf_distill.teachers.row_choice import Choice, bag, not_held_out, together

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task


@component
class EnsembleTeacher(Teacher):
    """Several models: students learn from the weighted mean of their distributions (of regression: of their values).

    Each distribution is softened before it is averaged, by the temperature of every objective (Hinton et al. 2015,
    arXiv 1503.02531, section 3). Objectives without one compare at temperature 1, as do the reported predictions.

    Attributes:
        teachers: Two or more entries, `pretrained` or `finetuned`, in a list or by name (`{medical: {...}, legal:
            {...}}`); or `published` ones alone. Their labels are matched by name to the first one's. A student that
            copies layers copies those of the first. With `count`, one `finetuned` entry.
        count: How many teachers to train of the one entry. Default: each entry is one teacher.
        vary: What differs between them. `seeds`: the seed of the training and of a new head. `bags`: each is also
            trained on as many labelled rows, drawn with replacement (bagging, Breiman 1996).
        combine: What is averaged. `probabilities`: `sum_k w_k softmax(z_k / T)`. `logits`: `softmax(sum_k w_k z_k /
            T)`, the geometric mean of the same distributions, which is low where one of the teachers says no.
        weights: Weight of each teacher in the mean, of which only the ratio counts. `confidence`: in each row
            `exp(-entropy)` of the teacher's distribution at temperature 1. `validation`: by the teachers' losses on
            labelled rows of the train split, `exp(-mean loss)`, of regression `1 / mean squared error`; a tenth of the
            labelled rows is held out for it if a teacher is trained by the run. `size`: of `published` teachers, the
            number of labelled rows that each party tells. Default: the same for all.
        route: Column of the data with the name of the teacher that teaches the row alone, for `teachers` with names.
            Default: all teachers teach every row.
    """

    name: ClassVar[str] = "ensemble"

    teachers: list[Teacher] | dict[str, Teacher]
    count: int | None = None
    vary: Literal["seeds", "bags"] = "seeds"
    combine: Literal["probabilities", "logits"] = "probabilities"
    weights: list[float] | Literal["confidence", "validation", "size"] | None = None
    route: str | None = None

    def __post_init__(self) -> None:
        """Refuse entries without a model, and wrong numbers and weights."""
        entries = list(self.members())
        if self.is_without_model:
            self._check_published()
        else:
            self._check_models(entries)
        self._check_number(entries)
        if isinstance(self.weights, list) and (len(self.weights) != len(self.names) or min(self.weights) <= 0):
            raise ValueError(f"weights: wanted {len(self.names)} numbers above 0, one for each teacher")
        if self.route is not None and not isinstance(self.teachers, dict):
            raise ValueError("route: wanted teachers by the names in that column, teachers: {NAME: {...}, ...}")
        if self.route is not None and self.weights is not None:
            raise ValueError("weights: with route each row has one teacher, so there is no mean. Leave one of them out")
        headed = [path for path, one in entries if one.has_head]
        if headed and headed[0] != entries[0][0]:
            raise ValueError(
                f"{entries[0][0]} is trained by this run, and {headed[0]} brings its labels. List that one first"
            )

    def _check_models(self, entries: Sequence[tuple[str, Teacher]]) -> None:
        """Refuse entries that are not models, and weights that only published targets have."""
        for path, one in entries:
            if one.is_without_model or one.caches or one.own_inputs or [inner for inner, _ in one.members()] != [""]:
                raise ValueError(f"{path}: wanted a model, pretrained or finetuned; found {one.name}")
        if self.weights == "size":
            raise ValueError(
                "weights: size is told by published teachers alone. Write the weights themselves: weights: [1, 2, ...]"
            )

    def _check_published(self) -> None:
        """Refuse what needs the models of other parties."""
        for key, wrong in (("weights", self.weights == "validation"), ("route", self.route is not None)):
            if wrong:
                raise ValueError(f"{key}: only models can be asked that, and these are the targets of other parties")

    def _check_number(self, entries: Sequence[tuple[str, Teacher]]) -> None:
        if self.count is None:
            if len(entries) < 2:
                raise ValueError(
                    f"wanted two teachers or more, found {len(entries)}; or count: 5, to train that many of one"
                )
            return
        if self.count < 2:
            raise ValueError(f"count: wanted two teachers or more, found {self.count}")
        if len(entries) != 1:
            raise ValueError(f"count: trains several teachers of one entry, and there are {len(entries)} of them")
        if not entries[0][1].fine_tuning:
            raise ValueError(
                f"count: {entries[0][0]} is not trained by this run, so that all would be the same. Wanted finetuned"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What reports call the teachers."""
        if isinstance(self.teachers, dict) and self.count is None:
            return tuple(self.teachers)
        return tuple(f"teacher {number}" for number in range(1, (self.count or len(self.teachers)) + 1))

    @property
    def is_without_model(self) -> bool:
        """Whether the teachers stay with other parties, and only their published targets are here."""
        return all(one.is_published for _, one in self.members())

    @property
    def is_quantized(self) -> bool:
        """Whether any of the teachers is quantized."""
        return any(one.is_quantized for _, one in self.members())

    @property
    def has_head(self) -> bool:
        """Whether the first teacher's checkpoint has a trained head."""
        return next(self.members())[1].has_head

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """Key path -> training of each teacher that the run trains first."""
        return {f"{path}.{key}": how for path, one in self.members() for key, how in one.fine_tuning.items()}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Directories of the teachers that the run trains first."""
        return tuple(place for _, one in self.members() for place in one.output_directories)

    @property
    def by_temperature(self) -> bool:
        """Whether the mean is another one at every temperature: that of distributions is."""
        return self.combine == "probabilities" and self.route is None

    @property
    def reads(self) -> tuple[str, ...]:
        """The column that names the teacher of a row, if there is one."""
        return () if self.route is None else (self.route,)

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield path and entry of each entry in `teachers`."""
        if isinstance(self.teachers, dict):
            return ((f"teachers.{name}", one) for name, one in self.teachers.items())
        return ((f"teachers[{index}]", one) for index, one in enumerate(self.teachers))

    def every_entry(self) -> Iterator[Teacher]:
        """Yield this entry and the teachers inside it."""
        yield self
        for _, one in self.members():
            yield from one.every_entry()

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the first teacher in a run with this student."""
        path, first = next(self.members())
        with under(path):
            return first.config_beside(student)

    def config(self) -> PretrainedConfig:
        """Return the configuration of the first teacher."""
        path, first = next(self.members())
        with under(path):
            return first.config()

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description of each teacher that `--check` prints."""
        every = "; ".join(one.in_words(one.config(), size) for _, one in self.members())
        return every if self.count is None else f"{self.count} of {every}"

    def check_task(self, task: Task) -> None:
        """Refuse a task without distributions or values to average."""
        for path, one in self.members():
            with under(path):
                one.check_task(task)
        if task.name == "sentence-similarity":
            raise UserError(
                f"{task.name} compares vectors of texts, and those of several models have no common mean. Take one of "
                "the teachers.",
                key="name",
            )

        if self.route is not None and task.name != "text-classification":
            raise UserError(
                f"of {task.name} an example is not one row of the data, so that no column names its teacher. Wanted "
                "text-classification; or train a student for each teacher.",
                key="route",
            )

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse teachers whose labels or vocabulary differ from the first teacher's."""
        for path, one in list(self.members())[1:]:
            with under(path):
                config = one.config()
                if task.compares_tokens:
                    _check_vocabulary(config, pair)
                elif one.is_published:
                    class_order(next(self.members())[1], one)
                elif one.has_head and task.head_kind == "labels":
                    order_of(pair.teacher, config)

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what an ensemble gives to objectives: rows only."""
        return GIVES

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data, with the number of each row's teacher if the data names one.

        Raises:
            UserError: A metric is of generated texts, as a mean of models generates none; a row names no teacher; or
                numbers are to be weighted by confidence.
        """
        prepared, stored = self._prepare(task, splits, beside, setup, pair)
        if self.weights == "confidence" and not prepared.layout.has_classes:
            raise UserError(
                "confidence: is the entropy of distributions, and the labels are numbers, of which no teacher says how "
                "sure it is. Wanted the weights themselves, or weights: validation.",
                key="teacher.weights",
            )
        if any(map(prepared.evaluator.generates, prepared.evaluator.names)):
            raise UserError(
                "metrics of generated texts need one model that writes them, and the teacher is an ensemble. Wanted "
                "metrics of its distributions, such as perplexity.",
                key="metrics",
            )
        return prepared, stored

    def _prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        if self.is_without_model:
            return published_together(
                dict(self.members()), self.weights, self.combine, self.names, task, splits, setup, pair
            )
        if self.route is not None:
            return routed(task, splits, beside, setup, self.route, self.names), None
        return super().prepare(task, splits, beside, setup, pair)

    def look(self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair) -> None:
        """Check that the first rows name a teacher, as `prepare` does in all rows."""
        for path, one in self.members():
            with under(path):
                one.look(task, splits, beside, pair)
        if self.route is not None:
            read_route(beside, self.route, self.names)

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the ensemble, with every teacher loaded or trained first."""
        seed, models = torch.initial_seed(), []
        entries = list(self.members()) * (self.count or 1)
        for index, (path, one) in enumerate(entries):
            # Each teacher gets its own new head: the same one whether the teachers before it were trained or loaded.
            torch.manual_seed(seed + index)
            with under(path):
                models.append(one.load(head, self._training(fine_tune, seed, index)))
        return Ensemble(models, self.weights, combine=self.combine, names=self.names, routed=self.route is not None)

    def _training(self, fine_tune: FineTune, seed: int, index: int) -> FineTune:
        """Return what trains one of the teachers: with another seed and on other rows than the others, if so wanted."""
        choices: list[Choice] = [not_held_out] if self.weights == "validation" else []
        if self.count is not None and self.vary == "bags":
            choices.append(bag(seed + index))

        def train(model: Any, how: FineTuning) -> Any:
            training = dict(how.training)
            if self.count is not None:
                training["seed"] = int(training.get("seed", seed)) + index
            rows = [*([how.rows] if how.rows else []), *choices]
            return fine_tune(model, replace(how, training=training, rows=together(rows) if rows else None))

        return train


def _check_vocabulary(config: PretrainedConfig, pair: Pair) -> None:
    """Refuse a vocabulary with fewer entries than the compared tokens."""
    from hf_distill.rows.inferred import vocabulary

    columns = config.get_text_config().vocab_size
    wanted = vocabulary(pair.student, pair.teacher, pair.tokenizer)
    if wanted is not None and columns < wanted:
        raise UserError(
            f"its vocabulary has {columns:,} entries, and {wanted:,} tokens are compared. Wanted teachers with the "
            "same vocabulary.",
            key="model",
        )
