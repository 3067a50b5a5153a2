"""What an objective is: a loss sum per example, and the unit whose count it is divided by."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self  # in typing from Python 3.11 on

from hf_distill.component import component
from hf_distill.data.label_names import IGNORED
from hf_distill.models.needs import Classes, Needs
from hf_distill.models.target_rows import MixtureRows
from hf_distill.objectives.group_weights import GroupWeights
from hf_distill.objectives.guard import check_result, guarded
from hf_distill.objectives.schedule import Schedule, Weight, cut_off, number
from hf_distill.rows.base import Rows, SparseRows, Unit, fold, likeliest
from hf_distill.rows.spans import by_width
from hf_distill.rows.written import Spans

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.layers import States

# What an objective reads of a teacher.
Reads = Literal["answers", "states", "model"]


@dataclass(frozen=True)
class Comparison:
    """One micro-batch as both models saw it.

    Attributes:
        rows: The logit rows that count, aligned between the models, with their labels.
        student: Output of the student's forward pass (`hidden_states`, ... where an objective asked for them).
        teacher: Output of the teacher's; None where the run has no teacher.
        inputs: The collated batch.
        tokens: Which tokens of the (encoder's) input are not padding, bool `(sequences, tokens)`; as many sequences as
            examples, but for tasks whose examples are several (see `fold`).
        teacher_rows: The teacher's rows again, with their graph, where an objective differentiates.
        spans: The log-probabilities of the spans of the text, where an objective compares these.
    """

    rows: Rows
    student: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    inputs: Mapping[str, Tensor]
    tokens: Tensor
    teacher_rows: Tensor | None = None
    spans: Spans | None = None

    def fold(self, sequences: Tensor) -> Tensor:
        """Sum a value per sequence into `(batch,)`, as `rows.base.fold` does."""
        return fold(sequences, self.rows.examples)


@component
class Objective(ABC):
    """One term of the loss.

    The trainer minimises `sum_k weight_k * S_k / N_k`: `S_k` is the sum of the objective's `per_example` values
    and `N_k` the number of its `unit`, both over the whole optimiser step (every micro-batch of the
    accumulation window, every process). A subclass never averages.

    Where there is something to choose or to learn that depends on the two models (layers, projections), a subclass is a
    `PreparedObjective`.

    Attributes:
        weight: Factor of this loss in the sum.
        group_weights: Weights of the groups in `data.columns.group`: `inverse_frequency` (all groups weigh the same),
            `worst_group` (the worst weighs more and more; Sagawa et al. 2020, arXiv 1911.08731), or `{name: weight}`, 1
            for those left out. Default: every row weighs the same.
    """

    name: ClassVar[str]
    # Who published it: authors, year, title, and where; with the equation. Model cards and docs cite it.
    paper: ClassVar[str] = ""
    unit: ClassVar[Unit] = "row"
    needs_teacher: ClassVar[bool] = True
    # Whether it reads the logits of a whole batch. Without, a vocabulary-sized head never has to make them.
    needs_logits: ClassVar[bool] = True
    # Model outputs wanted besides the logits: "hidden_states", "attentions".
    outputs: ClassVar[frozenset[str]] = frozenset()
    # What it reads of the teacher: its `answers` (logits, the vectors of texts); besides them hidden `states`, those
    # that `teacher_states` names; or more than a cache can keep, so that it takes the `model` itself.
    reads: ClassVar[Reads] = "answers"
    # Whether it compares the vectors of texts that sentence encoders return, instead of logits.
    vectors: ClassVar[bool] = False
    # Its setting that asks for them, where that is not the objective itself.
    vectors_by: ClassVar[str] = ""
    # Whether it compares the models token by token, so that both must have read the same tokens.
    by_token: ClassVar[bool] = False
    # Whether it compares examples of a micro-batch with each other: then the loss depends on how a step is split.
    within_batch: ClassVar[bool] = False
    # Whether it compares the probabilities of the tokens of the text: by spans (`Comparison.spans`), or row by row, the
    # tokens that a model wrote (`rows` is then given `Rows.written` too).
    written: ClassVar[bool] = False
    # Its field that says how many of the teacher's likeliest classes it compares, all where there are not as many.
    likeliest: ClassVar[str | None] = None
    # Whether its gradient reaches the head of the task; not where it compares what comes before the head.
    reaches_head: ClassVar[bool] = True
    # Whether both models must compute attention as plain matrix products: for maps, or for second derivatives.
    needs_eager_attention: ClassVar[bool] = False
    # Names of the tasks it belongs to; empty where it does not care.
    tasks: ClassVar[tuple[str, ...]] = ()
    # Whether it differentiates: the models then run with gradients also in evaluation, the teacher (whose weights stay
    # frozen) also in training.
    differentiates: ClassVar[bool] = False

    weight: Weight = 1.0
    group_weights: GroupWeights | None = None

    @classmethod
    def formula(cls) -> str:
        """Return the formula in the docstring of the class (below `Formula:`), on one line; empty if it has none."""
        found = re.search(r"^Formula:\n((?: {4}.*\n?)+)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:  # noqa: B027
        """Refuse two models that the objective cannot compare; called before any weight is loaded.

        Raises:
            UserError: They do not fit; `key` is the setting that would have to change.
        """

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """Return which hidden states of the teacher it looks at, where it `reads` no more than `states`.

        Raises:
            UserError: The two models do not fit; see `check`.
        """
        return ()

    def needs(self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None) -> Needs:
        """Return what it needs of the models and the data, as its attributes say; `match` compares that with a source.

        Args:
            student: The student's configuration.
            teacher: The teacher's; without one of them it is not known which hidden states.

        Raises:
            UserError: The two models do not fit; see `check`.
        """
        states: tuple[States, ...] | None = ()
        if self.needs_teacher and self.reads == "states":
            states = None if student is None or teacher is None else self.teacher_states(student, teacher)
        known = {"attentions", *(["hidden_states"] if self.reads == "states" else [])}
        return Needs(
            name=self.name,
            unit=self.unit,
            teacher=self.needs_teacher,
            classes=self._classes(),
            states=states,
            attentions="attentions" in self.outputs,
            inside=self.reads == "model" or not self.outputs <= known,
            derivatives=self.differentiates,
            by_token=self.by_token,
            within_batch=self.within_batch,
            vectors=self.vectors,
            vectors_by=self.vectors_by,
            tasks=self.tasks,
            likeliest=None if self.likeliest is None else (self.likeliest, getattr(self, self.likeliest)),
            written=self.written,
            whole_batch=self.needs_logits,
            outputs=self.outputs,
            eager_attention=self.needs_eager_attention,
            head=self.reaches_head,
        )

    def _classes(self) -> Classes | None:
        """Return how much of the teacher's logits is the least that will do; None where it reads none."""
        reads = self.differentiates or (self.reads == "answers" and self.needs_logits and not self.vectors)
        return "all" if reads and self.needs_teacher else None

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term of the loss that this objective is for two models, in the state in which training starts."""
        return Term(self)

    @abstractmethod
    def per_example(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of every example of the batch, `(batch,)`, differentiable to the student only."""

    def at(self, step: int, steps: int) -> Self:
        """Return the objective as it is after `step` of `steps` optimiser steps, its schedules replaced by numbers."""
        moving: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}
        if not moving:
            return self
        return replace(self, **{name: schedule.at(step, steps) for name, schedule in moving.items()})

    def at_end(self) -> Self:
        """Return the objective as every schedule leaves it, be the training long enough to get there or not."""
        moving: dict[str, Any] = {name: value.end for name, value in vars(self).items() if isinstance(value, Schedule)}
        return replace(self, **moving) if moving else self

    def cut_off(self, steps: int) -> dict[str, str]:
        """Return what becomes of each schedule that a training of so many optimiser steps is too short for."""
        moving: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}
        told = {name: cut_off(schedule, steps) for name, schedule in moving.items()}
        return {name: text for name, text in told.items() if text}

    @property
    def has_weight(self) -> bool:
        """Whether the weight is above 0 at some time."""
        return self.weight.start > 0 or self.weight.end > 0 if isinstance(self.weight, Schedule) else self.weight > 0


@component
class PreparedObjective(Objective):
    """An objective that must be made ready for two models: it defines `prepare`, and its term computes.

    Attributes:
        weight: Factor of the term.
    """

    reads: ClassVar[Reads] = "model"

    @abstractmethod
    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""

    def per_example(self, comparison: Comparison) -> Tensor:
        """Not to be called: the term does it."""
        raise TypeError(f"'{self.name}' depends on the two models: call what `prepare(student, teacher)` returns.")


@component
class RowObjective(Objective):
    """An objective on logits: one value per row, whatever the task calls a row.

    Attributes:
        weight: Factor of the term.
    """

    needs_logits: ClassVar[bool] = False
    # Whether the objective is defined for a regression head, whose "logits" are the predicted values.
    takes_values: ClassVar[bool] = False
    # Whether a teacher's likeliest classes and the mass of the others (`rows.SparseRows`) are enough; if not, why.
    takes_sparse: ClassVar[bool] = False
    # Whether it is linear in the teacher's probabilities, so that classes drawn by these give its gradient on average.
    takes_samples: ClassVar[bool] = False
    # Whether it compares logits themselves, so that a teacher's probabilities will not do.
    compares_logits: ClassVar[bool] = False
    # Whether it weighs classes by the student's probability.
    by_student: ClassVar[bool] = False
    # Whether a label may be a distribution over classes; else it is given the likeliest class.
    takes_distributions: ClassVar[bool] = False
    needs_all_classes: ClassVar[str] = "it needs the teacher's logits of all classes"
    # Whether it takes the teacher's logits over its own vocabulary, where that is not the student's.
    own_vocabulary: ClassVar[bool] = False

    def needs(self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None) -> Needs:
        """Return what it needs; see `Objective.needs`."""
        temperature = getattr(self, "temperature", None)
        if isinstance(temperature, Schedule):
            temperatures: tuple[float, ...] = (temperature.start, temperature.end)
        else:
            temperatures = () if temperature is None else (float(temperature),)
        if self.written and not temperatures:
            temperatures = (1.0,)
        return replace(
            super().needs(student, teacher),
            why_all=self.needs_all_classes,
            temperatures=temperatures,
            exact_logits=self.compares_logits,
            by_student=self.by_student,
            own_vocabulary=self.own_vocabulary,
            values=self.takes_values,
            rows=True,
        )

    def _classes(self) -> Classes | None:
        if not self.needs_teacher:
            return None
        return "all" if not self.takes_sparse else "drawn" if self.takes_samples else "top"

    @abstractmethod
    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss of every row.

        Args:
            student: Logits `(rows, classes)`, float32 (float64 where the model computes in it).
            teacher: Logits of the same shape, detached; with `takes_sparse` also `SparseRows`; None where the run has
                no teacher.
            labels: Class indices `(rows,)`, -100 for a row without label; or float targets with NaN; with
                `takes_distributions` also distributions `(rows, classes)`.

        Returns:
            `(rows,)`; 0 for a row that does not count for this objective.
        """

    @property
    def softens_by(self) -> float:
        """The temperature at which it compares at present; 1 where it has none."""
        return float(number(getattr(self, "temperature", 1.0)))

    @property
    def takes_impossible(self) -> bool:
        """Whether classes that neither model holds possible (`rows.base.IMPOSSIBLE` in both) change nothing.

        If not, rows with different numbers of classes are computed apart, and `rows` sees no such class.
        """
        return False

    def per_example(self, comparison: Comparison) -> Tensor:
        """Sum `rows` within each example."""
        rows = comparison.rows
        if rows.classes is None or self.takes_impossible:
            return self.sums(rows)
        return sum((self.sums(part) for part in by_width(rows)), rows.student.new_zeros(rows.examples))

    def sums(self, rows: Rows, **settings: Tensor) -> Tensor:
        """Sum the losses of some rows within each example, `(batch,)`; all their columns are classes.

        Args:
            rows: The rows.
            **settings: Handed on to `rows`, where it takes more than the rows.
        """
        if self.needs_teacher:
            rows = rows.compared if self.own_vocabulary else rows.at(settings.get("temperature", self.softens_by))
        teacher: Any = rows.teacher  # a class that takes no sparse teacher may leave it out of its signature
        if isinstance(teacher, MixtureRows):
            teacher = teacher.at(self.softens_by)
        if self.needs_teacher and not self.takes_sparse:
            teacher = self.dense(teacher)
        labels = rows.labels
        if labels.ndim == 2 and not self.takes_distributions:
            labels = likeliest(labels)
        if self.written:
            nothing = torch.full_like(rows.example, IGNORED)
            settings["written"] = nothing if rows.written is None else rows.written
        with guarded(self):
            values = self.rows(rows.student, teacher, labels, **settings)
        count = len(labels)
        check_result(self, values, (count,), rows.student, f"rows must return the loss of each of the {count} rows")
        return rows.sum_by_example(values)

    def dense(self, teacher: Tensor | SparseRows | None) -> Tensor:
        """Return the teacher's logits.

        Raises:
            ValueError: There is no teacher, or only a part of it.
        """
        if teacher is None:
            raise ValueError(f"'{self.name}' needs a teacher.")
        if isinstance(teacher, SparseRows):
            raise ValueError(f"'{self.name}' takes no sparse teacher: {self.needs_all_classes}.")
        return teacher


def temperatures_of(objectives: Iterable[RowObjective]) -> tuple[float, ...]:
    """Return at which temperatures objectives compare at present, 1 among them."""
    return tuple(dict.fromkeys([1.0, *(one.softens_by for one in objectives if one.needs_teacher)]))


def unique_names(objectives: Iterable[Objective]) -> list[str]:
    """Return the names of the terms of a training, repeated ones numbered: kl, kl_2."""
    names = [objective.name for objective in objectives]
    return [
        name if (seen := names[:index].count(name)) == 0 else f"{name}_{seen + 1}" for index, name in enumerate(names)
    ]


class Term(nn.Module):
    """An objective with its layers chosen and its projections built.

    Parameters of a term train with the student, and buffers are kept with them: in every checkpoint, never in the
    exported student. The models themselves must not become submodules of a term (keep what is needed of them in a
    tuple): they would train and be saved twice.

    Attributes:
        objective: What it computes, with schedules replaced by their present value.
        needs_data: Whether the trainer first shows it a few batches (`observe`, then `settle`).
    """

    needs_data: bool = False

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def watching(self) -> AbstractContextManager[None]:
        """Keep, while it is open, what the models compute on the way (forward hooks); open for one forward pass.

        What was kept belongs to the batch of that pass: `forward` follows, and drops it.
        """
        return nullcontext()

    def observe(self, comparison: Comparison) -> None:
        """Look at a batch before training."""

    def settle(self) -> str | None:
        """Decide on what was observed; return a text about it for the user."""
        return None

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the loss sum of every example, `(batch,)`, differentiable to the student and to own parameters."""
        return self.objective.per_example(comparison)
