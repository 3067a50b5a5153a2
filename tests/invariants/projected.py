"""An objective that learns: what the trainer does for projections is tested with it, whatever objectives there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.objectives import Comparison
from hf_distill.objectives.base import PreparedObjective, Term


@component
class Projected(PreparedObjective):
    """Squared distance of the last hidden states, the student's projected to the teacher's width."""

    name: ClassVar[str] = "projected"
    unit: ClassVar[Any] = "token"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        assert teacher is not None
        widths: list[Any] = [model.config.hidden_size for model in (student, teacher)]
        return ProjectedTerm(self, *widths)


class ProjectedTerm(Term):
    """Has one projection."""

    def __init__(self, objective: Projected, student: int, teacher: int) -> None:
        super().__init__(objective)
        self.projection = nn.Linear(student, teacher)

    def forward(self, comparison: Comparison) -> Tensor:
        """See `Term.forward`."""
        assert comparison.teacher is not None
        mine = self.projection(comparison.student["hidden_states"][-1])
        squares = (mine - comparison.teacher["hidden_states"][-1]).square().sum(-1)
        return comparison.fold((squares * comparison.tokens).sum(-1))


@component
class Hooked(PreparedObjective):
    """Squared distance of what the embeddings return, which only a hook can see."""

    name: ClassVar[str] = "hooked"
    unit: ClassVar[Any] = "token"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        return HookedTerm(self, student, teacher)


class HookedTerm(Term):
    """Keeps what both embeddings return."""

    def __init__(self, objective: Hooked, *models: Any) -> None:
        super().__init__(objective)
        self.embeddings = tuple(model.get_input_embeddings() for model in models)
        self.seen: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See `Term.watching`."""
        self.seen.clear()
        handles = [one.register_forward_hook(lambda *call: self.seen.append(call[2])) for one in self.embeddings]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, comparison: Comparison) -> Tensor:
        """See `Term.forward`."""
        theirs, mine = self.seen  # the teacher runs first
        self.seen.clear()
        return comparison.fold(((mine - theirs).square().sum(-1) * comparison.tokens).sum(-1))
