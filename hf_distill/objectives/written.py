"""The objective on the tokens of a text alone: how likely both models find spans that their tokens make up exactly."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hf_distill.component import component
from hf_distill.objectives.base import Comparison, Objective
from hf_distill.objectives.divergences import binary_kl
from hf_distill.rows.base import Unit


@component
class Span(Objective):
    """Find every span of the text as likely as the teacher does.

    Formula:
        `chain`: `(log p(span) - log q(span))^2`; `alm`: `tau * KL(b_p || b_q)` with `b = (x, 1 - x)`, `x = P(span)^(1 /
        tau)`

    A span is the shortest text that tokens of both models make up exactly; with one tokenizer for both it is a token.
    Its probability is the product of those of its tokens, as each model spells it. So of the teacher one number a token
    is enough, whatever its tokenizer. It says much less than a row of logits: nothing about the tokens that the text
    does not have. Where rows can be compared, `kl` and `reverse_kl` teach more.

    The product leaves out other ways to spell the same text, and what the next token may begin with: of a teacher with
    `P(a) = .6`, `P(ab) = .1` and `P(b | a) = .2`, `P(bc | a) = .5`, a text that starts with `ab` has probability .52,
    and `a` then `b` .12.

    The paper's loss is the binary cross-entropy, which differs from this KL by a constant, without the factor `tau`; it
    keeps the size of the gradients. For large `tau` the loss tends to `s - t + t log(t / s)` with `t = -log p` and `s =
    -log q`.

    Attributes:
        loss: `chain` (squared difference of the logarithms, all ratios weigh the same) or `alm` (by probability:
            spans that both models find unlikely weigh little).
        tau: For `alm`: at 1 the probabilities themselves are compared, of which those of long spans are all near 0.
    """

    name: ClassVar[str] = "span"
    paper: ClassVar[str] = "Minixhofer, Vulic and Ponti 2025, Cross-Tokenizer Distillation (ALM), arXiv 2503.20083"
    unit: ClassVar[Unit] = "span"
    needs_logits: ClassVar[bool] = False
    written: ClassVar[bool] = True

    loss: Literal["chain", "alm"] = "chain"
    tau: Annotated[float, Field(gt=0.0)] = 100.0

    def per_example(self, comparison: Comparison) -> Tensor:
        """Return the sum over the spans of every example, `(batch,)`."""
        spans = comparison.spans
        if spans is None:
            raise ValueError(f"'{self.name}' needs a teacher that gives the probabilities of the tokens of the text.")
        teacher = spans.teacher.to(spans.student)
        # Where there is no span both are 0, and so is either loss.
        if self.loss == "chain":
            return (teacher - spans.student).square().sum(-1)
        return self.tau * binary_kl(teacher / self.tau, spans.student / self.tau).sum(-1)
