"""Matching derivatives: how the answer changes with the input, not only what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives.base import PreparedObjective, Term
from hf_distill.objectives.projection import learned_projection
from hf_distill.rows.base import upcast

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.objectives.base import Comparison
    from hf_distill.rows.base import Unit


@component
class InputGradient(PreparedObjective):
    """Difference of both models' gradients with respect to the input embeddings.

    Formula:
        `normalized`: `|J_s / |J_s| - J_t / |J_t||^2` of an example; `cosine`: `1 - cos(J_s, J_t)`, or `mse`: `|J_s -
        J_t|^2`, of every token; `J` = gradient of the log-probability of the teacher's most likely class, summed over
        the example's rows; mean over `classes`

    For regression the predicted value stands in place of the log-probability. `normalized` scales each gradient to
    length 1 over the whole example (Srinivas and Fleuret 2018, who take the logit); it is `2 - 2 cos(J_s, J_t)`.
    `cosine` counts a token that hardly matters as much as the one that decides; a token on which the teacher's output
    does not depend costs nothing. `mse` is summed over the width (Czarnecki et al. 2017, Sobolev training, who also
    project a Jacobian of many outputs on a few directions).

    It uses log-probabilities because a constant added to all logits changes no prediction, but changes their gradient.
    A classifier's example is one row, so `J` is a row of its Jacobian. If an example has several rows (tokens), it is
    the gradient of their sum: one for every row would take as many backward passes. In training `J_s` is computed with
    the student's dropout.

    The lengths of gradients depend on how a model scales its embeddings, so `mse` is for a student that has its
    teacher's embeddings. If the widths differ, a learned matrix without bias maps the student's gradient to the
    teacher's width; it trains with the student and is not exported. It assumes that the teacher's embeddings are a
    linear image of the student's.

    Cost: a second derivative of the student and a first one of the teacher, with attention as plain matrix products. On
    one CPU core (BERT, 4 layers, width 256, 16 texts of 64 tokens, a teacher of the same size) a step with `kl` and
    this took 2.2 times as long as one with `kl` alone, and 1.2 times that more for each further class.

    It matches the slope of the function whose value `kl` matches. It does not fix the student's output level: combine
    it with another loss.

    Attributes:
        classes: How many of the teacher's most likely classes to differentiate, at most all. Each costs a backward pass
            of both models.
        loss: `normalized`: squared difference of the gradients of an example, each of length 1. `cosine`: difference in
            direction at every token. `mse`: squared difference at every token.
        projection: Learned matrix from the student's width to the teacher's. `auto`: added when the widths differ;
            `always`: also when they are equal, for a student whose embeddings are not its teacher's.
    """

    name: ClassVar[str] = "input_gradient"
    paper: ClassVar[str] = (
        "Srinivas and Fleuret 2018, Knowledge Transfer with Jacobian Matching, arXiv 1803.00443; "
        "Czarnecki et al. 2017, Sobolev Training, arXiv 1706.04859"
    )
    likeliest: ClassVar[str | None] = "classes"
    by_token: ClassVar[bool] = True
    # The fused kernels have no second derivative.
    needs_eager_attention: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    classes: Annotated[int, Field(ge=1)] = 1
    loss: Literal["normalized", "cosine", "mse"] = "normalized"
    projection: Literal["auto", "always"] = "auto"

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """What the sum is divided by: examples, each with gradients of length 1, or tokens."""
        return "example" if self.loss == "normalized" else "token"

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse two models that it cannot compare."""
        for config, whose in ((student, "student"), (teacher, "teacher")):
            if config.is_encoder_decoder:
                raise UserError(
                    f"'{self.name}' compares gradients in the embeddings of one stack, but the {whose} "
                    f"({config.model_type}) has an encoder and a decoder. Leave it out.",
                    key="name",
                )

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        return InputGradientTerm(self, student, teacher)


class InputGradientTerm(Term):
    """Compares gradients. See `InputGradient` for the formulas.

    Args:
        objective: Its settings.
        student: Without wrappers.
        teacher: The teacher, without wrappers.

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
        self.projection = learned_projection(mine, theirs, always=objective.projection == "always")

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
        """Return the loss sum of each example, `(batch,)`."""
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
