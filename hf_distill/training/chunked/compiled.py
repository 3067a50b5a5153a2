"""The evaluation of a block, compiled: a few kernels that go over the logits once each, in place of some thirty.

`block.Evaluation` is traced with its gradient into one graph, which Inductor compiles: to Triton on a GPU, to C++ on a
CPU. A graph is made for one shape and one set of settings, so blocks of another size (the last one of a batch, as a
rule) are evaluated eagerly; what changes from step to step (weights, scheduled temperatures) is an input of it.

Nothing here can do more than make a training faster. What cannot be traced or compiled, and what would compute
something else than the same code does without, is evaluated eagerly, after one warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.models.target_rows import MixtureRows, SparseRows, TeacherRows
from hf_distill.objectives import closed_form
from hf_distill.objectives.base import Objective, RowObjective
from hf_distill.objectives.schedule import Schedule
from hf_distill.objectives.softened import Softened
from hf_distill.training.chunked.block import Evaluate, Evaluation

if TYPE_CHECKING:
    from hf_distill.models.projection import Side

logger = logging.getLogger(__name__)

Code = Callable[..., tuple[Tensor, Tensor]]
# Different graphs that one training has a use for: its objectives, those of evaluation, another precision.
MOST = 8
# How far the compiled gradient may be from the eager one, relative to its largest number: float32, and half precision.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2


def compiler_for(setting: bool | str, device: torch.device, objectives: Sequence[Objective]) -> Compiler | None:
    """Return what compiles the evaluation of blocks; None where it is to stay eager.

    Args:
        setting: True, false, or `"auto"`: on an NVIDIA or AMD GPU with Triton, for objectives of this package, which
            are known to depend on nothing but their arguments and settings.
        device: Where the training runs.
        objectives: Of the training, with their schedules.
    """
    own = [objective for objective in objectives if isinstance(objective, RowObjective)]
    if setting == "auto":
        ours = all(type(objective).__module__.startswith("hf_distill.") for objective in own)
        setting = ours and device.type == "cuda" and find_spec("triton") is not None
    if not setting:
        return None
    return Compiler([isinstance(one, Softened) and isinstance(one.temperature, Schedule) for one in own])


@cache
def warn_nothing_compiled() -> None:
    """Say once that `compile_loss: true` is of no use: a run has several trainings, and judges each model again."""
    logger.warning(
        "compile_loss: true compiles nothing here: it is for language models, without fp16 and torch_compile"
    )


@dataclass(frozen=True)
class Graph:
    """An evaluation as a function of tensors alone, all in one row.

    Attributes:
        evaluation: What to compute; weights, and temperatures that change, do not matter in it.
        moving: Whether the temperature of an objective is an input, for each of them.
        temperature: That of a sparse teacher; None where there is none.
    """

    evaluation: Evaluation
    moving: tuple[bool, ...]
    temperature: float | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides the code, besides the shapes of its inputs."""
        settled = (
            replace(one, weight=1.0, **({"temperature": 1.0} if moves else {}))
            for one, moves in zip(self.evaluation.objectives, self.moving, strict=True)
        )
        after = ((side.head.scale, side.head.soft_cap, side.classes) for side in self._sides)
        return (*settled, *after, self.temperature, self.evaluation.shared is not None)

    def inputs(
        self, raw: Tensor, teacher: Tensor | SparseRows | None, labels: Tensor, coefficients: Tensor
    ) -> list[Tensor]:
        """Return the inputs of `__call__` for a block (see `Evaluation.__call__`)."""
        objectives: Any = self.evaluation.objectives
        # On the CPU, wherever the rest is: a kernel is handed the number, and nobody waits.
        temperatures = [
            torch.tensor(one.temperature, dtype=torch.float64)
            for one, moves in zip(objectives, self.moving, strict=True)
            if moves
        ]
        biases = [side.head.extra_bias for side in self._sides if side.head.extra_bias is not None]
        if self.evaluation.shared is not None:
            biases.append(self.evaluation.shared)
        if isinstance(teacher, SparseRows):
            theirs = [teacher.indices, teacher.log_probabilities, teacher.remaining]
        else:
            theirs = [] if teacher is None else [teacher]
        return [raw, labels, coefficients, *temperatures, *biases, *theirs]

    def __call__(self, raw: Tensor, labels: Tensor, coefficients: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate a block (see `Evaluation.__call__`), eagerly or to be traced."""
        rest = list(others)
        temperatures = {index: rest.pop(0) for index, moves in enumerate(self.moving) if moves}
        sides = [
            side if side.head.extra_bias is None else replace(side, head=replace(side.head, extra_bias=rest.pop(0)))
            for side in self._sides
        ]
        shared = None if self.evaluation.shared is None else rest.pop(0)
        sides = [side if side.shared is None else replace(side, shared=shared) for side in sides]
        teacher: Tensor | SparseRows | None = rest[0] if rest else None
        if self.temperature is not None:
            indices, log_probabilities, remaining = rest
            teacher = SparseRows(indices, log_probabilities, remaining, self.temperature)
        student, theirs = (*sides, None)[:2]
        assert student is not None
        return replace(self.evaluation, student=student, teacher=theirs, shared=shared, temperatures=temperatures)(
            raw, teacher, labels, coefficients
        )

    @property
    def _sides(self) -> list[Side]:
        both = (self.evaluation.student, self.evaluation.teacher)
        return [side for side in both if side is not None]


class Compiler:
    """Evaluates blocks by compiled code, where there is a gradient to take: evaluations of a model stay eager.

    Args:
        moving: Whether the temperature of an objective changes during training, for each of those on logits.

    Attributes:
        seconds: What compiling took so far, by the clock.
    """

    def __init__(self, moving: Sequence[bool] = ()) -> None:
        self.moving = tuple(moving)
        self.seconds = 0.0
        self._codes: list[tuple[tuple[Any, ...], Code | None]] = []

    @property
    def graphs(self) -> int:
        """How many graphs there is code for."""
        return sum(code is not None for _, code in self._codes)

    def of(self, evaluation: Evaluation, rows: int, temperature: float | None = None) -> Evaluate:
        """Return what does the same, blocks of `rows` rows by compiled code.

        Args:
            evaluation: Of one walk, all of whose blocks have the same kind of tensors.
            rows: Of a block.
            temperature: That of a sparse teacher.
        """
        moving = (self.moving + (False,) * len(evaluation.objectives))[: len(evaluation.objectives)]
        graph = Graph(evaluation, moving, temperature)
        code: Code | None = None

        def evaluate(
            raw: Tensor, teacher: TeacherRows | None, labels: Tensor, coefficients: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            nonlocal code
            if coefficients is None or len(raw) != rows or isinstance(teacher, MixtureRows):
                return evaluation(raw, teacher, labels, coefficients)
            inputs = graph.inputs(raw, teacher, labels, coefficients)
            if code is None:
                code = self._code(graph, inputs) or graph
            return code(*inputs)

        return evaluate

    def _code(self, graph: Graph, inputs: list[Tensor]) -> Code | None:
        """Return the code of a graph, made for inputs like these; None if there is none."""
        key = (graph.key, *((one.shape, one.stride(), one.dtype, one.device) for one in inputs))
        for known, code in self._codes:
            if known == key:
                return code
        if len(self._codes) < MOST:
            self._codes.append((key, self._make(graph, inputs)))
            return self._codes[-1][1]
        if len(self._codes) == MOST:
            self._codes.append(((), None))
            logger.warning("compile_loss: the loss changes too often to be compiled each time, and stays as it is now")
        return None

    def _make(self, graph: Graph, inputs: list[Tensor]) -> Code | None:
        logger.info("compiling the loss for blocks of %d rows; once, and it may take a minute", len(inputs[0]))
        started = time.perf_counter()
        try:
            code = compile_graph(graph, inputs)
            reason = None if _same(code, graph, inputs) else "it computes something else"
        except Exception as error:  # of the tracer, of Inductor, of a compiler that is not there: all the same to us
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.seconds += time.perf_counter() - started
        if reason is None:
            return code
        logger.warning(
            "compile_loss: the compiled loss cannot be used here (%s). It is computed without, which gives the same, "
            "slower; compile_loss: false spares the attempt",
            reason,
        )
        return None


def compile_graph(graph: Graph, inputs: list[Tensor]) -> Code:
    """Trace a graph, gradient included, and have Inductor compile it for inputs of these shapes."""
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    # On tensors without numbers: whoever looks at one, or at how many there are of a kind, is found out.
    with torch.no_grad():
        with closed_form.traced():
            made = make_fx(graph, tracing_mode="fake")(*inputs)
        code: Code = torch._inductor.compile(made, [*inputs])
    return code


def _same(code: Code, graph: Graph, inputs: list[Tensor]) -> bool:
    """Whether code gives the values and the gradient that the graph gives eagerly; the inputs stay as they are."""
    raw, *others = inputs
    found, wanted = raw.clone(), raw.clone()
    # Not whether the models agree: between two tokens that are as likely, either will do.
    (values, _), (expected, _) = code(found, *others), graph(wanted, *others)
    return _close(values, expected, raw.dtype) and _close(found.float(), wanted.float(), raw.dtype)


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    tolerance = HALF_TOLERANCE if dtype.itemsize == 2 else TOLERANCE
    largest = wanted.nan_to_num(0.0, 0.0, 0.0).abs().amax()
    return torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(largest), equal_nan=True)
