"""The contrastive objective: to tell what the teacher says of an example from what it says of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.objectives.base import PreparedObjective
from hf_distill.objectives.layers import States, last_layer, read_stack
from hf_distill.objectives.schedule import Temperature

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from hf_distill.objectives.base import Reads
    from hf_distill.objectives.term import Term
    from hf_distill.rows.base import Unit


@component
class Contrastive(PreparedObjective):
    """Pick the teacher's representation of the same example among those of others; with learned projections of both.

    `s` and `t` are learned linear projections of both models' representations to `width`, of length 1. An example's
    positive is its own; its negatives are the other examples of the micro-batch and those in the memory, which holds
    the last `memory` examples that training has seen, on all processes. An example that the teacher represents as this
    one (a distance below 1 % of its length: the same text again) is no negative of it.

    `info_nce`: `-log(e_0 / (e_0 + sum_k e_k))`, `e_k = exp(s . t_k / temperature)`, positive 0, negatives `k` (van den
    Oord et al. 2018, arXiv 1807.03748, equation 4; with a queue as in He et al. 2019, arXiv 1911.05722). The memory
    holds what the frozen teacher computed, projected anew each time, so nothing in it is out of date.

    `crd`: `-log h(e_0) - sum_k log(1 - h(e_k))`, `h(e) = e / (e + K c)`, for the student among the teacher's and for
    the teacher among the student's, added (Tian et al. 2020, arXiv 1910.10699, as in the authors' code): `K` the number
    of negatives, `c` the mean of `e` in the first batch. There the negatives are drawn from a bank of the whole data
    set, in which an example's last entries are averaged; here they are the micro-batch and the memory. What it holds of
    the student is as old as it is long. They weigh it with 0.8, with 16384 negatives.

    Which negatives there are depends on how a step is split into micro-batches, and in evaluation on the batch size.

    Attributes:
        weight: Factor of the term.
        of: What represents an example: `mean` of the last hidden states of its tokens, that of its `first` or of its
            `last` token, or the `embedding` of a sentence-similarity model.
        loss: `info_nce` or `crd`.
        width: Of the projections.
        memory: How many earlier examples are kept as negatives; 0 for those of the micro-batch only.
        temperature: Of the similarities.
    """

    name: ClassVar[str] = "contrastive"
    unit: ClassVar[Unit] = "example"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"
    within_batch: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reaches_head: ClassVar[bool] = False

    of: Literal["mean", "first", "last", "embedding"] = "mean"
    loss: Literal["info_nce", "crd"] = "info_nce"
    width: Annotated[int, Field(ge=1)] = 128
    memory: Annotated[int, Field(ge=0)] = 4096
    temperature: Temperature = 0.07

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `contrastive_terms.ContrastiveTerm`."""
        from hf_distill.objectives.contrastive_terms import ContrastiveTerm

        assert teacher is not None
        if self.of == "embedding":  # which passes layers of its own, or is of several poolings
            from hf_distill.models.sentence_encoder import vector_width

            return ContrastiveTerm(self, vector_width(student), vector_width(teacher))
        ours: Any = student.config
        theirs: Any = teacher.config
        return ContrastiveTerm(self, _width(ours, "student"), _width(theirs, "teacher"))

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """See `Objective.teacher_states`."""
        return last_layer(teacher, self.of)

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """See `Objective.check`."""
        _width(student, "student")
        _width(teacher, "teacher")


def _width(config: PretrainedConfig, whose: str) -> int:
    return read_stack(config, "encoder" if config.is_encoder_decoder else None, whose).width
