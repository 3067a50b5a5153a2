"""Both models taken apart at their heads, for one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_distill.models.heads import Captured, Head, capturing, open_head
from hf_distill.models.inspection import base_model
from hf_distill.models.projection import Side
from hf_distill.rows.base import RowLayout, SparseRows, side_of
from hf_distill.training.chunked.compiled import Compiler
from hf_distill.training.chunked.rows import HeadRows


class Heads:
    """Both models taken apart at their heads.

    Args:
        student: Without wrapper of a distributed training; PEFT's may be there.
        teacher: Likewise; None where there is none.
        heads: Of both.
        compiler: See `HeadRows`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        heads: tuple[Head, Head | None],
        compiler: Compiler | None = None,
    ) -> None:
        self._models = (student, teacher)
        self._heads = heads
        self._compiler = compiler
        self._captured: list[Captured] = []

    @classmethod
    def open(cls, student: nn.Module, teacher: nn.Module | None, compiler: Compiler | None = None) -> Heads | None:
        """Take the models apart; None if one of them cannot be, or if they have the same head."""
        ours = open_head(student)
        theirs = None if teacher is None or ours is None else open_head(teacher)
        if ours is None or (teacher is not None and theirs is None):
            return None
        if theirs is not None and theirs.linear is ours.linear:  # whose input it is could not be told
            return None
        return cls(student, teacher, (ours, theirs), compiler)

    def are_of(self, student: nn.Module, teacher: nn.Module | None) -> bool:
        """Whether these are still the heads of two models."""
        for model, mine, head in zip((student, teacher), self._models, self._heads, strict=True):
            base: Any = None if model is None else base_model(model)
            if model is not mine or (head is not None and base.get_output_embeddings() is not head.linear):
                return False
        return True

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Keep what both models would have given to their heads in one forward pass, and make no logits."""
        (student, teacher), (ours, theirs) = self._models, self._heads
        with capturing(student, ours) as first:
            if teacher is None or theirs is None:
                self._captured = [first]
                yield
            else:
                with capturing(teacher, theirs) as second:
                    self._captured = [first, second]
                    yield

    def rows(self, layout: RowLayout, inputs: Mapping[str, Tensor], kept: SparseRows | None = None) -> HeadRows:
        """Return the rows of the batch that was captured.

        Args:
            layout: Of the task.
            inputs: The batch.
            kept: The teacher's rows, where there is no teacher but these.
        """
        places = layout.places(inputs)
        assert places is not None
        classes: int | None = getattr(layout, "classes", None)
        sides: list[Side] = []
        shared = layout.shared(places.mask.device)
        for captured, head in zip(self._captured, self._heads, strict=False):
            assert head is not None
            sides.append(side_of(head, captured, places, classes, shared if sides else None))
        self._captured = []
        student, teacher = (*sides, None)[:2]
        assert student is not None
        return HeadRows(
            student, teacher or kept, places.labels, places.example, len(places.mask), self._compiler, shared
        )
