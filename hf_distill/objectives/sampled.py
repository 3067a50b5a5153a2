"""The objective on tokens that the student drew itself: the reverse KL divergence, estimated by single tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from hf_distill.component import component
from hf_distill.models.needs import Classes, Needs
from hf_distill.objectives.base import RowObjective
from hf_distill.objectives.functional import partly_sampled_reverse_kl, sampled_reverse_kl
from hf_distill.rows.base import SparseRows, Unit, upcast

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@component
class SampledReverseKL(RowObjective):
    """`reverse_kl` from the tokens that the student drew: for teachers that give one number a token.

    Formula:
        `log q_y - log p_y` of each token `y` that the student drew; its gradient is `(log q_y - log p_y) d log q_y`

    Value and gradient are those of `reverse_kl` on average over the draws: a policy gradient whose advantage is
    `log p_y - log q_y`. Single tokens vary so much that on language models the gradient has some 12 to 16 times the
    squared norm of that of `reverse_kl`. So it is for teachers of which no more is known. It means nothing on texts
    that the student did not write. With `top` of 1 or more, that many of the teacher's likeliest tokens are compared as
    in `reverse_kl`, and only the others by the token that was drawn: right on average too, and as a rule less varied.

    Attributes:
        top: How many of the teacher's likeliest tokens to compare exactly; all, if there are fewer.
    """

    name: ClassVar[str] = "reverse_kl_sampled"
    paper: ClassVar[str] = "Lu and Thinking Machines Lab 2025, On-Policy Distillation; top 0 is theirs"
    unit: ClassVar[Unit] = "written"
    takes_sparse: ClassVar[bool] = True
    written: ClassVar[bool] = True
    likeliest: ClassVar[str | None] = "top"

    top: Annotated[int, Field(ge=0)] = 0

    def needs(self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None) -> Needs:
        """Return what it needs; see `Objective.needs`. Without `top` that is one number a token."""
        needs = super().needs(student, teacher)
        return needs if self.top else replace(needs, likeliest=None)

    def _classes(self) -> Classes | None:
        return "top" if self.top else None

    def rows(
        self, student: Tensor, teacher: Tensor | SparseRows | None, labels: Tensor, written: Tensor | None = None
    ) -> Tensor:
        """Return the estimate of each row, `(rows,)`; 0 where no token was drawn.

        Args:
            student: See `RowObjective.rows`.
            teacher: See `RowObjective.rows`.
            labels: Not used.
            written: The tokens that were drawn, `(rows,)`; -100 for none.

        Raises:
            ValueError: A sparse teacher was stored at another temperature, or without the probabilities of the tokens.
        """
        if written is None:
            raise ValueError(f"'{self.name}' needs the tokens that the student drew.")
        if isinstance(teacher, SparseRows):
            indices, kept, log_p = self._known(teacher)
        else:
            logits = upcast(self.dense(teacher))
            whole = logits.logsumexp(-1, keepdim=True)
            log_p = (logits.gather(-1, written.clamp(min=0).unsqueeze(-1)) - whole).squeeze(-1)
            kept, indices = logits.topk(min(self.top, logits.shape[-1]))
            kept = kept - whole
        if not self.top:
            return sampled_reverse_kl(student, written, log_p)
        return partly_sampled_reverse_kl(student, written, log_p, indices, kept)

    def _known(self, teacher: SparseRows) -> tuple[Any, Any, Tensor]:
        """Return the classes to compare exactly, their log-probabilities, and those of the tokens that were drawn."""
        if teacher.written is None:
            raise ValueError(f"'{self.name}' needs the teacher's probability of the token that was drawn.")
        if teacher.temperature != 1.0:
            raise ValueError(f"'{self.name}' compares at temperature 1, and these are at {teacher.temperature:g}.")
        kept, places = teacher.log_probabilities.topk(min(self.top, teacher.log_probabilities.shape[-1]))
        return teacher.indices.gather(-1, places), kept, teacher.written
