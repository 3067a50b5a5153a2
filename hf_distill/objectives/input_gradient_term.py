"""The term of `input_gradient`: both models' gradients in their input embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill.objectives.term import Term
from hf_distill.rows.base import upcast

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison
    from hf_distill.objectives.input_gradient import InputGradient


class InputGradientTerm(Term):
    """Compares gradients. See `InputGradient` for the formulas.

    Args:
        objective: Its settings.
        student: Without wrappers.
        teacher: Likewise.

    Attributes:
        projection: From the student's width to the teacher's; None where they are compared as they are.
    """

    objective: InputGradient

    def __init__(self, objective: InputGradient, student: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__(objective)
        models: tuple[Any, ...] = (student, teacher)
        # In a tuple, so that they do not become submodules.
        self._embeddings: tuple[Any, ...] = tuple(model.get_input_embeddings() for model in models)
        self._seen: dict[nn.Module, list[Tensor]] = {}
        mine, theirs = (int(one.weight.shape[-1]) for one in self._embeddings)
        self.projection: nn.Linear | None = None
        if objective.projection == "always" or mine != theirs:
            self.projection = nn.Linear(mine, theirs, bias=False)
            nn.init.xavier_uniform_(self.projection.weight)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep both models' embeddings of the batch, as something to differentiate by."""
        self._seen = {one: [] for one in self._embeddings}
        with ExitStack() as stack:
            for one in self._seen:
                stack.callback(one.register_forward_hook(self._keep).remove)
            yield

    def _keep(self, embeddings: nn.Module, _: Any, output: Tensor) -> Tensor:
        # Frozen ones (the teacher's, or those of a student with adapters) belong to no graph yet.
        kept = output if output.requires_grad else output.detach().requires_grad_()
        self._seen[embeddings].append(kept)
        return kept

    def forward(self, comparison: Comparison) -> Tensor:
        """See `Term.forward`."""
        rows = comparison.rows
        if comparison.teacher_rows is None:
            raise ValueError(f"'{self.objective.name}' needs the teacher's rows with their graph: `teacher_rows`.")
        # The teacher ran first; the two are one model in a comparison with itself.
        mine, theirs = self._seen[self._embeddings[0]][-1], self._seen[self._embeddings[1]][0]
        self._seen = {}
        scores = [_scores(one) for one in (rows.compared.student, comparison.teacher_rows)]
        top = scores[1].detach().topk(min(self.objective.classes, scores[1].shape[-1])).indices
        losses = []
        for column in torch.split(top, 1, dim=-1):
            mine_slope, their_slope = (
                # Retained, since other terms go back through these graphs as well.
                torch.autograd.grad(score.gather(-1, column).sum(), point, retain_graph=True, create_graph=second)[0]
                for score, point, second in zip(scores, (mine, theirs), (True, False), strict=True)
            )
            losses.append(self._distance(self._projected(mine_slope), their_slope, comparison.tokens))
        return comparison.fold(torch.stack(losses).mean(0))

    def _projected(self, slope: Tensor) -> Tensor:
        return slope if self.projection is None else self.projection(slope.to(self.projection.weight.dtype))

    def _distance(self, student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss of every sequence, `(sequences,)`."""
        kept = tokens.unsqueeze(-1).to(student.device)
        mine, theirs = (upcast(one).masked_fill(~kept, 0.0) for one in (student, teacher.to(student.device)))
        if self.objective.loss == "mse":
            return (mine - theirs).square().sum((1, 2))
        over = (1, 2) if self.objective.loss == "normalized" else (2,)
        # |a - b|^2 = 2 - 2 cos for vectors of length 1: unlike the cosine itself, exactly 0 where they are equal.
        difference = (_unit(mine, over) - _unit(theirs, over)).square().sum(over, keepdim=True)
        counted = (difference * theirs.square().sum(over, keepdim=True).gt(0)).sum((1, 2))
        return counted if self.objective.loss == "normalized" else counted / 2


def _scores(rows: Tensor) -> Tensor:
    """Return log-probabilities; predicted values as they are: there is nothing to normalise over."""
    return rows if rows.shape[-1] == 1 else rows.log_softmax(-1)


def _unit(vectors: Tensor, over: tuple[int, ...]) -> Tensor:
    """Return vectors of length 1; 0 stays 0, with a finite gradient."""
    squares = vectors.square().sum(over, keepdim=True)
    return vectors / squares.where(squares > 0, torch.ones_like(squares)).sqrt()
