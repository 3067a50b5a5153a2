"""The compiled evaluation of blocks: the same numbers as without, made once, and never a reason for a run to fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch._inductor
from inductor import ON_LOGITS, Code, Inductor
from invariants.cases import largest_difference, make_trainer, split, train
from invariants.processes import as_two_processes
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.models.heads import OutputHead
from hf_distill.models.projection import Side
from hf_distill.objectives import Hidden, JensenShannon, KLDivergence, Labels, RowObjective, Schedule
from hf_distill.rows.base import SparseRows
from hf_distill.training.chunked import compiled
from hf_distill.training.chunked import rows as head_rows
from hf_distill.training.chunked.compiled import Compiler, compiler_for
from hf_distill.training.chunked.rows import HeadRows

VOCABULARY, TOKENS, WIDTH = 300, 290, 16
ROWS, BLOCK, CHUNK = 23, 4, 12
ON_SPARSE = [name for name, one in ON_LOGITS.items() if one.takes_sparse]
KL, LABELS = KLDivergence(temperature=2.0), Labels(label_smoothing=0.1)


@pytest.fixture(autouse=True)
def small_pieces(pieces: Any) -> None:
    """Two chunks of three blocks, and blocks that are shorter at the end."""
    pieces(VOCABULARY, CHUNK, BLOCK)


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> Inductor:
    stand_in = Inductor()
    monkeypatch.setattr(torch._inductor, "compile", stand_in)
    return stand_in


@dataclass(frozen=True)
class Found:
    sums: Tensor
    agreement: Tensor
    hidden: Tensor
    weight: Tensor


def sums_and_gradients(
    objectives: Sequence[RowObjective],
    compiler: Compiler | None,
    *,
    sparse: bool = False,
    dtype: torch.dtype = torch.float32,
    rows: int = ROWS,
    coefficients: Tensor | None = None,
    **head: Any,
) -> Found:
    """Return what the same rows give in chunks, with their gradients."""
    torch.manual_seed(0)

    def side(hidden: Tensor) -> Side:
        linear = nn.Linear(WIDTH, VOCABULARY).to(hidden.dtype)
        bias = torch.randn(1, VOCABULARY) if head else None
        return Side(OutputHead(linear, bias, **head), hidden, dtype, TOKENS)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    student = side(torch.randn(rows, WIDTH, dtype=wide).mul(3).requires_grad_())
    teacher: Any = side(torch.randn(rows, WIDTH, dtype=wide) * 3)
    labels = torch.randint(0, TOKENS, (rows,))
    labels[::5] = -100
    written = torch.where(labels < 0, torch.arange(rows), -100)
    if sparse:
        logits = teacher.logits().detach()
        known = logits.log_softmax(-1).gather(-1, written.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        teacher = replace(SparseRows.of(logits, 8, temperature=objectives[0].softens_by), written=known)
    made = HeadRows(student, teacher, labels, torch.arange(rows) % 3, 3, compiler, written=written)
    if coefficients is None:
        coefficients = torch.linspace(1.0, 0.5, len(objectives)) / rows
    sums = made.sums_in_chunks(objectives, coefficients)
    (sums.sum(0) * coefficients).sum().backward()
    weight = student.head.linear.weight
    assert student.hidden.grad is not None
    assert weight.grad is not None
    return Found(sums.detach(), made.agreement(), student.hidden.grad, weight.grad)


def assert_same(found: Found, wanted: Found, tolerance: float = 1e-6) -> None:
    assert torch.equal(found.agreement, wanted.agreement)
    for name in ("sums", "hidden", "weight"):
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max(), name


def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    yield from (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)


# ---- The same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_LOGITS)
def test_every_objective_can_be_traced(name: str, inductor: Inductor, caplog: pytest.LogCaptureFixture) -> None:
    """One that looks at a number would be evaluated eagerly on every GPU, and nobody would notice but by the clock."""
    objective = ON_LOGITS[name](**({"temperature": 2.0} if hasattr(ON_LOGITS[name], "temperature") else {}))
    for sparse in (False, True) if name in ON_SPARSE else (False,):
        found, wanted = (sums_and_gradients([objective, LABELS], one, sparse=sparse) for one in (Compiler(), None))
        assert_same(found, wanted)
    assert not [*warnings(caplog)]
    assert inductor.blocks.count(BLOCK) == len(inductor.blocks) > 0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("head", [{"scale": 0.25}, {"soft_cap": 3.0}], ids=lambda one: next(iter(one)))
def test_what_comes_after_the_linear_map(sparse: bool, head: dict[str, float], inductor: Inductor) -> None:
    """The bias that some models add to their logits is a tensor: an input of the code, for each of the two models."""
    found, wanted = (sums_and_gradients([KL, LABELS], one, sparse=sparse, **head) for one in (Compiler(), None))
    assert_same(found, wanted)
    assert inductor.made == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 1e-6)])
def test_other_precisions(dtype: torch.dtype, tolerance: float, inductor: Inductor) -> None:
    """The gradient is left in the place of the logits, and in their precision."""
    found, wanted = (sums_and_gradients([KL, LABELS], one, dtype=dtype) for one in (Compiler(), None))
    assert_same(found, wanted, tolerance)
    assert inductor.made == 1


def test_compiled() -> None:
    """The real thing: what Inductor makes of a block must be the loss, in one piece with its gradient."""
    terms = [KL, LABELS, JensenShannon(temperature=2.0)]
    compiler = Compiler()
    assert_same(sums_and_gradients(terms, compiler), sums_and_gradients(terms, None))
    assert compiler.graphs == 1
    assert compiler.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "sparse"), [(name, one) for one in (False, True) for name in (ON_LOGITS, ON_SPARSE)[one]]
)
def test_all_compiled(name: str, sparse: bool, dtype: torch.dtype) -> None:
    """As above, for every objective, teacher and precision."""
    objective = ON_LOGITS[name](**({"temperature": 2.0} if hasattr(ON_LOGITS[name], "temperature") else {}))
    compiler = Compiler()
    found, wanted = (
        sums_and_gradients([objective], one, sparse=sparse, dtype=dtype, soft_cap=20.0) for one in (compiler, None)
    )
    assert compiler.graphs == 1
    assert_same(found, wanted, {torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype])


# ---- Made once -------------------------------------------------------------------------------------------------------


def test_steps_of_any_size_share_the_code(inductor: Inductor) -> None:
    """Compiling anew for each number of rows would take longer than the training."""
    compiler = Compiler()
    for rows in (ROWS, 17, 8, 3, 0, ROWS):
        found, wanted = (sums_and_gradients([KL, LABELS], one, rows=rows) if rows else None for one in (compiler, None))
        if found is not None and wanted is not None:
            assert_same(found, wanted)
    assert inductor.made == 1
    # Of 23 rows 5 blocks, of 17 4, of 8 2, of 3 none; and the first one is tried out.
    assert inductor.blocks == [BLOCK] * (1 + 5 + 4 + 2 + 5)


def test_schedules_share_the_code(inductor: Inductor) -> None:
    """A weight or a temperature that moves with every step must neither be compiled anew nor stay what it was."""
    moving = Schedule(start=4.0, end=1.0)
    terms = (KLDivergence(weight=moving, temperature=moving), JensenShannon(temperature=2.0), Labels(weight=moving))
    compiler = compiler_for(True, torch.device("cpu"), (Hidden(), *terms))
    assert compiler is not None
    sums = []
    for step in range(4):
        now = [term.at(step, 4) for term in terms]
        coefficients = torch.tensor([float(one.weight) for one in now]) / ROWS  # type: ignore[arg-type]
        found, wanted = (sums_and_gradients(now, one, coefficients=coefficients) for one in (compiler, None))
        assert_same(found, wanted)
        sums.append(found.sums.sum(0))
    assert inductor.made == 1
    assert len({float(one[0]) for one in sums}) == 4
    assert len({float(one[1]) for one in sums}) == 1


def test_settings_that_differ_do_not_share_it(inductor: Inductor) -> None:
    """Code is found by what it computes: another stage's temperature, taken for this one's, trains towards it."""
    compiler = Compiler()
    for objective in (KL, KLDivergence(temperature=3.0), JensenShannon(temperature=3.0)):
        assert_same(sums_and_gradients([objective], compiler), sums_and_gradients([objective], None))
    assert_same(sums_and_gradients([KL], compiler, sparse=True), sums_and_gradients([KL], None, sparse=True))
    assert inductor.made == 4
    assert_same(sums_and_gradients([KL], compiler), sums_and_gradients([KL], None))
    assert inductor.made == 4


def test_heads_that_differ_do_not_share_it(inductor: Inductor) -> None:
    """Code has the cap of the logits that it was made for in it, and blocks of another head may have the same shape."""
    compiler = Compiler()
    for cap in (20.0, 5.0):
        found, wanted = (sums_and_gradients([KL, LABELS], one, soft_cap=cap) for one in (compiler, None))
        assert_same(found, wanted)
    assert inductor.made == 2


def test_there_is_an_end_to_it(
    inductor: Inductor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings that nobody knew to change would be compiled without end."""
    monkeypatch.setattr(compiled, "MOST", 2)
    compiler = Compiler()
    for temperature in (1.0, 2.0, 3.0, 4.0, 1.0):
        terms = [KLDivergence(temperature=temperature)]
        assert_same(sums_and_gradients(terms, compiler), sums_and_gradients(terms, None))
    assert inductor.made == 2
    assert len([*warnings(caplog)]) == 1


def test_evaluation_stays_eager(inductor: Inductor) -> None:
    """Without a gradient there is little to fuse, and as much to compile."""
    torch.manual_seed(0)
    side = Side(OutputHead(nn.Linear(WIDTH, VOCABULARY)), torch.randn(ROWS, WIDTH), torch.float32)
    rows = HeadRows(side, side, torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long), 1, Compiler())
    with torch.no_grad():
        rows.sums_in_chunks([KL], None)
    assert inductor.made == 0


# ---- Never a reason to fail ------------------------------------------------------------------------------------------


@component
class Looks(RowObjective):
    """Depends on numbers in a way that no graph can have."""

    name: ClassVar[str] = "looks"
    how: str = "number"

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """See `RowObjective.rows`."""
        losses = student.logsumexp(-1)
        if self.how == "number":
            return losses * 2 if bool(labels[0] >= 0) else losses
        labelled = labels >= 0
        return torch.zeros_like(losses).masked_scatter(labelled, losses[labelled])


def test_what_cannot_be_traced_is_eager(inductor: Inductor, caplog: pytest.LogCaptureFixture) -> None:
    """Traced with the numbers of the first block, every later block would be computed as if it were that one."""
    compiler = Compiler()
    for _ in range(2):
        assert_same(sums_and_gradients([Looks()], compiler), sums_and_gradients([Looks()], None))
    (line,) = warnings(caplog)
    assert "To skip the attempt, set compile_loss: false" in line
    assert inductor.made == 0


def test_how_many_there_are_of_a_kind_is_no_constant(inductor: Inductor) -> None:
    """Likewise for the number of labels in the first block: another block has another one."""
    assert_same(
        sums_and_gradients([Looks(how="how many")], Compiler()), sums_and_gradients([Looks(how="how many")], None)
    )


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A machine without a C++ compiler or with a Triton that does not fit its driver must train all the same."""

    def fail(*_: Any) -> Code:
        raise RuntimeError("no C++\ncompiler")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    compiler = Compiler()
    for _ in range(2):
        assert_same(sums_and_gradients([KL], compiler), sums_and_gradients([KL], None))
    (line,) = warnings(caplog)
    assert "(RuntimeError: no C++ compiler)" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda values, raw: raw.mul_(1.01),
        lambda values, raw: values.add_(0.01),
        lambda values, raw: raw[0, 0].fill_(torch.nan),
    ],
    ids=["gradient", "values", "nan"],
)
def test_code_that_computes_something_else_is_not_used(
    change: Callable[[Tensor, Tensor], None], inductor: Inductor, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler's bug on one kind of GPU would train a wrong student there, and only there."""
    inductor.change = change
    compiler = Compiler()
    for _ in range(2):
        assert_same(sums_and_gradients([KL], compiler), sums_and_gradients([KL], None))
    (line,) = warnings(caplog)
    assert "it computes something else" in line
    assert inductor.blocks == [BLOCK]


@pytest.mark.parametrize(
    ("setting", "device", "triton", "objective", "wanted"),
    [
        ("auto", "cuda", True, KL, True),
        ("auto", "cuda", False, KL, False),
        ("auto", "cpu", True, KL, False),
        ("auto", "mps", True, KL, False),
        ("auto", "cuda", True, Looks(), False),
        (True, "cpu", False, Looks(), True),
        (False, "cuda", True, KL, False),
    ],
)
def test_where_auto_compiles(
    setting: bool | str, device: str, triton: bool, objective: Any, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing changes by itself; and an objective of one's own may depend on more than its arguments."""
    monkeypatch.setattr(compiled, "find_spec", lambda name: object() if triton and name == "triton" else None)
    assert (compiler_for(setting, torch.device(device), [objective, Labels()]) is not None) is wanted


# ---- In a training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["causal-lm", "sequence-to-sequence"])
def test_training_is_that_of_eager_code(
    kind: str, tmp_path: Path, inductor: Inductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that does not get to the loss is believed to be slow, or fast."""
    monkeypatch.setattr(head_rows, "BLOCK_BYTES", 40 * 4 * BLOCK)
    settings = {"num_train_epochs": 1, **split(4)}
    found = train(make_trainer(kind, tmp_path, compile_loss=True, **settings))
    assert inductor.made == 1
    wanted = train(make_trainer(kind, tmp_path, **settings))
    assert inductor.made == 1
    assert largest_difference(found, wanted) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kind"), [("ddp", "MULTI_CPU"), ("fsdp2", "FSDP")])
def test_two_processes(engine: str, kind: str, tmp_path: Path) -> None:
    """Compiled in the forward pass of a wrapper that follows what its parameters are used for."""
    found, graphs, logs = as_two_processes("compiled", tmp_path, engine)
    assert (found, graphs) == (kind, 1)
    settings: dict[str, Any] = {"num_train_epochs": 1, "dtype": torch.float32, **split(8)}
    for one, other in zip(logs, train(make_trainer("causal-lm", tmp_path, **settings)).logs, strict=True):
        names = [name for name in other if "/" in name or name in ("loss", "grad_norm", "agreement")]
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-5)


def test_nothing_to_compile_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for it by hand and gets nothing for it would look for the reason elsewhere."""
    for kind, said in (("classification", 1), ("causal-lm", 0)):
        caplog.clear()
        compiled.warn_nothing_compiled.cache_clear()
        for _ in range(2):  # once, whatever a run trains and judges
            make_trainer(kind, tmp_path, compile_loss=True)
        assert len([line for line in warnings(caplog) if "compile_loss" in line]) == said
