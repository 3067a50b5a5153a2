"""Matching derivatives: how the answer changes with the input, not only what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives.base import PreparedObjective

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from hf_distill.objectives.term import Term
    from hf_distill.rows.base import Unit


@component
class InputGradient(PreparedObjective):
    """Difference of both models' gradients with respect to the input embeddings. See `input_gradient_term`.

    For class `c`, the one that the teacher ranks first (second, ... up to `classes`) in a row, and the embeddings `E`
    of an example: `J = d/dE sum_rows log p_c(row)`, of the teacher `J_t`, of the student `J_s`; for regression the
    predicted value stands in the place of `log p_c`. The mean over `classes` of

    - `normalized`: `|J_s / |J_s| - J_t / |J_t||^2`, each of length 1 over the whole example (Srinivas and Fleuret 2018,
      arXiv 1803.00443: Jacobian matching of the top class; theirs is of the logit). It is `2 - 2 cos(J_s, J_t)`.
    - `cosine`: `1 - cos` for every token by itself, as much for a token that hardly matters as for the one that
      decides; a token on which the teacher's answer does not depend at all costs nothing.
    - `mse`: `|J_s - J_t|^2` for every token, summed over the width (Czarnecki et al. 2017, Sobolev training, arXiv
      1706.04859, who project a Jacobian of many outputs on a few directions too).

    Log-probabilities, since a constant added to all logits changes no answer, but their gradient. A classifier's
    example is one row, so `J` is a row of its Jacobian. Where an example has several rows (tokens), it is the gradient
    of their sum: one for every row would take as many backward passes. In training `J_s` is that of the student with
    its dropout.

    The lengths of gradients depend on how a model scales its embeddings, so `mse` is for a student that has those of
    its teacher. Where the widths differ, a learned matrix without bias takes the student's gradient to the teacher's
    width; it trains with the student and is not exported. It assumes that the teacher's embeddings are, seen from the
    student, a linear image of its own.

    Cost: a second derivative of the student and a first one of the teacher, with attention as plain matrix products. On
    one CPU core (BERT, 4 layers, width 256, 16 texts of 64 tokens, a teacher of the same size) a step with `kl` and
    this took 2.2 times as long as one with `kl` alone, and 1.2 times that more for each further class.

    Relations: `kl` matches the value of the function that this matches the slope of; alone it leaves the student's
    answer free by a constant, so it goes beside another objective.

    Attributes:
        weight: Factor of the term.
        classes: How many of the teacher's likeliest classes, at most all; each is a backward pass of both models.
        loss: `normalized`, `cosine` or `mse`, see above.
        projection: `auto`: learned where the widths differ. `always`: also where they are equal, for a student whose
            embeddings are not its teacher's.
    """

    name: ClassVar[str] = "input_gradient"
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
        """See `Objective.check`."""
        for config, whose in ((student, "student"), (teacher, "teacher")):
            if config.is_encoder_decoder:
                raise UserError(
                    f"'{self.name}' compares gradients in the embeddings of one stack, but the {whose} "
                    f"({config.model_type}) has an encoder and a decoder. Leave it out.",
                    key="name",
                )

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        from hf_distill.objectives.input_gradient_term import InputGradientTerm

        return InputGradientTerm(self, student, teacher)
