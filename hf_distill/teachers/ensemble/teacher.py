"""Several teachers together: students learn from the mean of their distributions or logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.teachers.base import FineTune, FineTuning, StoredTargets, Storing, Teacher, under
from hf_distill.teachers.ensemble.apart import Apart, MemberTargets, views
from hf_distill.teachers.ensemble.averaging import GIVES, Ensemble, order_of
from hf_distill.teachers.ensemble.entries import check_cached, check_entries, check_number, check_vocabulary
from hf_distill.teachers.ensemble.routing import read_route, routed
from hf_distill.teachers.ensemble.training import Training, load_each
from hf_distill.teachers.published.parties import class_order, published_together

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head
    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task
    from hf_distill.tasks.base import View


@component
class EnsembleTeacher(Teacher):
    """Several models: students learn from the weighted mean of their distributions (of regression: of their values).

    Each distribution is softened before it is averaged, by the temperature of every objective (Hinton et al. 2015,
    arXiv 1503.02531, section 3). Objectives without one compare at temperature 1, as do the reported predictions.

    Attributes:
        teachers: Two or more entries, `pretrained` or `finetuned`, in a list or by name (`{medical: {...}, legal:
            {...}}`); or `cached` ones alone, of which each may have a tokenizer of its own or make its own inputs
            (`zero_shot`, `prompted`); or `published` ones alone. Their labels are matched by name to the first one's. A
            student that copies layers copies those of the first. With `count`, one `finetuned` entry.
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
        check_entries(entries, self.weights, self.route)
        check_number(entries, self.count)
        if self.caches:
            check_cached(entries, self.count, self.route)
        if isinstance(self.weights, list) and (len(self.weights) != len(self.names) or min(self.weights) <= 0):
            found = str(len(self.weights)) if len(self.weights) != len(self.names) else f"{min(self.weights):g}"
            raise ValueError(f"weights: wanted {len(self.names)} numbers above 0, one for each teacher; found {found}")
        if self.route is not None and not isinstance(self.teachers, dict):
            raise ValueError("route: wanted teachers by the names in that column, teachers: {NAME: {...}, ...}")
        if self.route is not None and self.weights is not None:
            raise ValueError("weights: with route each row has one teacher, so there is no mean. Leave one of them out")

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
    def caches(self) -> bool:
        """Whether the targets of each teacher are stored by itself, so that each may read tokens of its own."""
        return any(one.caches for _, one in self.members())

    @property
    def members_apart(self) -> bool:
        """Whether the targets of each teacher are stored by itself."""
        return self.caches

    @property
    def not_cached(self) -> str | None:
        """Why the mean is not stored again if the targets of each teacher are."""
        return "the targets of each teacher are stored already: leave out the outer cached" if self.caches else None

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

    def for_next(self, model: Teacher) -> Teacher:
        """Return what comes after each of the teachers: a cache, if they are cached one by one."""
        return next(self.members())[1].for_next(model)

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

    def rows_in_words(self, labelled: str) -> str:
        """Return in words the rows on which each of the teachers is trained that the run trains."""
        number = len(self.fine_tuning) * (self.count or 1)
        rows = f"a part of the {labelled}" if self._stops_early else f"the {labelled}"
        if self.weights == "validation":
            rows = f"a part of the {labelled}, without the tenth that weighs the teachers"
        if self.count is not None and self.vary == "bags":
            rows = f"as many rows, drawn with replacement from {rows}"
        return f"{f'each of {number} teachers' if number > 1 else 'one of the teachers'} on {rows}"

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
        if self.caches and not task.own_tokenizers:
            raise UserError(
                f"targets of {task.name} are merged before they are stored. Put cached around the ensemble: "
                "{name: cached, teacher: {name: ensemble, ...}}.",
                key="teachers",
            )
        if self.route is not None and task.name != "text-classification":
            raise UserError(
                f"of {task.name} an example is not one row of the data, so that no column names its teacher. Wanted "
                "text-classification; or train a student for each teacher.",
                key="route",
            )

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse teachers whose labels or vocabulary differ from the first teacher's."""
        for (path, one), both in zip(self.members(), pair.members, strict=False):
            with under(path):
                one.check_pair(task, every, both)
        for path, one in list(self.members())[1:]:
            with under(path):
                config = one.config()
                if task.compares_tokens:
                    check_vocabulary(config, pair)
                elif one.is_published:
                    class_order(next(self.members())[1], one)
                elif one.has_head and task.head_kind == "labels":
                    order_of(pair.teacher, config)

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what an ensemble gives to objectives: rows only."""
        return GIVES

    def cached_in_words(self, task: Task, objectives: Sequence[Objective], pair: Pair) -> str:
        """Return a description of what will be stored of each teacher, if each is stored by itself."""
        parts = zip(self.members(), pair.members, strict=False)
        return "; ".join(f"{path}: {one.cached_in_words(task, objectives, both)}" for (path, one), both in parts)

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
        if self.caches:
            return views(list(self.members()), task, splits, beside, setup, pair), None
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
        if self.caches:
            raise UserError(
                "teacher: each of these teachers reads data of its own, in a recipe. Wanted teachers without cached."
            )
        models = load_each(self._every(), [head] * len(self.names), self._training(fine_tune))
        return Ensemble(models, self.weights, combine=self.combine, names=self.names, routed=self.route is not None)

    def load_on(self, data: Prepared, student: Student, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return the ensemble, or the teachers whose targets are stored one by one, each on its view of the data."""
        if not self.caches:
            return super().load_on(data, student, fine_tune)
        each = data.for_members * (self.count or 1)
        models = load_each(self._every(), [view.prepared.head for view in each], self._training(fine_tune, each))
        return Apart(models, each, self.weights, self.combine, self.names)

    def cache_for(self, model: Any, storing: Storing) -> StoredTargets:
        """Return the stored targets of all teachers, each in the cache that a recipe with it alone finds, too."""
        pairs = replace(storing.pair, members=storing.pair.members * (self.count or 1))
        return MemberTargets.of(model, self._every(), replace(storing, pair=pairs))

    def _every(self) -> list[tuple[str, Teacher]]:
        """Return path and entry of each teacher, of one that is trained several times as often."""
        return list(self.members()) * (self.count or 1)

    def _training(self, fine_tune: FineTune, each: Sequence[View] = ()) -> Training:
        """Return what trains each teacher; `each` is the data as each reads it, if they do not read the same."""
        return Training(
            fine_tune,
            several=self.count is not None,
            bags=self.count is not None and self.vary == "bags",
            holding_out=self.weights == "validation",
            views=each,
            names=tuple(name.removeprefix("teacher ") for name in self.names),
        )
