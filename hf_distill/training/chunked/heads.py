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
        models: The student, without a wrapper such as DDP (it may be a PEFT model), then the teachers.
        heads: The head of each model, in the same order.
        compiler: Compiles the loss of blocks; None to compute it eagerly.
    """

    def __init__(
        self, models: Sequence[nn.Module], heads: Sequence[OutputHead], compiler: Compiler | None = None
    ) -> None:
        self._models = tuple(models)
        self._heads = tuple(heads)
        self._compiler = compiler
        self._captured: list[Captured] = []

    @classmethod
    def open(
        cls, student: nn.Module, teachers: Mapping[str, nn.Module], compiler: Compiler | None = None
    ) -> Heads | None:
        """Return the heads of the models; None if one cannot be separated, or if two models share a head.

        Args:
            student: The student.
            teachers: The models that run beside it (`TargetSource.models`).
            compiler: Compiles the loss of blocks; None to compute it eagerly.
        """
        models, heads = [student, *teachers.values()], []
        for model in models:
            if (head := open_head(model)) is None:
                return None
            heads.append(head)
        if len({id(head.linear) for head in heads}) < len(heads):  # the inputs of both models would be mixed up
            return None
        return cls(models, heads, compiler)

    def are_of(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> bool:
        """Return whether these are still the heads of these models."""
        models = (student, *teachers.values())
        if len(models) != len(self._models):
            return False
        for model, mine, head in zip(models, self._models, self._heads, strict=True):
            base: Any = base_model(model)
            if model is not mine or base.get_output_embeddings() is not head.linear:
                return False
        return True

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Context manager for one forward pass: store the inputs of all heads, and compute no logits."""
        with ExitStack() as stack:
            pairs = zip(self._models, self._heads, strict=True)
            self._captured = [stack.enter_context(capturing(model, head)) for model, head in pairs]
            yield

    def log_probabilities(self, model: int, places: Places, classes: int | None) -> Tensor:
        """Return the log-probabilities of the labels at some places by one of the models, `(rows,)`; before `rows`.

        Args:
            model: 0 for the student, 1 for the teacher.
            places: Of this model's own output.
            classes: Number of columns that are tokens; None for all.
        """
        return log_probabilities(side_of(self._heads[model], self._captured[model], places, classes), places.labels)

    def of_teachers(self) -> tuple[Captured, ...]:
        """Return what was captured of the teachers, which have run, in the present forward pass."""
        return tuple(replace(one) for one in self._captured[1:])

    def recall(self, captured: Sequence[Captured]) -> None:
        """Take what was captured of the teachers in an earlier forward pass for that of the present one."""
        for mine, earlier in zip(self._captured[1:], captured, strict=True):
            mine.hidden, mine.dtype = earlier.hidden, earlier.dtype

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
        for captured, head in zip(self._captured, self._heads, strict=True):
            sides.append(side_of(head, captured, places, classes, shared if sides else None, of_teacher=bool(sides)))
        self._captured = []
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
        )
