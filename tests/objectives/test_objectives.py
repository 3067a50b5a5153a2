"""Objectives: one contract for all of them, and the published numbers for each."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from torch import Tensor

from hf_distill.component import entry
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.objectives import (
    OBJECTIVES,
    AdaptiveKL,
    Comparison,
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    Labels,
    LogitsMSE,
    NearestTokens,
    Objective,
    Ranking,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    SoftCrossEntropy,
    TotalVariation,
    UniversalLogit,
)
from hf_distill.objectives.base import RowObjective
from hf_distill.objectives.divergences import sorted_distance
from hf_distill.objectives.functional import label_loss, mean_squared_error
from hf_distill.objectives.softened import Softened
from hf_distill.rows.base import UNITS, RowLayout, Rows, SparseRows
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.spans import SpanRows
from hf_distill.rows.tokens import TokenRows

NAN = math.nan
BATCH = 6

# Every objective with settings that matter to its formula; a new one is held to the contract by a line here.
EXAMPLES: dict[str, list[Objective]] = {
    "kl": [KLDivergence(), KLDivergence(weight=0.5, temperature=3.0)],
    "reverse_kl": [ReverseKL(), ReverseKL(temperature=3.0, temperature_squared=False)],
    "js": [JensenShannon(), JensenShannon(teacher_share=0.1, temperature=2.0)],
    "skewed_kl": [SkewedKL(), SkewedKL(skew=0.0), SkewedKL(skew=0.6, temperature=2.0)],
    "skewed_reverse_kl": [SkewedReverseKL(), SkewedReverseKL(skew=0.6, temperature=2.0)],
    "adaptive_kl": [AdaptiveKL(), AdaptiveKL(head_mass=0.8, temperature=2.0)],
    "total_variation": [TotalVariation(), TotalVariation(temperature=2.0)],
    "soft_cross_entropy": [SoftCrossEntropy(), SoftCrossEntropy(temperature=4.0, temperature_squared=False)],
    "decoupled_kl": [DecoupledKL(), DecoupledKL(target_weight=2.0, non_target_weight=0.5, temperature=4.0)],
    "uld": [UniversalLogit(), UniversalLogit(temperature=2.0)],
    "mined": [NearestTokens(), NearestTokens(temperature=2.0)],
    "ranking": [Ranking(), Ranking(top=2)],
    "logits_mse": [LogitsMSE()],
    "labels": [Labels(), Labels(label_smoothing=0.1)],
}
# Not without a reason: a minimum away from the teacher; a gradient that is not that of the value.
AWAY_FROM_THE_TEACHER = {"labels", "ranking"}
CONSTANT_WEIGHTS = {"adaptive_kl"}
OBJECTIVE = [pytest.param(example, id=str(entry(example))) for examples in EXAMPLES.values() for example in examples]


@dataclass(frozen=True)
class Batch:
    """Logits of both models and the batch they come from."""

    layout: RowLayout
    student: Tensor
    teacher: Tensor
    inputs: dict[str, Tensor]

    def losses(self, objective: Objective, student: Tensor | None = None, teacher: Tensor | None = None) -> Tensor:
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher
        rows = self.layout.select(student, teacher if objective.needs_teacher else None, self.inputs)
        theirs: Mapping[str, Any] | None = {"logits": teacher} if objective.needs_teacher else None
        return objective.per_example(
            Comparison(rows, {"logits": student}, theirs, self.inputs, self.layout.tokens(self.inputs))
        )

    def part(self, where: slice) -> Batch:
        inputs = {key: value[where] for key, value in self.inputs.items()}
        return dataclasses.replace(self, student=self.student[where], teacher=self.teacher[where], inputs=inputs)


def make_batch(layout: RowLayout, *, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Batch:
    """Return a batch with labels and padding in which some examples have no label."""
    torch.manual_seed(1)
    if isinstance(layout, TokenRows):
        tokens, width = 7, 5
        mask = torch.ones(BATCH, tokens, dtype=torch.long)
        mask[1, 4:], mask[4, :3] = 0, 0
        labels = torch.randint(0, layout.classes or width, (BATCH, tokens)).masked_fill(mask == 0, IGNORED)
        labels[0, :3], labels[3] = IGNORED, IGNORED
        shape: tuple[int, ...] = (BATCH, tokens, width)
        inputs = {"input_ids": torch.randint(0, width, (BATCH, tokens)), "attention_mask": mask, "labels": labels}
    elif isinstance(layout, SpanRows):
        shape = (BATCH, 9, 2)
        mask = torch.tensor([[at in range(1, 3 + index) for at in range(9)] for index in range(BATCH)]).long()
        labels = torch.randint(1, 3, (BATCH, 2))
        labels[2], labels[4, 1] = IGNORED, IGNORED
        inputs = {"input_ids": torch.ones(BATCH, 9, dtype=torch.long), "context_mask": mask, "labels": labels}
    else:
        assert isinstance(layout, ExampleRows)
        shape = (BATCH, layout.width)
        if layout.kind == "classes":
            labels = torch.randint(0, layout.width, (BATCH,))
            labels[2] = IGNORED
        else:
            labels = torch.randn(shape) if layout.kind == "values" else torch.randint(0, 2, shape).float()
            labels[2] = NAN
        inputs = {"input_ids": torch.ones(BATCH, 4, dtype=torch.long), "labels": labels}
    return Batch(layout, torch.randn(shape).to(dtype) * scale, torch.randn(shape).to(dtype) * scale, inputs)


LAYOUTS: dict[str, RowLayout] = {
    "classes": ExampleRows(width=3, teacher_columns=(2, 0, 1)),
    "binary": ExampleRows(kind="binary", width=3),
    "values": ExampleRows(kind="values", width=2),
    "tokens": TokenRows(),
    "shifted": TokenRows(shift=True, classes=4),
    "spans": SpanRows(),
}
TOKEN_LAYOUTS = [pytest.param(layout, id=name) for name, layout in LAYOUTS.items() if isinstance(layout, TokenRows)]


def fits(objective: Objective, layout: RowLayout) -> bool:
    # Classes mean nothing in a regression; the task refuses what is not defined for values.
    if layout.has_classes or not isinstance(objective, RowObjective):
        return True
    return objective.takes_values and not getattr(objective, "label_smoothing", 0.0)


PAIRS = [
    pytest.param(example, layout, id=f"{entry(example)}-{name}")
    for examples in EXAMPLES.values()
    for example in examples
    for name, layout in LAYOUTS.items()
    if fits(example, layout)
]
WITH_TEACHER = [pair for pair in PAIRS if pair.values[0].name not in AWAY_FROM_THE_TEACHER]


# --- the contract -----------------------------------------------------------------------------------------------------


# The others compare what the models compute on the way (test_features.py), or are estimates, right on average only
# (test_own_samples.py).
ON_LOGITS = [name for name, one in OBJECTIVES.items() if issubclass(one, RowObjective) and one.unit != "written"]


@pytest.mark.parametrize("name", ON_LOGITS)
def test_every_objective_on_logits_is_held_to_the_contract(name: str) -> None:
    """An objective that no test below has an example of could break every promise unnoticed."""
    assert EXAMPLES.get(name), f"add examples of '{name}' to EXAMPLES"
    assert all(type(example) is OBJECTIVES[name] for example in EXAMPLES[name])
    assert OBJECTIVES[name].name == name
    assert OBJECTIVES[name].unit in UNITS


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_entry_builds_the_same_objective(objective: Objective) -> None:
    """The recipe written beside a student must name the loss that trained it, through YAML too."""
    text = io.StringIO()
    YAML(typ="safe").dump(entry(objective), text)
    written = YAML(typ="safe").load(text.getvalue())
    assert OBJECTIVES[written.pop("name")](**written) == objective


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"weight": "0.5"}, {"weight": math.inf}, {"wieght": 1.0}])
def test_wrong_settings_are_refused(name: str, wrong: dict[str, Any]) -> None:
    """A mistyped or negative weight taken silently trains with another loss than the recipe says."""
    with pytest.raises(UserError):
        OBJECTIVES[name](**wrong)


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
def test_gradient_reaches_the_student_only(objective: Objective, layout: RowLayout) -> None:
    """A loss with a gradient into the teacher keeps its graph in memory; one without a gradient trains nothing."""
    batch = make_batch(layout)
    student, teacher = batch.student.requires_grad_(), batch.teacher.requires_grad_()
    losses = batch.losses(objective)
    assert losses.shape == (BATCH,)
    losses.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad.flatten(1) != 0).any(1).sum() >= BATCH - 1  # all examples but the one without labels


@pytest.mark.parametrize("objective", [pair for pair in OBJECTIVE if isinstance(pair.values[0], RowObjective)])
def test_rows_called_directly_spare_the_teacher(objective: RowObjective) -> None:
    """Losses are also used outside the trainer, where nobody has detached the teacher's logits before."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    objective.rows(student, teacher, torch.tensor([0, 1, 2, IGNORED])).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize(("objective", "layout"), WITH_TEACHER)
def test_zero_at_the_teacher(objective: Objective, layout: RowLayout) -> None:
    """A loss whose minimum is elsewhere teaches something other than to be like the teacher."""
    batch = make_batch(layout)
    teacher = batch.teacher
    columns = getattr(layout, "teacher_columns", None)
    student = (teacher[:, list(columns)] if columns else teacher.clone()).requires_grad_()
    losses = batch.losses(objective, student)
    assert (batch.losses(objective) >= losses).all()
    if objective.name != "soft_cross_entropy":  # its minimum is the teacher's entropy
        torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
@pytest.mark.parametrize("scale", [0.01, 2.0, 30.0])
def test_never_negative(scale: float, objective: Objective, layout: RowLayout) -> None:
    """A divergence below 0 is none: some published top-k losses are, and hide it with a clamp and its dead gradient."""
    assert (make_batch(layout, scale=scale).losses(objective) >= -1e-12).all()


@pytest.mark.parametrize(
    ("objective", "layout"), [pair for pair in PAIRS if pair.values[0].name not in CONSTANT_WEIGHTS]
)
def test_gradcheck(objective: Objective, layout: RowLayout) -> None:
    """The gradient that trains must be that of the value that is logged."""
    batch = make_batch(layout)
    assert torch.autograd.gradcheck(lambda student: batch.losses(objective, student), batch.student.requires_grad_())


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
def test_half_precision_is_finite(objective: Objective, layout: RowLayout) -> None:
    """Confident bfloat16 logits overflow a naive softmax: one NaN row ends a run of days."""
    batch = make_batch(layout, scale=60.0, dtype=torch.bfloat16)
    losses = batch.losses(objective, batch.student.requires_grad_())
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert batch.student.grad is not None
    assert batch.student.grad.isfinite().all()
    exact = dataclasses.replace(batch, student=batch.student.detach().double(), teacher=batch.teacher.double())
    torch.testing.assert_close(losses.double(), exact.losses(objective), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
def test_the_split_into_batches_does_not_matter(objective: Objective, layout: RowLayout) -> None:
    """A mean taken inside a micro-batch makes 8x1 another loss than 4x2 and than two processes."""
    batch = make_batch(layout)
    parts = [batch.part(slice(0, 1)), batch.part(slice(1, 4)), batch.part(slice(4, BATCH))]
    torch.testing.assert_close(torch.cat([part.losses(objective) for part in parts]), batch.losses(objective))
    whole = layout.units(batch.inputs)
    for unit in UNITS:
        if unit != "pair":  # pairs are those within a batch
            counted = torch.cat([layout.units(part.inputs)[unit] for part in parts])
            assert torch.equal(counted, whole[unit])


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("left", [0, 3], ids=["right", "left"])
@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
@pytest.mark.parametrize("objective", OBJECTIVE)
def test_padding_does_not_matter(objective: Objective, layout: RowLayout, left: int, labelled: bool) -> None:
    """Counted padding makes the loss depend on the longest text of the batch: most systems' quiet mistake."""
    batch = make_batch(layout)
    inputs = dict(batch.inputs)
    if not labelled:
        del inputs["labels"]
    blank = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    sides = (left, 2)

    def pad(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, sides, value=value)

    padded_inputs = {key: pad(value, blank[key]) for key, value in inputs.items()}
    torch.manual_seed(5)
    garbage = torch.randn(BATCH, 7 + sum(sides), 5, dtype=torch.float64) * 50
    student, teacher = garbage.clone(), garbage.flip(0)
    student[:, left : left + 7], teacher[:, left : left + 7] = batch.student, batch.teacher

    plain = dataclasses.replace(batch, inputs=inputs)
    padded = Batch(layout, student, teacher, padded_inputs)
    torch.testing.assert_close(padded.losses(objective), plain.losses(objective))
    for unit in UNITS:
        assert torch.equal(layout.units(padded_inputs)[unit], layout.units(inputs)[unit])


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
def test_examples_without_label(objective: Objective, layout: RowLayout) -> None:
    """-100 or NaN that reaches the loss is a crash at best, and NaN weights at worst; the teacher needs no labels."""
    batch = make_batch(layout)
    student = batch.student.requires_grad_()
    losses = batch.losses(objective, student)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    without = 3 if isinstance(layout, TokenRows) else 2
    if objective.unit == "label" or isinstance(layout, TokenRows):
        assert losses[without] == 0
        assert not gradient[without].any()
    else:
        unlabelled = {key: value for key, value in batch.inputs.items() if key != "labels"}
        torch.testing.assert_close(dataclasses.replace(batch, inputs=unlabelled).losses(objective), losses)


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
@pytest.mark.parametrize("objective", OBJECTIVE)
def test_nothing_that_counts_costs_nothing(objective: Objective, layout: RowLayout) -> None:
    """A micro-batch without a single row must give 0 with a gradient of 0: a mean over nothing is NaN for all ranks."""
    batch = make_batch(layout)
    batch.inputs["labels"] = torch.full_like(batch.inputs["labels"], IGNORED)
    student = batch.student.requires_grad_()
    losses = batch.losses(objective, student)
    assert losses.tolist() == [0.0] * BATCH
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert not gradient.any()


@pytest.mark.parametrize(("objective", "layout"), PAIRS)
def test_the_weight_is_the_trainers(objective: Objective, layout: RowLayout) -> None:
    """A weight applied in the objective and again by the trainer is a weight squared, and the logged term is not it."""
    batch = make_batch(layout)
    heavier = dataclasses.replace(objective, weight=7.0)
    assert torch.equal(batch.losses(heavier), batch.losses(objective))


# --- the teacher's likeliest classes only -----------------------------------------------------------------------------

SPARSE = [pair for pair in OBJECTIVE if getattr(pair.values[0], "takes_sparse", False)]
DENSE = [pair for pair in OBJECTIVE if not getattr(pair.values[0], "takes_sparse", True)]
BUCKETED = [pair for pair in SPARSE if isinstance(pair.values[0], Softened)]


def wide(rows: int = 5, classes: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of student and teacher, and labels, over more classes than are kept."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(rows, classes, dtype=torch.float64) * 3 for _ in range(2))
    return student, teacher, torch.randint(0, classes, (rows,))


def kept(objective: RowObjective, teacher: Tensor, classes: int) -> Any:
    return SparseRows.of(teacher, classes, getattr(objective, "temperature", 1.0))


def test_the_contract_knows_what_takes_a_sparse_teacher() -> None:
    """A list that came out empty would pass every test below."""
    names = {pair.values[0].name for pair in DENSE}
    assert names == {"adaptive_kl", "decoupled_kl", "logits_mse", "mined", "uld"}
    assert {pair.values[0].name for pair in SPARSE} == set(ON_LOGITS) - names


@pytest.mark.parametrize("objective", SPARSE)
def test_all_classes_kept_are_the_dense_teacher(objective: RowObjective) -> None:
    """Another value at k = V would be another loss, and the error of a small k could not be measured."""
    student, teacher, labels = wide()
    student.requires_grad_()
    dense, sparse = (objective.rows(student, given, labels) for given in (teacher, kept(objective, teacher, 40)))
    torch.testing.assert_close(sparse, dense)
    gradients = [torch.autograd.grad(losses.sum(), student)[0] for losses in (sparse, dense)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("objective", BUCKETED)
def test_the_tail_is_one_class_by_hand(objective: RowObjective) -> None:
    """The bucket must hold the mass of the classes left out, of the teacher and of the student alike."""
    student, teacher, labels = wide()
    temperature = getattr(objective, "temperature")  # noqa: B009
    classes = teacher.topk(6).indices

    def bucketed(logits: Tensor) -> Tensor:
        p = (logits / temperature).softmax(-1).gather(-1, classes)
        return torch.cat((p, 1 - p.sum(-1, keepdim=True)), -1).log() * temperature

    wanted = objective.rows(bucketed(student), bucketed(teacher), labels)
    torch.testing.assert_close(objective.rows(student, kept(objective, teacher, 6), labels), wanted)


@pytest.mark.parametrize("objective", BUCKETED)
def test_fewer_classes_never_see_more(objective: RowObjective) -> None:
    """Data processing inequality: a valid divergence of buckets lies between 0 and that of the classes."""
    student, teacher, labels = wide()
    if isinstance(objective, SoftCrossEntropy):  # of which only the divergence is one
        objective = KLDivergence(temperature=objective.temperature)
    values = torch.stack([objective.rows(student, kept(objective, teacher, k), labels) for k in (1, 2, 8, 30, 40)])
    assert (values >= 0).all()
    assert (values.diff(dim=0) >= -1e-12).all()


@pytest.mark.parametrize("objective", BUCKETED)
def test_sparse_gradcheck(objective: RowObjective) -> None:
    """The student's tail is a sum over classes that the teacher does not name; they must be pushed as well."""
    student, teacher, labels = wide(rows=3, classes=7)
    given = kept(objective, teacher, 3)
    assert torch.autograd.gradcheck(lambda student: objective.rows(student, given, labels), student.requires_grad_())


@pytest.mark.parametrize("objective", SPARSE)
def test_extremes_of_a_sparse_teacher_are_finite(objective: RowObjective) -> None:
    """Nothing left in the tail, a student that is sure of a class in it, half precision: none of it may be NaN."""
    temperature = getattr(objective, "temperature", 1.0)
    student = torch.tensor([[90.0, -90, 0, 0], [-90, 90, 0, 0], [0, 0, 0, 90], [0, 0, 0, 0]], dtype=torch.bfloat16)
    student = torch.cat((student, torch.zeros(4, 4, dtype=torch.bfloat16)), -1).requires_grad_()
    for remaining in (-math.inf, -200.0, -1e-3):
        given: Any = SparseRows(
            indices=torch.tensor([[0, 1]]).expand(4, 2),
            log_probabilities=torch.tensor([[-0.25, -1.5]], dtype=torch.float16).expand(4, 2),
            remaining=torch.full((4,), remaining),
            temperature=temperature,
        )
        if isinstance(objective, Ranking):
            objective = Ranking(top=2)
        losses = objective.rows(student, given, torch.zeros(4, dtype=torch.long))
        assert losses.dtype == torch.float32
        assert losses.isfinite().all()
        assert (losses >= -1e-6).all()
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        assert gradient.isfinite().all()


def test_the_students_tail_keeps_its_digits() -> None:
    """As 1 - sum(kept) in float32, a student's tail of 1e-9 would be 0 and the loss infinite."""
    student = torch.tensor([[25.0, 4.0, 3.0, 2.0]])
    teacher = torch.tensor([[1.0, 0.5, 0.0, -1.0]])
    given: Any = SparseRows.of(teacher, 1)
    found = KLDivergence().rows(student, given, torch.tensor([0]))
    exact: Any = SparseRows.of(teacher.double(), 1)
    torch.testing.assert_close(found.double(), KLDivergence().rows(student.double(), exact, torch.tensor([0])))


def test_a_bucket_cannot_be_softened() -> None:
    """Teachers that differ in the tail only are one sparse teacher at T = 1, but have different targets at T = 2."""
    tails = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.6, 0.2, 0.2 - 1e-9, 1e-9]], dtype=torch.float64).log()
    cold, hot = (SparseRows.of(tails, 2, temperature) for temperature in (1.0, 2.0))
    torch.testing.assert_close(*cold.log_probabilities)
    torch.testing.assert_close(*cold.remaining)
    assert (hot.remaining.exp()[0] - hot.remaining.exp()[1]).abs() > 0.05
    student, labels = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0, 0])
    given: Any = cold
    with pytest.raises(ValueError, match="stored at temperature 1, and 2 is wanted"):
        KLDivergence(temperature=2.0).rows(student, given, labels)
    given = hot
    assert KLDivergence(temperature=2.0).rows(student, given, labels).isfinite().all()


@pytest.mark.parametrize("objective", DENSE)
def test_what_needs_all_classes_says_why(objective: RowObjective) -> None:
    """A guess about the classes left out would be a loss that nobody published."""
    student, teacher, labels = wide()
    given: Any = SparseRows.of(teacher, 4)
    with pytest.raises(ValueError, match=f"'{objective.name}' takes no sparse teacher: it|the label"):
        objective.rows(student, given, labels)


@pytest.mark.parametrize("objective", [pair for pair in OBJECTIVE if pair.values[0].needs_teacher])
def test_no_teacher_is_said(objective: RowObjective) -> None:
    """`None` has no attribute 'softmax' tells a user nothing."""
    with pytest.raises(ValueError, match=f"'{objective.name}' needs a teacher."):
        objective.rows(torch.zeros(2, 3), None, torch.zeros(2, dtype=torch.long))


def test_a_class_from_outside_gets_no_sparse_teacher() -> None:
    """Written before there were any, it would fail inside its formula, or worse, not fail."""
    student, teacher, labels = wide()
    rows = Rows(student, SparseRows.of(teacher, 4), labels, example=torch.arange(5), examples=5)
    with pytest.raises(ValueError, match="'logits_mse' takes no sparse teacher"):
        LogitsMSE().per_example(Comparison(rows, {}, {}, {}, torch.ones(0, 0)))
    assert KLDivergence().per_example(Comparison(rows, {}, {}, {}, torch.ones(0, 0))).shape == (5,)
    assert torch.equal(rows.agreement(), dataclasses.replace(rows, teacher=teacher).agreement())


def test_ranking_wants_as_many_classes_as_it_compares() -> None:
    """With fewer it would be another loss than with the dense teacher."""
    student, teacher, labels = wide()
    given: Any = SparseRows.of(teacher, 8)
    objective = Ranking(top=8)
    torch.testing.assert_close(objective.rows(student, given, labels), objective.rows(student, teacher, labels))
    with pytest.raises(ValueError, match="the teacher's 9 likeliest classes, and 8 were kept"):
        Ranking(top=9).rows(student, given, labels)


# --- numbers ----------------------------------------------------------------------------------------------------------


NO_LABELS = torch.full((5,), IGNORED)


def softened(logits: Tensor, temperature: float) -> np.ndarray:
    result: np.ndarray = scipy.special.softmax(logits.double().numpy() / temperature, axis=-1)
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_kl_is_scipys(temperature: float) -> None:
    """The direction is KL(teacher || student), both softened, times the temperature squared."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 9, dtype=torch.float64) * 3, torch.randn(5, 9, dtype=torch.float64) * 3
    p, q = softened(teacher, temperature), softened(student, temperature)
    found = KLDivergence(temperature=temperature).rows(student, teacher, NO_LABELS)
    np.testing.assert_allclose(found, temperature**2 * scipy.special.rel_entr(p, q).sum(-1), rtol=1e-10)
    np.testing.assert_allclose(found, temperature**2 * scipy.stats.entropy(p, q, axis=-1), rtol=1e-10)


def test_kl_is_bounded_by_rounding_where_the_student_is_sure() -> None:
    """The student's log-probability of -120 must enter as it is; clipped at 1e-8 the worst mistakes cost least."""
    student, teacher = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    torch.testing.assert_close(KLDivergence().rows(student, teacher, NO_LABELS), torch.tensor([120.0]))


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_hot_kl_is_half_the_logits_mse(temperature: float) -> None:
    """Hinton et al. 2015, section 2.1. Without T^2, or with it in the value only, the gradient would vanish."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    (hot,) = torch.autograd.grad(KLDivergence(temperature=temperature).rows(student, teacher, NO_LABELS).sum(), student)
    (squared,) = torch.autograd.grad(mean_squared_error(student, teacher).sum(), student)
    torch.testing.assert_close(hot, squared / 2, rtol=20 / temperature, atol=1 / temperature)


def test_multi_label_kl_is_bernoullis() -> None:
    """With several labels each is a coin of its own: a softmax across labels would make them compete."""
    torch.manual_seed(0)
    batch = make_batch(ExampleRows(kind="binary", width=3))
    p, q = (scipy.special.expit(logits.numpy() / 2.0) for logits in (batch.teacher, batch.student))
    by_hand = 4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)
    np.testing.assert_allclose(batch.losses(KLDivergence(temperature=2.0)), by_hand, rtol=1e-10)


def test_multi_label_labels_are_binary_cross_entropy() -> None:
    """The supervised term of several labels is torch's own, so that a baseline is the usual fine-tuning."""
    batch = make_batch(ExampleRows(kind="binary", width=3))
    keep = [0, 1, 3, 4, 5]
    wanted = F.binary_cross_entropy_with_logits(batch.student, batch.inputs["labels"].double(), reduction="none").sum(
        -1
    )
    torch.testing.assert_close(batch.losses(Labels())[keep], wanted[keep])


def test_labels_are_cross_entropy() -> None:
    """The supervised term at temperature 1, by an independent code in float64."""
    batch = make_batch(ExampleRows(width=3))
    logits, labels = batch.student.numpy(), batch.inputs["labels"].numpy()
    wanted = scipy.special.logsumexp(logits, axis=-1) - np.take_along_axis(logits, labels.clip(0)[:, None], -1)[:, 0]
    np.testing.assert_allclose(batch.losses(Labels()), np.where(labels == IGNORED, 0.0, wanted), rtol=1e-12)


def test_labels_of_a_regression_are_squared_errors() -> None:
    """`(rows, 1)` minus `(rows,)` would broadcast to every pair of rows, and still fall while training."""
    batch = make_batch(ExampleRows(kind="values", width=1))
    keep = [0, 1, 3, 4, 5]
    wanted = F.mse_loss(batch.student[keep], batch.inputs["labels"][keep].double(), reduction="none").sum(-1)
    torch.testing.assert_close(batch.losses(Labels())[keep], wanted)
    torch.testing.assert_close(label_loss(torch.tensor([[1.0]]), torch.tensor([NAN])), torch.tensor([0.0]))


def test_logits_mse_is_the_mean_over_classes() -> None:
    """A sum over classes would make the weight of the term depend on how many labels a task has."""
    batch = make_batch(ExampleRows(width=3))
    wanted = ((batch.student - batch.teacher) ** 2).sum(-1) / 3
    torch.testing.assert_close(batch.losses(LogitsMSE()), wanted)


def entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    result: np.ndarray = scipy.stats.entropy(p, q, axis=-1)
    return result


def tv(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.array([0.5 * sum(abs(a - b) for a, b in zip(*row, strict=True)) for row in zip(p, q, strict=True)])


FORMULAS: dict[str, tuple[Softened, Any]] = {
    "reverse_kl": (ReverseKL(temperature=2.0), lambda p, q: entropy(q, p)),
    "js": (
        JensenShannon(teacher_share=0.2, temperature=2.0),
        lambda p, q: 0.2 * entropy(p, 0.2 * p + 0.8 * q) + 0.8 * entropy(q, 0.2 * p + 0.8 * q),
    ),
    "js of equal shares": (
        JensenShannon(temperature=2.0),
        lambda p, q: scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2,
    ),
    "skewed_kl": (SkewedKL(skew=0.3, temperature=2.0), lambda p, q: entropy(p, 0.3 * p + 0.7 * q)),
    "skewed_reverse_kl": (SkewedReverseKL(skew=0.3, temperature=2.0), lambda p, q: entropy(q, 0.3 * q + 0.7 * p)),
    "total_variation": (TotalVariation(temperature=2.0), tv),
    "soft_cross_entropy": (
        SoftCrossEntropy(temperature=2.0),
        lambda p, q: scipy.stats.entropy(p, axis=-1) + entropy(p, q),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_divergences_are_scipys(name: str) -> None:
    """Direction, mixture weight and temperature of each; exchanged, most of them still fall while training."""
    objective, formula = FORMULAS[name]
    student, teacher, labels = wide()
    wanted = formula(softened(teacher, 2.0), softened(student, 2.0))
    np.testing.assert_allclose(objective.rows(student, teacher, labels), 4.0 * wanted, rtol=1e-9)
    plain = dataclasses.replace(objective, temperature_squared=False)
    np.testing.assert_allclose(plain.rows(student, teacher, labels), wanted, rtol=1e-9)


def test_the_ends_of_js_are_both_kls() -> None:
    """Which share is whose: systems disagree on it, and the wrong one swaps the two directions."""
    student, teacher, labels = wide()
    near = 1e-7
    low = JensenShannon(teacher_share=near).rows(student, teacher, labels) / near
    high = JensenShannon(teacher_share=1 - near).rows(student, teacher, labels) / near
    torch.testing.assert_close(low, KLDivergence().rows(student, teacher, labels), rtol=0.02, atol=0)
    torch.testing.assert_close(high, ReverseKL().rows(student, teacher, labels), rtol=0.02, atol=0)
    for end in (0.0, 1.0):
        with pytest.raises(UserError):
            JensenShannon(teacher_share=end)


@pytest.mark.parametrize("skew", [0.1, 0.5])
def test_skew_bounds_a_row(skew: float) -> None:
    """What the skew is for: a class that the other model finds impossible costs `-log skew` at most."""
    student, teacher = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    for objective in (SkewedKL(skew=skew), SkewedReverseKL(skew=skew)):
        torch.testing.assert_close(objective.rows(student, teacher, NO_LABELS), torch.tensor([-math.log(skew)]))


def adaptive(p: np.ndarray, q: np.ndarray, head_mass: float) -> tuple[float, float]:
    """Return the weights of both directions for one row, as the authors' AKL.py has them."""
    order = sorted(range(len(p)), key=lambda v: -p[v])
    gaps, mass = [0.0, 0.0], 0.0
    for place, v in enumerate(order):
        mass += p[v]
        gaps[int(place > 0 and mass > head_mass)] += abs(p[v] - q[v])
    return gaps[0] / sum(gaps), gaps[1] / sum(gaps)


@pytest.mark.parametrize("head_mass", [0.2, 0.5, 0.9])
def test_adaptive_kl_by_hand(head_mass: float) -> None:
    """Head and tail exchanged would fit first what each direction is worst at."""
    student, teacher, labels = wide()
    objective = AdaptiveKL(head_mass=head_mass, temperature=2.0)
    p, q = softened(teacher, 2.0), softened(student, 2.0)
    weights = np.array([adaptive(*row, head_mass) for row in zip(p, q, strict=True)])
    wanted = 4.0 * (weights[:, 0] * entropy(p, q) + weights[:, 1] * entropy(q, p))
    found = objective.rows(student.requires_grad_(), teacher, labels)
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-9)
    # The weights are constants to the gradient.
    (gradient,) = torch.autograd.grad(found.sum(), student)
    sides = [side(temperature=2.0).rows(student, teacher, labels) for side in (KLDivergence, ReverseKL)]
    mixed = sum((torch.from_numpy(weights[:, i]) * side).sum() for i, side in enumerate(sides))
    assert isinstance(mixed, Tensor)
    torch.testing.assert_close(gradient, torch.autograd.grad(mixed, student)[0])


def test_decoupled_kl_by_hand() -> None:
    """Equation 7 of the paper, written out; and equation 6, by which its parts add up to the plain divergence."""
    student, teacher, labels = wide()
    p, q = softened(teacher, 4.0), softened(student, 4.0)
    target, others, plain = [], [], []
    for row, label in enumerate(labels.tolist()):
        a, b = p[row], q[row]
        rest_a, rest_b = np.delete(a, label) / (1 - a[label]), np.delete(b, label) / (1 - b[label])
        target.append(scipy.stats.entropy([a[label], 1 - a[label]], [b[label], 1 - b[label]]))
        others.append(scipy.stats.entropy(rest_a, rest_b))
        plain.append(target[-1] + (1 - a[label]) * others[-1])
    wanted = 16.0 * (1.5 * np.array(target) + 6.0 * np.array(others))
    objective = DecoupledKL(target_weight=1.5, non_target_weight=6.0, temperature=4.0)
    np.testing.assert_allclose(objective.rows(student, teacher, labels), wanted, rtol=1e-9)
    kl = KLDivergence(temperature=4.0).rows(student, teacher, labels)
    np.testing.assert_allclose(kl, 16.0 * np.array(plain), rtol=1e-9)


def test_decoupled_kl_needs_a_label() -> None:
    """-100 as an index reads another row's memory or the last class; the row has to cost nothing instead."""
    student, teacher, labels = wide()
    labels[1] = IGNORED
    losses = DecoupledKL().rows(student, teacher, labels)
    assert losses[1] == 0
    assert (losses[[0, 2, 3, 4]] > 0).all()
    assert DecoupledKL.unit == "label"


def test_decoupled_kl_of_two_classes_is_kl() -> None:
    """Several labels are rows of two classes: there is no other class left to rank."""
    student, teacher, _ = wide(classes=2)
    found = DecoupledKL(temperature=2.0).rows(student, teacher, torch.tensor([0, 1, 0, 1, 0]))
    torch.testing.assert_close(found, KLDivergence(temperature=2.0).rows(student, teacher, NO_LABELS))


def test_ranking_by_hand() -> None:
    """DistillKit's logistic ranking of one position; the sign exchanged would reverse the order."""
    student, teacher, labels = wide()
    wanted = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        best = sorted(range(len(t)), key=lambda v: -t[v])[:4]
        pairs = [(i, j) for i in best for j in best if t[i] > t[j]]
        assert len(pairs) == 6
        wanted.append(sum(math.log1p(math.exp(s[j] - s[i])) for i, j in pairs) / 6)
    np.testing.assert_allclose(Ranking(top=4).rows(student, teacher, labels), wanted, rtol=1e-9)
    # What the teacher holds for equal is no pair.
    assert Ranking().rows(student, torch.zeros_like(teacher), labels).tolist() == [0.0] * 5


def test_label_smoothing_is_a_softer_target() -> None:
    """Spread over all classes as Szegedy et al. do, not over the wrong ones only: both are called label smoothing."""
    batch = make_batch(ExampleRows(width=3))
    labels = batch.inputs["labels"]
    target = np.eye(3)[labels.clamp(min=0).numpy()] * 0.9 + 0.1 / 3
    wanted = -(target * scipy.special.log_softmax(batch.student.numpy(), axis=-1)).sum(-1)
    wanted[labels.numpy() == IGNORED] = 0.0
    np.testing.assert_allclose(batch.losses(Labels(label_smoothing=0.1)), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="these labels are values"):
        label_loss(torch.zeros(2, 1), torch.zeros(2), 0.1)


def test_sorted_distance_by_hand() -> None:
    """Cut to the shorter vocabulary, or compared in order, it would be another loss than the one others report."""

    def of(p: list[float], q: list[float]) -> float:
        return sorted_distance(torch.tensor([p]).log(), torch.tensor([q]).log()).item()

    assert of([0.5, 0.3, 0.2], [0.4, 0.4, 0.1, 0.1]) == pytest.approx(0.4)
    assert of([0.4, 0.4, 0.1, 0.1], [0.5, 0.3, 0.2]) == pytest.approx(0.4)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    assert of(p.tolist(), q.tolist()) == pytest.approx(0.0, abs=1e-6)  # blind to which token is likely
    assert scipy.stats.entropy(p, q) == pytest.approx(1.1675, abs=5e-5)
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 7)), rng.normal(size=(4, 11))
    ours, theirs = scipy.special.softmax(student / 2, -1), scipy.special.softmax(teacher / 2, -1)
    wanted = [
        np.abs(np.sort(np.append(one, [0] * 4)) - np.sort(other)).sum() for one, other in zip(ours, theirs, strict=True)
    ]
    found = UniversalLogit(temperature=2.0).rows(torch.tensor(student), torch.tensor(teacher), torch.zeros(4))
    np.testing.assert_allclose(found, wanted)
