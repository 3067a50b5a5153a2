"""The forward passes of student and teacher on one batch: their inputs, and the comparison of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_distill.data.two_tokenizers import SAME, SPAN, teacher_inputs
from hf_distill.models.match import match
from hf_distill.models.needs import TaskFacts
from hf_distill.models.patching import replaced
from hf_distill.models.target_model import RunModel, Targets, TargetSource
from hf_distill.objectives import Comparison
from hf_distill.rows.base import RowLayout, Rows
from hf_distill.rows.mixture import mixture, softened
from hf_distill.rows.padding import Padding
from hf_distill.rows.written import Spans, SpanTokens
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.chunked.rows import HeadRows
from hf_distill.training.chunked.written import log_probability
from hf_distill.training.held import HELD, Held
from hf_distill.training.learners import Learners
from hf_distill.training.meter import Meter
from hf_distill.training.padding_free.choice import PaddingFree
from hf_distill.training.sharded import with_weights
from hf_distill.training.split_models import on_rows_of_all
from hf_distill.training.terms import Terms


@dataclass(frozen=True)
class BothModels:
    """Runs student and teacher on a batch.

    Attributes:
        source: Gives the targets; None if there is no teacher.
        layout: Which logits count.
        terms: The loss terms.
        padding_free: Runs the layers of the models without padding.
        padding: Runs each model on a padded batch.
        accelerator: The trainer's accelerator.
        meter: Measures the time of the teacher.
        learners: Trains models of the source beside the student; None where none trains.
        takes: Names of the arguments of `forward`, by model: `student`, and each of the source's models.
        use_cache: Whether the student returns keys and values for generation.
    """

    source: TargetSource | None
    layout: RowLayout
    terms: Terms
    padding_free: PaddingFree
    padding: Padding
    accelerator: Accelerator
    meter: Meter
    learners: Learners | None
    takes: Mapping[str, frozenset[str]]
    use_cache: bool

    def compare(self, student: nn.Module, inputs: Mapping[str, Any], heads: Heads | None = None) -> Comparison:
        """Run both models on the same batch, and return what objectives compare.

        Args:
            student: The student, without a wrapper such as DDP.
            inputs: A batch.
            heads: The heads of the models, to compute the logits in chunks; None to compute all logits at once.

        Raises:
            ValueError: The teacher reads other tokens than the objectives can compare, or a cache has other rows.
        """
        ours, targets = self._run(student, inputs, heads)
        logits = None
        if targets is not None and heads is None and targets.rows is None and targets.mean is None:
            logits = self.layout.logits(targets.outputs)
        attached = None
        if logits is not None and self.terms.differentiates:
            attached = self.layout.teacher_rows(logits, inputs)
        spans = (
            self._spans(ours, targets, inputs, heads) if any(one.unit == "span" for one in self.terms.needs) else None
        )
        if heads is not None:
            rows: Rows = heads.rows(self.layout, inputs, targets)
        else:
            rows = self.layout.select(self.layout.logits(ours), logits, inputs)
        if attached is not None and rows.taught is not None:
            attached = attached[rows.taught]
        if targets is not None and self._learn(student):
            assert self.learners is not None
            self.learners.look(targets.mixed, rows, inputs)
        return Comparison(
            rows=rows if targets is None else self._taught(rows, targets, inputs),
            student=ours,
            teacher=None if targets is None else targets.outputs,
            inputs=inputs,
            tokens=self.layout.tokens(inputs),
            teacher_rows=attached,
            spans=spans,
        )

    def _spans(
        self, ours: Mapping[str, Any], targets: Targets | None, inputs: Mapping[str, Any], heads: Heads | None
    ) -> Spans:
        """Return how likely both models find the spans of the texts."""
        assert targets is not None  # `match` has refused an objective that compares them with nothing

        def of(model: int, outputs: Mapping[str, Any]) -> Tensor:
            written: SpanTokens = self.layout.written(inputs, teacher=model > 0)
            # Columns of a teacher's own vocabulary are not those of the student's.
            classes: int | None = None if SPAN in inputs and model else getattr(self.layout, "classes", None)
            if heads is not None:
                return written.by_span(heads.log_probabilities(model, written.places, classes))
            logits = written.places.pick(self.layout.logits(outputs))[:, :classes]
            return written.by_span(log_probability(logits, written.places.labels))

        def both() -> tuple[Tensor, Tensor]:
            student = of(0, ours)
            return student, of(1, targets.outputs) if targets.spans is None else targets.spans.to(student)

        student, teacher = both() if heads is None else with_weights(heads.layers, both)
        return Spans(student, teacher.detach())

    def _taught(self, rows: Rows, targets: Targets, inputs: Mapping[str, Any]) -> Rows:
        """Return rows with the teacher's, where these are not the logits of one model."""
        if isinstance(rows, HeadRows):
            return rows
        if targets.rows is not None:
            return replace(rows, teacher=targets.rows.for_rows(len(rows.labels), rows.taught))
        if targets.softened:
            return replace(rows, teacher=softened(self.layout, targets.softened, inputs))
        if targets.mean is None:
            return rows
        mixed = mixture(self.layout, targets.mixed, targets.mean, inputs, self.terms.temperatures, rows.example)
        return replace(rows, teacher=mixed)

    def _learn(self, student: nn.Module) -> bool:
        """Return whether models of the source train on this batch, beside the student."""
        return self.learners is not None and student.training and torch.is_grad_enabled()

    def _run(self, student: nn.Module, inputs: Mapping[str, Any], heads: Heads | None) -> tuple[Any, Targets | None]:
        """Return the student's outputs and the targets; with `heads`, their inputs are captured in place of logits."""
        held: Held | None = None if heads is None or self.terms.differentiates else inputs.get(HELD)
        targets = None if held is None else held.targets
        if held is not None and heads is not None and targets is not None:
            heads.recall(held.captured)
        elif self.source is not None:
            # User code may have changed the mode since the last batch; with dropout, targets are noise.
            learn = self._learn(student)
            self.source.train(learn)
            watch = self.meter.teacher() if student.training else nullcontext()
            with torch.set_grad_enabled(self.terms.differentiates or learn), self.accelerator.autocast(), watch:
                read = self._teacher_inputs(inputs)
                targets = self.source.targets(read, self._runner(self.source, read, heads, own=read is not inputs))
            if held is not None and heads is not None and not learn:
                held.targets, held.captured = targets, heads.of_teachers()
        with self.padding_free.running("student", inputs), _capturing(heads, "student"):
            given = self._given("student", student, inputs, use_cache=self.use_cache)
            ours = self.padding.run("student", student, given, inputs)
        return ours, targets

    def _runner(self, source: TargetSource, read: Mapping[str, Any], heads: Heads | None, *, own: bool) -> RunModel:
        """Return a function that runs one of the source's models, by name, on the teacher's inputs.

        Args:
            source: The source of targets.
            read: The teacher's inputs.
            heads: The heads of the models, whose inputs are captured; None to compute all logits.
            own: Whether they come from the teacher's own tokenizer.
        """

        def run(name: str) -> Mapping[str, Any]:
            model = source.models[name]
            with self.padding_free.running(name, read), _capturing(heads, name), on_rows_of_all(model):
                given = self._given(name, model, read, use_cache=False)
                outputs: Mapping[str, Any] = self.padding.run(name, model, given, read, own=own)
            return outputs

        return run

    def _teacher_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the teacher's inputs; refuse objectives that compare tokens if its tokens are not the student's."""
        theirs = teacher_inputs(inputs)
        if theirs is not inputs and SAME not in inputs and self.source is not None:
            gives = replace(self.source.gives(), own_tokens=True)
            for index, needs in enumerate(self.terms.needs):
                match(needs, gives, TaskFacts(), f"objectives[{index}]")
        return theirs

    def _given(self, whose: str, model: nn.Module, inputs: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        taken = self.takes[whose]
        read = {key: value for key, value in inputs.items() if key in taken}
        if not read:
            raise ValueError(
                f"{type(model).__name__}.forward takes {', '.join(sorted(taken)) or 'nothing'}, and the batch has "
                f"{', '.join(inputs)}: no name is the same. Use the names of the batch in its forward."
            )
        return {**{key: value for key, value in settings.items() if key in taken}, **read, **self.terms.outputs}


def _capturing(heads: Heads | None, name: str) -> AbstractContextManager[None]:
    return nullcontext() if heads is None else heads.capturing(name)


Result = TypeVar("Result")


def inside_forward(wrapped: nn.Module, model: nn.Module, compute: Callable[[], Result], inputs: Any) -> Result:
    """Return `compute()`, run inside the forward pass of the wrapper (Lightning: forward redirection).

    DDP and FSDP prepare parameters, and track which of them the loss uses, within one call of the wrapper. A loss that
    uses parameters after that call (a projection of hidden states), or leaves some unused (a head, if only hidden
    states are compared), would make them fail or, worse, let the processes' weights differ.

    Args:
        wrapped: What the trainer calls: `model` itself, or DDP or FSDP around it.
        model: The student without the wrapper; `compute` may call it.
        compute: Returns all tensors that the loss is computed from.
        inputs: The inputs for the wrapper; they are not passed to `compute`.
    """

    def forward(*_: Any, **__: Any) -> Result:
        put_back()  # `compute` may call the model's own forward
        return compute()

    with replaced(model, "forward", forward) as put_back:
        result: Result = wrapped(inputs)
    return result
