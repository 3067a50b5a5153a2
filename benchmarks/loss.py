"""The loss alone: both heads, divergence and labels, forward and backward, from the hidden states of both models.

The work is what a step of language-model distillation does past the two backbones. `0.5 KL + 0.5 cross-entropy` at
temperature 2 is the usual loss; TRL's kernels have no cross-entropy and no factor T^2, so they are compared with ours
also at what they do compute: the divergence alone, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Outcome, Variant, measuring

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WARM_UP = 16
BEST_CHUNK = 256  # rows of a matrix product at which it is fastest: enough to keep busy, few enough for the cache


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        vocabulary: Columns of both heads.
        tokens: Rows.
        width: Of both hidden states.
        kept: Classes that a sparse teacher keeps.
        bf16: Multiply in bfloat16, by autocast.
    """

    vocabulary: int = 32000
    tokens: int = 2048
    width: int = 512
    kept: int = 64
    bf16: bool = False

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(vocabulary=2000, tokens=96, width=64, kept=16)


@dataclass
class Inputs:
    """Of one variant; the student's want gradients."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @classmethod
    def make(cls, settings: Settings) -> Inputs:
        """Draw them; the same for every variant."""
        import torch

        torch.manual_seed(0)
        rows, width, vocabulary = settings.tokens, settings.width, settings.vocabulary
        return cls(
            hidden=torch.randn(rows, width).requires_grad_(),
            weight=(torch.randn(vocabulary, width) * 2 / width**0.5).requires_grad_(),
            teacher_hidden=torch.randn(rows, width),
            teacher_weight=torch.randn(vocabulary, width) * 2 / width**0.5,
            labels=torch.randint(0, vocabulary, (rows,)),
        )

    def some(self, rows: int) -> Inputs:
        """Return the first rows, as a variant's own."""
        return Inputs(
            self.hidden.detach()[:rows].clone().requires_grad_(),
            self.weight,
            self.teacher_hidden[:rows],
            self.teacher_weight,
            self.labels[:rows],
        )


Loss = Callable[[Inputs, Settings, Any], "torch.Tensor"]


def measured(
    loss: Loss, ready: Callable[[Inputs, Settings], Any] | None = None, *, compiled: bool = False
) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: a loss of a few rows to warm up, then that of all rows with its gradient."""

    def run(settings: Settings) -> Outcome:
        import torch

        inputs = Inputs.make(settings)
        context = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16)
        few = inputs.some(BEST_CHUNK if compiled else WARM_UP)  # a whole block, or it would compile later
        with context:
            extra = None if ready is None else ready(few, settings)
            value = loss(few, settings, extra)
            extra = None if ready is None else ready(inputs, settings)
        value.backward()
        inputs.weight.grad = None
        with measuring() as cost:
            with context:
                value = loss(inputs, settings, extra)
            value.backward()
        assert inputs.hidden.grad is not None
        assert inputs.weight.grad is not None
        checks = {
            "loss": value.item(),
            "gradient of the input": inputs.hidden.grad.double().norm().item(),
            "gradient of the weights": inputs.weight.grad.double().norm().item(),
        }
        return Outcome(cost, checks, per="loss", compiling=compiler().seconds if compiled else None)

    return run


@cache
def compiler() -> Any:
    """Return what compiles the loss in this process, each time anew."""
    import torch._inductor.config

    from hf_distill.training.chunked.compiled import Compiler

    torch._inductor.config.force_disable_caches = True
    return Compiler()


def _logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        teacher = F.linear(inputs.teacher_hidden, inputs.teacher_weight)
    return F.linear(inputs.hidden, inputs.weight).float(), teacher.float()


def naive(inputs: Inputs, settings: Settings, _: Any) -> Tensor:
    """As tutorials do: all logits of both, their softmaxes, `kl_div` and `cross_entropy`."""
    import torch.nn.functional as F

    student, teacher = _logits(inputs)
    kl = F.kl_div(
        F.log_softmax(student / 2, -1), F.log_softmax(teacher / 2, -1), reduction="batchmean", log_target=True
    )
    return 0.5 * kl * 4 + 0.5 * F.cross_entropy(student, inputs.labels)


def labels_only(inputs: Inputs, settings: Settings, _: Any) -> Tensor:
    """The head of plain fine-tuning."""
    import torch.nn.functional as F

    return F.cross_entropy(F.linear(inputs.hidden, inputs.weight).float(), inputs.labels)


def trl_gkd(beta: float) -> Loss:
    """TRL's `GKDTrainer.generalized_jsd_loss`."""

    def loss(inputs: Inputs, settings: Settings, _: Any) -> Tensor:
        import os

        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from trl.experimental.gkd import GKDTrainer

        student, teacher = _logits(inputs)
        value: Tensor = GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], labels=inputs.labels[None], beta=beta
        )
        return value

    return loss


def trl_chunked(beta: float) -> Loss:
    """TRL's `ChunkedDivergenceFunction`, which its `DistillationTrainer` uses."""

    def loss(inputs: Inputs, settings: Settings, _: Any) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        divergence, _entropy = ChunkedDivergenceFunction.apply(
            inputs.hidden, inputs.weight, None, inputs.teacher_hidden, inputs.teacher_weight, None, beta
        )
        mean: Tensor = divergence.mean()
        return mean

    return loss


def ours(*objectives: tuple[str, dict[str, Any]], sparse: bool = False, compiled: bool = False) -> Loss:
    """`HeadRows.sums_in_chunks`: a few rows at a time, the gradient taken on the way."""

    def loss(inputs: Inputs, settings: Settings, kept: Any) -> Tensor:
        import torch
        from torch import nn

        from hf_distill.models.heads import OutputHead
        from hf_distill.models.projection import Side
        from hf_distill.objectives import OBJECTIVES
        from hf_distill.training.chunked.rows import HeadRows

        head, theirs = (nn.Linear(1, 1, bias=False, device="meta") for _ in range(2))
        # The weights as they are, not a Parameter made of them: the gradient goes to the leaf.
        head._parameters["weight"] = inputs.weight  # type: ignore[assignment]
        theirs._parameters["weight"] = inputs.teacher_weight  # type: ignore[assignment]
        dtype = torch.bfloat16 if settings.bf16 else torch.float32
        teacher = kept if sparse else Side(OutputHead(theirs), inputs.teacher_hidden, dtype)
        rows = len(inputs.labels)
        example = torch.zeros(rows, dtype=torch.long)
        code = compiler() if compiled else None
        made = HeadRows(Side(OutputHead(head), inputs.hidden, dtype), teacher, inputs.labels, example, 1, code)
        terms = [OBJECTIVES[name](**settings_) for name, settings_ in objectives]
        coefficients = torch.tensor([float(term.weight) for term in terms]) / rows
        value: Tensor = (made.sums_in_chunks(terms, coefficients).sum(0) * coefficients).sum()  # type: ignore[arg-type]
        if compiled and rows >= made.pieces()[1] and not code.graphs:
            raise RuntimeError("the loss could not be compiled, and the time would be that without.")
        return value

    return loss


def keep(inputs: Inputs, settings: Settings) -> Any:
    """Return what a cache would hold of the teacher, a few rows at a time; not part of what is measured."""
    import torch
    import torch.nn.functional as F

    from hf_distill.rows.base import SparseRows

    with torch.no_grad():
        logits = [F.linear(part, inputs.teacher_weight) for part in inputs.teacher_hidden.split(128)]
        parts = [SparseRows.of(one, settings.kept, temperature=2.0) for one in logits]
    joined = (
        torch.cat([getattr(one, name) for one in parts]) for name in ("indices", "log_probabilities", "remaining")
    )
    return SparseRows(*joined, temperature=2.0)


def naive_sparse(inputs: Inputs, settings: Settings, kept: Any) -> Tensor:
    """A sparse teacher, but all logits of the student at once."""
    import torch
    import torch.nn.functional as F

    from hf_distill.objectives import KLDivergence, Labels
    from hf_distill.rows.base import Rows

    logits = F.linear(inputs.hidden, inputs.weight).float()
    rows = Rows(logits, kept, inputs.labels, torch.zeros(len(logits), dtype=torch.long), 1)
    losses = KLDivergence(temperature=2.0).sums(rows) + Labels().sums(rows)
    return 0.5 * losses.sum() / len(logits)


def floor(settings: Settings) -> Outcome:
    """Nothing but the four matrix products, by the fastest code there is: both heads, the student's two gradients."""
    import torch

    from hf_distill.models.projection import project

    inputs = Inputs.make(settings)
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    chunk = min(BEST_CHUNK, settings.tokens)

    def multiply(rows: int) -> None:
        with torch.no_grad():
            hidden, weight = inputs.hidden.to(dtype), inputs.weight.to(dtype)
            teacher_hidden, teacher_weight = inputs.teacher_hidden.to(dtype), inputs.teacher_weight.to(dtype)
            to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            for start in range(0, rows, chunk):
                part = slice(start, min(start + chunk, rows))
                project(teacher_hidden[part], teacher_weight, None)
                logits = project(hidden[part], weight, None)
                torch.mm(logits, weight, out=to_hidden[part])
                to_weight.addmm_(logits.t(), hidden[part])

    multiply(WARM_UP)
    with measuring() as cost:
        multiply(settings.tokens)
    return Outcome(cost, per="loss")


KL = ("kl", {"temperature": 2.0, "weight": 0.5})
LABELS = ("labels", {"weight": 0.5})
VARIANTS: dict[str, Variant] = {
    "naive": Variant(measured(naive), "naive: all logits, KL and cross-entropy", "kl + labels"),
    "dense": Variant(measured(ours(KL, LABELS)), "**ours**, KL and cross-entropy", "kl + labels"),
    "sparse": Variant(
        measured(ours(KL, LABELS, sparse=True), keep), "**ours**, a teacher's top 64 kept", "sparse kl + labels"
    ),
    "dense_compiled": Variant(
        measured(ours(KL, LABELS, compiled=True), compiled=True), "**ours**, compiled", "kl + labels"
    ),
    "sparse_compiled": Variant(
        measured(ours(KL, LABELS, sparse=True, compiled=True), keep, compiled=True),
        "**ours**, top 64 kept, compiled",
        "sparse kl + labels",
    ),
    "naive_sparse": Variant(measured(naive_sparse, keep), "naive, a teacher's top 64 kept", "sparse kl + labels"),
    "floor": Variant(floor, "the four matrix products alone"),
    "labels_only": Variant(measured(labels_only), "cross-entropy alone, no teacher"),
    "dense_kl": Variant(measured(ours(("kl", {}))), "**ours**, KL", "kl", 1e-3),
    "trl_kl": Variant(measured(trl_gkd(0.0)), "TRL GKD loss, KL", "kl", 1e-3, "trl"),
    "trl_chunked": Variant(measured(trl_chunked(0.0)), "TRL chunked kernel, KL", "kl", 1e-3, "trl"),
    "dense_js": Variant(measured(ours(("js", {}))), "**ours**, Jensen-Shannon", "js", 1e-3),
    "trl_js": Variant(measured(trl_gkd(0.5)), "TRL GKD loss, its default (Jensen-Shannon)", "js", 1e-3, "trl"),
    "trl_chunked_js": Variant(measured(trl_chunked(0.5)), "TRL chunked kernel, Jensen-Shannon", "js", 1e-3, "trl"),
}
BASELINE = "naive"
# Ratios of time and memory that say what was gained: (name, slower, faster).
RATIOS = (
    ("dense loss, of naive", "naive", "dense"),
    ("dense loss, time relative to its matrix products", "dense", "floor"),
    ("sparse loss, of naive", "naive", "sparse"),
    ("dense loss compiled, of not compiled", "dense", "dense_compiled"),
    ("sparse loss compiled, of not compiled", "sparse", "sparse_compiled"),
    ("dense loss, of TRL's chunked kernel", "trl_chunked", "dense"),
    ("KL alone, of TRL's chunked kernel", "trl_chunked", "dense_kl"),
    ("KL alone, of TRL's GKD loss", "trl_kl", "dense_kl"),
    ("Jensen-Shannon, of TRL's GKD loss", "trl_js", "dense_js"),
    ("Jensen-Shannon, of TRL's chunked kernel", "trl_chunked_js", "dense_js"),
)
