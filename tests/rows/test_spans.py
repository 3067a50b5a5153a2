"""Rows of question answering: every objective sees the positions of the context, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import (
    OBJECTIVES,
    AdaptiveKL,
    Comparison,
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    Labels,
    LogitsMSE,
    Ranking,
    ReverseKL,
    RowObjective,
    SkewedKL,
    SkewedReverseKL,
    SoftCrossEntropy,
    TotalVariation,
)
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.rows.spans import SpanRows, by_width

Array = np.ndarray[Any, Any]

# How many positions of each example are the context's. A row of one class, one of fewer than `ranking` compares, an
# example without any, and several of the same number.
CONTEXTS = (1, 2, 11, 5, 0, 11, 9)
TOKENS = 14
LABELS = [[2, 2], [3, 2], [12, 3], [IGNORED, 4], [IGNORED, IGNORED], [IGNORED, IGNORED], [2, 10]]


def mask() -> Tensor:
    """Return the context after a question of two tokens; of the last example after a "no answer" position too."""
    rows = [[2 <= at < 2 + count for at in range(TOKENS)] for count in CONTEXTS]
    rows[-1][0], rows[-1][10] = True, True
    rows[-1][3] = False  # need not be in one piece
    return torch.tensor(rows)


def batch(dtype: torch.dtype = torch.float64, scale: float = 2.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    student, teacher = torch.randn(2, len(CONTEXTS), TOKENS, 2, dtype=torch.float64) * scale
    outside = ~mask().unsqueeze(-1)
    # What models say outside the context is anything, and often more than inside.
    student, teacher = student + 40 * outside, teacher + 30 * outside
    ones = torch.ones(len(CONTEXTS), TOKENS, dtype=torch.long)
    inputs = {"input_ids": ones, "context_mask": mask().long(), "labels": torch.tensor(LABELS)}
    return student.to(dtype), teacher.to(dtype), inputs


def losses(objective: RowObjective, student: Tensor, teacher: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    rows = SpanRows().select(student, teacher, inputs)
    return objective.per_example(Comparison(rows, {}, {}, inputs, torch.ones(0, 0)))


def soft(logits: Array, temperature: float) -> Array:
    scores = np.exp((logits - logits.max()) / temperature)
    return np.asarray(scores / scores.sum())


def divergence(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())


def by_hand(objective: Any, s: Array, t: Array, label: int | None) -> float:
    """Return the published formula for one row of logits of the classes that it has, in float64."""
    temperature = getattr(objective, "temperature", 1.0)
    p, q, squared = soft(t, temperature), soft(s, temperature), temperature**2
    match objective:
        case KLDivergence():
            return squared * divergence(p, q)
        case ReverseKL():
            return squared * divergence(q, p)
        case JensenShannon():
            share = objective.teacher_share
            middle = share * p + (1 - share) * q
            return squared * (share * divergence(p, middle) + (1 - share) * divergence(q, middle))
        case SkewedKL():
            return squared * divergence(p, objective.skew * p + (1 - objective.skew) * q)
        case SkewedReverseKL():
            return squared * divergence(q, objective.skew * q + (1 - objective.skew) * p)
        case AdaptiveKL():
            order = np.argsort(-p)
            head = np.cumsum(p[order]) <= objective.head_mass
            head[0] = True
            gaps = np.abs(p - q)[order]
            share = gaps[head].sum() / gaps.sum() if gaps.sum() else 0.5
            return squared * float(share * divergence(p, q) + (1 - share) * divergence(q, p))
        case TotalVariation():
            return squared * float(np.abs(p - q).sum()) / 2
        case SoftCrossEntropy():
            return -squared * float((p * np.log(q)).sum())
        case DecoupledKL():
            if label is None or len(s) == 1:
                return 0.0
            others = np.arange(len(s)) != label
            sure_p, sure_q = (np.array([one[label], one[others].sum()]) for one in (p, q))
            rest = divergence(p[others] / p[others].sum(), q[others] / q[others].sum())
            weights = objective.target_weight, objective.non_target_weight
            return squared * (weights[0] * divergence(sure_p, sure_q) + weights[1] * rest)
        case Ranking():
            top = np.argsort(-t)[: objective.top]
            pairs = [np.log1p(np.exp(s[low] - s[high])) for at, high in enumerate(top) for low in top[at + 1 :]]
            return float(np.mean(pairs)) if pairs else 0.0
        case LogitsMSE():
            return float(((s - t) ** 2).mean())
        case Labels():
            if label is None:
                return 0.0
            even = objective.label_smoothing / len(s)
            return -(1 - objective.label_smoothing) * float(np.log(q[label])) - even * float(np.log(q).sum())
    raise AssertionError(objective)


EXAMPLES: list[Any] = [
    KLDivergence(temperature=2.0),
    ReverseKL(temperature=3.0),
    JensenShannon(teacher_share=0.3, temperature=2.0),
    SkewedKL(skew=0.2),
    SkewedReverseKL(skew=0.2, temperature=2.0),
    AdaptiveKL(),
    AdaptiveKL(head_mass=0.8, temperature=2.0),
    TotalVariation(),
    SoftCrossEntropy(temperature=2.0),
    DecoupledKL(temperature=2.0),
    Ranking(),
    Ranking(top=3),
    LogitsMSE(),
    Labels(),
    Labels(label_smoothing=0.2),
]


def test_every_objective_on_logits_is_here() -> None:
    """An objective that is left out may take the question, or padding, for answers."""
    every = {name: one for name, one in OBJECTIVES.items() if issubclass(one, RowObjective)}
    # Nobody writes an answer's place, and it is in no vocabulary.
    wanted = {name for name, one in every.items() if one.unit != "written" and not one().needs().own_vocabulary}
    assert {objective.name for objective in EXAMPLES} == wanted


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_objectives_see_the_context_alone(objective: Any) -> None:
    """A mean over padding, smoothing onto the question, a ranking with what is no answer: none fails, all are wrong."""
    student, teacher, inputs = batch()
    wanted = []
    for at in range(len(CONTEXTS)):
        places = mask()[at].nonzero()[:, 0].tolist()
        total = 0.0
        for side in (0, 1):
            label = LABELS[at][side]
            s, t = student[at, places, side].numpy(), teacher[at, places, side].numpy()
            if places:
                total += by_hand(objective, s, t, places.index(label) if label in places else None)
        wanted.append(total)
    found = losses(objective, student, teacher, inputs)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [2.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_nothing_flows_outside_the_context(objective: Any, dtype: torch.dtype, scale: float) -> None:
    """An infinite logit in a mask gives NaN in some backward pass, and NaN weights for good."""
    student, teacher, inputs = batch(dtype, scale)
    student.requires_grad_()
    found = losses(objective, student, teacher, inputs)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient[~mask()].any()
    assert gradient[mask()].any()


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_padding_does_not_matter(objective: Any) -> None:
    """A loss that depends on the longest context of the batch is another one on every split."""
    student, teacher, inputs = batch()
    wide = {name: torch.nn.functional.pad(inputs[name], (0, 5)) for name in ("input_ids", "context_mask")}
    garbage = torch.randn(len(CONTEXTS), 5, 2, dtype=torch.float64) * 50
    padded = [torch.cat((one, garbage * sign), 1) for one, sign in ((student, 1), (teacher, -1))]
    inputs = {**inputs, **wide}
    torch.testing.assert_close(losses(objective, *padded, inputs), losses(objective, *batch()))
    for unit, count in SpanRows().units(inputs).items():
        if unit != "token":
            assert torch.equal(count, SpanRows().units(batch()[2])[unit])


def test_counts() -> None:
    """Two rows an example, a label where there is one in the context; one more or less scales the loss."""
    inputs = batch()[2]
    counts = SpanRows().counts(inputs)
    assert counts["row"].tolist() == [2, 2, 2, 2, 0, 2, 2]
    # The last one's end is in the context; a start at 14 is beyond all tokens, at 1 in the question.
    assert counts["label"].tolist() == [2, 2, 2, 1, 0, 0, 2]
    inputs["labels"] = torch.tensor([*LABELS[:5], [14, 1], [3, 0]])
    student, teacher, _ = batch()
    rows = SpanRows().select(student, teacher, inputs)
    assert SpanRows().counts(inputs)["label"].tolist() == [2, 2, 2, 1, 0, 0, 1]
    assert rows.labels.tolist() == [2, 2, 3, 2, 12, 3, IGNORED, 4, IGNORED, IGNORED, IGNORED, 0]
    assert rows.example.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 5, 5, 6, 6]
    alone = SpanRows().counts({"labels": torch.tensor(LABELS)})
    assert alone["label"].tolist() == [2, 2, 2, 1, 0, 0, 2]


def test_agreement_is_of_starts_and_ends() -> None:
    """The top position outside the context is nobody's answer, and often the greatest logit of all."""
    student, teacher, inputs = batch()
    inside = mask().unsqueeze(-1)
    tops = [one.masked_fill(~inside, -torch.inf).argmax(1) for one in (student, teacher)]
    wanted = (tops[0] == tops[1]).sum(-1).double()
    wanted[4] = 0  # it has no context
    found = SpanRows().select(student, teacher, inputs).agreement()
    assert found.tolist() == wanted.tolist()
    assert found[0] == 2


def test_without_a_context_mask_padding_is_left_out() -> None:
    """Ordinary batches of Transformers: their labels have other names, and point to the first token for "none"."""
    student, teacher, _ = batch()
    attended = torch.ones(len(CONTEXTS), TOKENS, dtype=torch.long)
    attended[2, 9:] = 0
    starts, ends = torch.tensor([0, 3, 4, 5, 0, 1, 99]), torch.tensor([0, 4, 12, 6, 0, 1, 99])
    inputs = {"attention_mask": attended, "start_positions": starts, "end_positions": ends}
    rows = SpanRows().select(student, teacher, inputs)
    assert rows.classes is not None
    assert rows.classes.sum(-1).tolist() == [14] * 4 + [9] * 2 + [14] * 8
    assert rows.labels.tolist() == [0, 0, 3, 4, 4, IGNORED, 5, 6, 0, 0, 1, 1, IGNORED, IGNORED]
    assert torch.equal(SpanRows().labels(inputs), torch.stack((starts, ends), -1))  # type: ignore[arg-type]
    assert SpanRows().labels({"attention_mask": attended}) is None
    assert SpanRows().counts({"attention_mask": attended})["label"].tolist() == [0] * 7
    assert SpanRows().counts({"input_ids": attended})["row"].tolist() == [2] * 7
    outputs = {"start_logits": student[..., 0], "end_logits": student[..., 1]}
    assert torch.equal(SpanRows().logits(outputs), student)


def test_parts_hold_every_row_once() -> None:
    """Rows apart by their number of classes: one lost, doubled or given to another example would go unnoticed."""
    student, teacher, inputs = batch()
    rows = SpanRows().select(student, teacher, inputs)
    parts = by_width(rows)
    assert [(len(part.labels), part.student.shape[-1]) for part in parts] == [(2, 1), (2, 2), (2, 5), (2, 9), (4, 11)]
    assert torch.equal(sum(part.sum_by_example(torch.ones(len(part.labels))) for part in parts), SpanRows().counts(inputs)["row"])  # type: ignore[arg-type]  # noqa: E501  # fmt: skip
    whole = Rows(torch.zeros(2, 3), None, torch.zeros(2).long(), torch.arange(2), 2)
    assert by_width(whole) == [whole]
    sparse = Rows(rows.student, SparseRows.of(rows.student, 2), rows.labels, rows.example, rows.examples, rows.classes)
    with pytest.raises(ValueError, match="need all of the teacher's logits"):
        by_width(sparse)
