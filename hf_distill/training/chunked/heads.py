"""Captures the inputs of the heads of student and teachers in a forward pass, to compute logits in chunks later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hf_distill.models.heads import Captured, OutputHead, capturing, open_head
from hf_distill.models.inspection import base_model
from hf_distill.models.projection import Side
from hf_distill.models.target_model import Targets
from hf_distill.rows.base import Places, RowLayout, SparseRows, side_of
from hf_distill.rows.mixture import MixedSides
from hf_distill.training.chunked.compiled import Compiler
from hf_distill.training.chunked.rows import HeadRows
from hf_distill.training.chunked.written import log_probabilities


class Heads:
    """The heads of the student and of the models of a source of targets, separated from the rest of each model.

    Args:
        models: `student` -> the student, without a wrapper such as DDP (it may be a PEFT model), then the teachers.
        heads: The head of each model, under the same names and in the same order.
        compiler: Compiles the loss of blocks; None to compute it eagerly.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], heads: Mapping[str, OutputHead], compiler: Compiler | None = None
    ) -> None:
        self._models = dict(models)
        self._heads = dict(heads)
        self._compiler = compiler
        self._captured: dict[str, Captured] = {}

    @classmethod
    def open(
        cls, student: nn.Module, teachers: Mapping[str, nn.Module], compiler: Compiler | None = None
    ) -> Heads | None:
        """Return the heads of the models; None if one cannot be separated.

        Args:
            student: The student.
            teachers: The models that run beside it (`TargetSource.models`).
            compiler: Compiles the loss of blocks; None to compute it eagerly.
        """
        models, heads = {"student": student, **teachers}, {}
        for name, model in models.items():
            if (head := open_head(model)) is None:
                return None
            heads[name] = head
        return cls(models, heads, compiler)

    def are_of(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> bool:
        """Return whether these are still the heads of these models."""
        models = {"student": student, **teachers}
        if models.keys() != self._models.keys():
            return False
        for name, model in models.items():
            base: Any = base_model(model)
            if model is not self._models[name] or base.get_output_embeddings() is not self._heads[name].linear:
                return False
        return True

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The last layer of each model, whose weights are read by hand."""
        return [head.linear for head in self._heads.values()]

    @contextmanager
    def capturing(self, *whose: str) -> Iterator[None]:
        """Context manager for a forward pass: store the inputs of the heads, and compute no logits.

        Args:
            *whose: Names of the models that run; all of them if left out. Models that share a head run one by one.
        """
        with ExitStack() as stack:
            for name in whose or self._heads:
                self._captured[name] = stack.enter_context(capturing(self._models[name], self._heads[name]))
            yield

    def log_probabilities(self, model: int, places: Places, classes: int | None) -> Tensor:
        """Return the log-probabilities of the labels at some places by one of the models, `(rows,)`; before `rows`.

        Args:
            model: 0 for the student, 1 for the teacher.
            places: Of this model's own output.
            classes: Number of columns that are tokens; None for all.
        """
        name = [*self._heads][model]
        return log_probabilities(side_of(self._heads[name], self._captured[name], places, classes), places.labels)

    def of_teachers(self) -> dict[str, Captured]:
        """Return what was captured of the teachers, which have run, in the present forward pass."""
        return {name: replace(one) for name, one in self._captured.items() if name != "student"}

    def recall(self, captured: Mapping[str, Captured]) -> None:
        """Take what was captured of the teachers in an earlier forward pass for that of the present one."""
        self._captured |= {name: replace(one) for name, one in captured.items()}

    def rows(self, layout: RowLayout, inputs: Mapping[str, Tensor], targets: Targets | None = None) -> HeadRows:
        """Return the rows of the batch that was captured.

        Args:
            layout: Of the task.
            inputs: The batch.
            targets: Holds the teacher's rows, where no teacher was captured, and the weights of several.
        """
        places = layout.places(inputs)
        assert places is not None
        classes: int | None = getattr(layout, "classes", None)
        sides: list[Side] = []
        shared = layout.shared(places.mask.device)
        for name, head in self._heads.items():
            captured = self._captured[name]
            if not sides:
                sides.append(side_of(head, captured, places, classes))
            else:
                theirs = getattr(layout, "their_classes", None)
                sides.append(side_of(head, captured, places, theirs, shared, of_teacher=True))
        self._captured = {}
        student, *teachers = sides
        teacher: Side | MixedSides | SparseRows | None = None
        if targets is not None and targets.rows is not None:
            teacher = targets.rows.for_rows(len(places.labels), places.taught)
        if targets is not None and targets.mean is not None:
            teacher = MixedSides(tuple(teachers), targets.mean, places.example)
        elif teachers:
            teacher = teachers[0]
        return HeadRows(
            *(student, teacher, places.labels, places.example, len(places.mask), self._compiler, shared),
            taught=places.taught,
            written=places.written,
            mapping=getattr(layout, "mapping", None),
        )
