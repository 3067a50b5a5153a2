"""The term of the contrastive objective: two projections and a memory of earlier examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from hf_distill.models.representations import both
from hf_distill.objectives.schedule import number
from hf_distill.objectives.term import Term

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison
    from hf_distill.objectives.contrastive import Contrastive

# Share of its length: so near to each other are the teacher's representations of one text, padded to other lengths and
# computed in bfloat16.
SAME = 0.01


class ContrastiveTerm(Term):
    """See `Contrastive`.

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
            first = from_all_processes(known).nanmean(0).to(self.log_mean)
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
            latest = from_all_processes(vectors)[-size:].to(memory)
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


def from_all_processes(rows: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks; there may be more on one than on another."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
