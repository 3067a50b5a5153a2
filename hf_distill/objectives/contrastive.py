"""The contrastive objective: to tell what the teacher says of an example from what it says of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill import parallel
from hf_distill.component import component
from hf_distill.models.layers import States, last_layer, read_stack
from hf_distill.objectives.base import PreparedObjective, Term
from hf_distill.objectives.pairwise import both
from hf_distill.objectives.schedule import Temperature, number

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.objectives.base import Comparison, Reads
    from hf_distill.rows.base import Unit


@component
class Contrastive(PreparedObjective):
    """Pick the teacher's representation of the same example among those of others.

    Formula:
        `info_nce`: `-log(e_0 / (e_0 + sum_k e_k))`, `e_k = exp(s . t_k / temperature)`; `crd`: `-log h(e_0) - sum_k
        log(1 - h(e_k))` for both sides, `h(e) = e / (e + K c)`

    `s` and `t` are learned linear projections of both models' representations, scaled to length 1. An example's
    positive (`e_0`) is its own representation; its negatives (`e_k`) are the other examples of the micro-batch and
    those in the memory, which holds the last `memory` examples that training has seen, on all processes. The same text
    again (a distance below 1 % of its length) is not a negative.

    `info_nce` is equation 4 of the paper, with a queue as in He et al. 2019 (arXiv 1911.05722). The memory holds what
    the frozen teacher computed, projected anew each time, so nothing in it is out of date.

    `crd` is added for the student among the teacher's and for the teacher among the student's, as in the authors' code:
    `K` is the number of negatives, `c` the mean of `e` in the first batch. The authors draw negatives from a bank of
    the whole data set and average an example's last entries; here they are the micro-batch and the memory, whose
    representations of the student are out of date by up to its length. They weigh it with 0.8, with 16384 negatives.

    Which negatives there are depends on how a step is split into micro-batches, and in evaluation on the batch size.

    Attributes:
        of: What represents an example: the `mean` of its last hidden states, that of its `first` or `last` token, or
            the `embedding` of a sentence-similarity model.
        loss: `info_nce`: find the positive among the negatives. `crd`: tell positive from negative, for student and
            teacher.
        width: Width of the learned projections.
        memory: How many earlier examples are used as negatives besides the micro-batch.
        temperature: Divides the similarities.
    """

    name: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = (
        "van den Oord et al. 2018, Contrastive Predictive Coding, arXiv 1807.03748, equation 4; "
        "Tian et al. 2020, Contrastive Representation Distillation, arXiv 1910.10699"
    )
    unit: ClassVar[Unit] = "example"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    reads: ClassVar[Reads] = "states"
    within_batch: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reaches_head: ClassVar[bool] = False
    vectors_by: ClassVar[str] = "of"

    of: Literal["mean", "first", "last", "embedding"] = "mean"
    loss: Literal["info_nce", "crd"] = "info_nce"
    width: Annotated[int, Field(ge=1)] = 128
    memory: Annotated[int, Field(ge=0)] = 4096
    temperature: Temperature = 0.07

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """Return the term for these two models, its layers chosen and its projections made."""
        assert teacher is not None
        if self.of == "embedding":  # which passes layers of its own, or is of several poolings
            from hf_distill.models.sentence_encoder import vector_width  # imports Transformers

            return ContrastiveTerm(self, vector_width(student), vector_width(teacher))
        ours: Any = student.config
        theirs: Any = teacher.config
        return ContrastiveTerm(self, _width(ours, "student"), _width(theirs, "teacher"))

    @property
    def vectors(self) -> bool:  # type: ignore[override]
        """Whether the model's own vectors represent the examples."""
        return self.of == "embedding"

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """Return the hidden states of the teacher that it reads."""
        return last_layer(teacher, self.of)

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse two models that it cannot compare."""
        _width(student, "student")
        _width(teacher, "teacher")


def _width(config: PretrainedConfig, whose: str) -> int:
    return read_stack(config, "encoder" if config.is_encoder_decoder else None, whose).width


# Share of its length: so near to each other are the teacher's representations of one text, padded to other lengths and
# computed in bfloat16.
SAME = 0.01


class ContrastiveTerm(Term):
    """The term of `contrastive`: two projections, and a memory of earlier examples.

    The memory is a ring of buffers, filled in training only. It takes the examples of all processes, so that it is the
    same on each of them: DDP copies the buffers of the first process to the others before every forward pass, and would
    throw away what only they had seen.

    Args:
        objective: What it computes.
        student_width: Width of the student's representations.
        teacher_width: Width of the teacher's.
    """

    objective: Contrastive
    student_memory: Tensor
    teacher_memory: Tensor
    seen: Tensor
    log_mean: Tensor

    def __init__(self, objective: Contrastive, student_width: int, teacher_width: int) -> None:
        super().__init__(objective)
        self.student_head = nn.Linear(student_width, objective.width)
        self.teacher_head = nn.Linear(teacher_width, objective.width)
        # How many examples went into the memory, those that later ones have replaced included.
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        # The teacher is frozen: what it says of an example stays true, and is projected anew every time.
        self.register_buffer("teacher_memory", torch.zeros(objective.memory, teacher_width))
        if objective.loss == "crd":
            self.register_buffer("student_memory", torch.zeros(objective.memory, objective.width))
            # Logarithm of c, of the student's side and of the teacher's; not known before the first batch.
            self.register_buffer("log_mean", torch.full((2,), torch.nan))

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the loss of every example, `(batch,)`; where it is several texts, their mean."""
        ours, theirs = both(comparison, self.objective.of)
        with torch.autocast(ours.device.type, enabled=False):
            loss = self._losses(ours, theirs)
        return comparison.fold(loss) * comparison.rows.examples / len(loss)

    def _losses(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the loss of every text, `(n,)`, and remember them in training."""
        candidates = torch.cat((theirs, self.teacher_memory.to(theirs)))
        negative = self._negatives(theirs, candidates)
        student, teachers = _projected(self.student_head, ours), _projected(self.teacher_head, candidates)
        scores = student @ teachers.T / number(self.objective.temperature)
        if self.objective.loss == "info_nce":
            losses = _info_nce(scores, negative)
        else:
            students = torch.cat((student, self.student_memory.to(student)))
            back = teachers[: len(theirs)] @ students.T / number(self.objective.temperature)
            means = self._log_means(scores, back, negative)
            losses = _estimation(scores, negative, means[0]) + _estimation(back, negative, means[1])
        if self.training:
            self._remember(student.detach(), theirs)
        return losses

    @torch.no_grad()
    def _negatives(self, theirs: Tensor, candidates: Tensor) -> Tensor:
        """Return which candidates, the batch and then the memory, are others than each text, bool `(n, candidates)`."""
        distances = torch.cdist(theirs, candidates, compute_mode="donot_use_mm_for_euclid_dist")
        other: Tensor = distances > SAME * torch.linalg.vector_norm(theirs, dim=-1, keepdim=True)
        other[:, : len(theirs)].fill_diagonal_(False)
        places = torch.arange(candidates.shape[0], device=theirs.device)
        return other & (places < len(theirs) + self.seen)

    @torch.no_grad()
    def _log_means(self, scores: Tensor, back: Tensor, negative: Tensor) -> Tensor:
        """Return log c of both sides, `(2,)`: in a training that of its first batch, the same on all processes."""
        used = _with_positive(negative)
        fresh = torch.stack([side[used].logsumexp(0) - used.sum().log() for side in (scores, back)])
        if self.training:
            # From all processes at every step: which of them has a negative already is not known to the others.
            known = torch.where(negative.any(), fresh, torch.nan).unsqueeze(0)
            first = parallel.gathered_rows(known).nanmean(0).to(self.log_mean)
            self.log_mean.copy_(torch.where(self.log_mean.isnan(), first, self.log_mean))
        means: Tensor = torch.where(self.log_mean.isnan(), fresh, self.log_mean.to(fresh))
        return means

    @torch.no_grad()
    def _remember(self, student: Tensor, theirs: Tensor) -> None:
        """Put the texts of all processes into the memory, in place of the oldest."""
        size = len(self.teacher_memory)
        memories = [(self.teacher_memory, theirs)]
        if self.objective.loss == "crd":
            memories.append((self.student_memory, student))
        added = 0
        for memory, vectors in memories if size else []:
            latest = parallel.gathered_rows(vectors)[-size:].to(memory)
            added = len(latest)
            memory.index_copy_(0, (self.seen + torch.arange(added, device=memory.device)) % size, latest)
        self.seen += added


def _projected(head: nn.Linear, vectors: Tensor) -> Tensor:
    return F.normalize(head(vectors.to(head.weight.dtype)).to(vectors), dim=-1)


def _with_positive(negative: Tensor) -> Tensor:
    """Return the mask of the negatives with each text itself added, which is the candidate of its own number."""
    used = negative.clone()
    used[:, : len(used)].fill_diagonal_(True)
    return used


def _info_nce(scores: Tensor, negative: Tensor) -> Tensor:
    """Return `-log(e_0 / (e_0 + sum_k e_k))` of every text, `(n,)`; 0 without negatives.

    Args:
        scores: Logarithms of `e`, `(n, candidates)`; the positive of text `i` is candidate `i`.
        negative: Which candidates are negatives.
    """
    texts = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(~_with_positive(negative), -torch.inf), texts, reduction="none")


def _estimation(scores: Tensor, negative: Tensor, log_mean: Tensor) -> Tensor:
    """Return `-log h(e_0) - sum_k log(1 - h(e_k))` of every text, `h(e) = e / (e + K c)`; 0 without negatives.

    Noise contrastive estimation: the authors' code divides `e` by `n c` and adds `K / n` in the denominator, with the
    number `n` of examples in the data, which cancels.
    """
    number = negative.sum(-1, keepdim=True)
    noise = number.clamp(min=1).log() + log_mean
    positive = F.softplus(noise.squeeze(-1) - scores.diagonal())
    losses = positive + F.softplus(scores - noise).masked_fill(~negative, 0.0).sum(-1)
    return losses * (number.squeeze(-1) > 0)
