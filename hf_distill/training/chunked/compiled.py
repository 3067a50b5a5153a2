"""Compiles the loss of a block: a few kernels that read the logits once each, in place of about thirty.

`block.BlockLoss` is traced with its gradient into one graph, which Inductor compiles: to Triton on a GPU, to C++ on a
CPU. A graph is made for one shape and one set of settings, so that blocks of another size (usually the last one of a
batch) are computed eagerly. What changes from step to step (weights, scheduled temperatures) is an input of the graph.

Compiling only makes a training faster. A loss that cannot be traced or compiled, or whose compiled code gives other
numbers than the eager one, is computed eagerly, after one warning.
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
from hf_distill.training.chunked.block import BlockLoss, Evaluate

if TYPE_CHECKING:
    from hf_distill.models.projection import Side

logger = logging.getLogger(__name__)

Code = Callable[..., tuple[Tensor, Tensor]]
# Number of graphs that one training compiles at most: its objectives, those of evaluation, another precision.
MOST = 8
# Largest difference of the compiled gradient from the eager one, relative to its largest value, in float32 and in half
# precision.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2


def compiler_for(setting: bool | str, device: torch.device, objectives: Sequence[Objective]) -> Compiler | None:
    """Return the compiler for the loss of blocks; None if it is computed eagerly.

    Args:
        setting: True, false, or `"auto"`: on an NVIDIA or AMD GPU with Triton, for objectives of this package, which
            are known to depend only on their arguments and settings.
        device: Where the training runs.
        objectives: Objectives of the training, with their schedules.
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
    """Warn that `compile_loss: true` has no effect; once per run, which has several trainings and evaluations."""
    logger.warning("compile_loss: true has no effect here: it is for language models, without fp16 and torch_compile")


@dataclass(frozen=True)
class Graph:
    """The loss of a block as a function of a flat list of tensors, as a compiler needs it.

    Attributes:
        evaluation: What to compute; its weights and scheduled temperatures are ignored.
        moving: For each objective, whether its temperature is an input of the graph.
        temperature: Temperature of the teacher's stored rows; None if they are not stored.
        ordered: Whether the likeliest class of these comes first, as in `SparseRows`.
        written: Whether the tokens that a model wrote are an input, and whether the stored rows have their
            log-probability.
    """

    evaluation: BlockLoss
    moving: tuple[bool, ...]
    temperature: float | None
    ordered: bool = False
    written: tuple[bool, bool] = (False, False)

    @property
    def key(self) -> tuple[Any, ...]:
        """The settings that the code depends on, besides the shapes of its inputs."""
        still: dict[str, Any] = {"temperature": 1.0}
        settled = (
            replace(one, weight=1.0, **(still if moves else {}))
            for one, moves in zip(self.evaluation.objectives, self.moving, strict=True)
        )
        after = ((side.head.scale, side.head.soft_cap, side.classes) for side in self._sides)
        return (*settled, *after, self.temperature, self.ordered, self.written, self.evaluation.shared is not None)

    def inputs(
        self,
        raw: Tensor,
        teacher: Tensor | SparseRows | None,
        labels: Tensor,
        coefficients: Tensor,
        written: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the arguments of `BlockLoss.__call__` and all other tensors that it uses, as inputs of the graph."""
        objectives: Any = self.evaluation.objectives
        # Always on the CPU: a kernel then gets the number itself, without waiting for the device.
        temperatures = [
            torch.tensor(one.temperature, dtype=torch.float64)
            for one, moves in zip(objectives, self.moving, strict=True)
            if moves
        ]
        biases = [side.head.extra_bias for side in self._sides if side.head.extra_bias is not None]
        if self.evaluation.shared is not None:
            biases.append(self.evaluation.shared)
        if written is not None:
            biases.append(written)
        if isinstance(teacher, SparseRows):
            theirs = [teacher.indices, teacher.log_probabilities, teacher.remaining]
            theirs += [] if teacher.written is None else [teacher.written]
        else:
            theirs = [] if teacher is None else [teacher]
        return [raw, labels, coefficients, *temperatures, *biases, *theirs]

    def __call__(self, raw: Tensor, labels: Tensor, coefficients: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values and the agreement of a block, given what `inputs` returns, eagerly or while traced."""
        rest = list(others)
        temperatures = {index: rest.pop(0) for index, moves in enumerate(self.moving) if moves}
        sides = [
            side if side.head.extra_bias is None else replace(side, head=replace(side.head, extra_bias=rest.pop(0)))
            for side in self._sides
        ]
        shared = None if self.evaluation.shared is None else rest.pop(0)
        sides = [side if side.shared is None else replace(side, shared=shared) for side in sides]
        written = rest.pop(0) if self.written[0] else None
        teacher: Tensor | SparseRows | None = rest[0] if rest else None
        if self.temperature is not None:
            indices, log_probabilities, remaining, *known = rest
            given = known[0] if self.written[1] else None
            settings: Any = {"temperature": self.temperature, "ordered": self.ordered, "written": given}
            teacher = SparseRows(indices, log_probabilities, remaining, **settings)
        student, theirs = (*sides, None)[:2]
        assert student is not None
        return replace(self.evaluation, student=student, teacher=theirs, shared=shared, temperatures=temperatures)(
            raw, teacher, labels, coefficients, written
        )

    @property
    def _sides(self) -> list[Side]:
        both = (self.evaluation.student, self.evaluation.teacher)
        return [side for side in both if side is not None]


class Compiler:
    """Compiles the loss of blocks that need a gradient; evaluations of a model stay eager.

    Args:
        moving: For each objective on logits, whether its temperature changes during training.

    Attributes:
        seconds: Seconds spent compiling so far.
    """

    def __init__(self, moving: Sequence[bool] = ()) -> None:
        self.moving = tuple(moving)
        self.seconds = 0.0
        self._codes: list[tuple[tuple[Any, ...], Code | None]] = []

    @property
    def graphs(self) -> int:
        """Number of compiled graphs."""
        return sum(code is not None for _, code in self._codes)

    def of(
        self,
        evaluation: BlockLoss,
        rows: int,
        temperature: float | None = None,
        *,
        ordered: bool = False,
        written: tuple[bool, bool] = (False, False),
    ) -> Evaluate:
        """Return a function that computes the same, for blocks of `rows` rows by compiled code.

        Args:
            evaluation: The loss of the blocks of one batch, which all have tensors of the same kind.
            rows: Number of rows of a whole block.
            temperature: Temperature of the teacher's stored rows; None if they are not stored.
            ordered: Whether the likeliest class of these comes first, as in `SparseRows`.
            written: As in `Graph`.
        """
        moving = (self.moving + (False,) * len(evaluation.objectives))[: len(evaluation.objectives)]
        graph = Graph(evaluation, moving, temperature, ordered, written)
        code: Code | None = None

        def evaluate(
            raw: Tensor,
            teacher: TeacherRows | None,
            labels: Tensor,
            coefficients: Tensor | None,
            written: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:
            nonlocal code
            if coefficients is None or len(raw) != rows or isinstance(teacher, MixtureRows):
                return evaluation(raw, teacher, labels, coefficients, written)
            inputs = graph.inputs(raw, teacher, labels, coefficients, written)
            if code is None:
                code = self._code(graph, inputs) or graph
            return code(*inputs)

        return evaluate

    def _code(self, graph: Graph, inputs: list[Tensor]) -> Code | None:
        """Return compiled code for a graph and inputs like these, compiling if needed; None if that is impossible."""
        key = (graph.key, *((one.shape, one.stride(), one.dtype, one.device) for one in inputs))
        for known, code in self._codes:
            if known == key:
                return code
        if len(self._codes) < MOST:
            self._codes.append((key, self._make(graph, inputs)))
            return self._codes[-1][1]
        if len(self._codes) == MOST:
            self._codes.append(((), None))
            logger.warning("compile_loss: the loss changes too often to be compiled each time. It is computed eagerly")
        return None

    def _make(self, graph: Graph, inputs: list[Tensor]) -> Code | None:
        logger.info("compiling the loss for blocks of %d rows; once, and it may take a minute", len(inputs[0]))
        started = time.perf_counter()
        try:
            code = compile_graph(graph, inputs)
            reason = None if _same(code, graph, inputs) else "it computes something else"
        except Exception as error:  # from the tracer, from Inductor, or because no compiler is installed
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.seconds += time.perf_counter() - started
        if reason is None:
            return code
        logger.warning(
            "compile_loss: the loss cannot be compiled here (%s). It is computed eagerly: same numbers, but slower. "
            "To skip the attempt, set compile_loss: false",
            reason,
        )
        return None


def compile_graph(graph: Graph, inputs: list[Tensor]) -> Code:
    """Trace a graph with its gradient, and compile it with Inductor for inputs of these shapes."""
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    # Traced with fake tensors, which have no values: code that branches on values raises an error.
    with torch.no_grad():
        with closed_form.traced():
            made = make_fx(graph, tracing_mode="fake")(*inputs)
        code: Code = torch._inductor.compile(made, [*inputs])
    return code


def _same(code: Code, graph: Graph, inputs: list[Tensor]) -> bool:
    """Return whether compiled code gives the same values and gradient as the eager graph; inputs stay unchanged."""
    raw, *others = inputs
    found, wanted = raw.clone(), raw.clone()
    # The agreement is not compared: of two equally likely tokens, either may be the top one.
    (values, _), (expected, _) = code(found, *others), graph(wanted, *others)
    return _close(values, expected, raw.dtype) and _close(found.float(), wanted.float(), raw.dtype)


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    tolerance = HALF_TOLERANCE if dtype.itemsize == 2 else TOLERANCE
    largest = wanted.nan_to_num(0.0, 0.0, 0.0).abs().amax()
    return torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(largest), equal_nan=True)
