"""Models of a source of targets that train beside the student: their loss, optimizers, steps and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.models.mixing import Mean
from hf_distill.objectives import Comparison
from hf_distill.rows.mixture import mean_rows
from hf_distill.training.labelled import label_objective
from hf_distill.training.sharded import has_loss_scale
from hf_distill.training.terms import Terms
from hf_distill.training.unpickling import only_values
from hf_distill.training.weighing import weighted_mean

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from hf_distill.models.target_model import Learner
    from hf_distill.rows.base import Rows

logger = logging.getLogger(__name__)

# The states of their optimizers, in a checkpoint; their weights are with the source's.
FILE = "optimizer_learners.pt"
# Words in the names of optimizers that step in the backward pass, or that have a mode of their own to evaluate in.
OF_ANOTHER_KIND = ("lomo", "layerwise", "schedule_free")


class Learners:
    """Trains the models of a source of targets beside the student.

    Each has the loss `sum_k weight_k * S_k / N_k` of the student over the same step, with the mean distribution of the
    others as the teacher; or the loss of labels alone. Its gradients are averaged over processes and clipped as the
    student's, and its optimizer is of the same class, with the same settings.

    Args:
        trainer: The trainer, with its source, terms and student.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        source = trainer.source
        self._learners: dict[str, Learner] = dict(source.learners)
        labels = label_objective(trainer.objectives)
        self._of_labels = {
            name: Terms((labels,), source.models[name], None)
            for name, one in self._learners.items()
            if not one.taught_by
        }
        self._optimizers: dict[str, Optimizer] = {}
        self._rows: dict[str, Rows] = {}
        self._outputs: dict[str, Mapping[str, Any]] = {}
        self._inputs: Mapping[str, Any] = {}
        self._losses: list[Tensor] = []

    @classmethod
    def of(cls, trainer: Any, labelled: bool | None) -> Learners | None:
        """Return what trains the models of the trainer's source; None where none of them trains.

        Args:
            trainer: The trainer.
            labelled: Whether the train split has labels; None if that is not known.

        Raises:
            UserError: An argument, an objective or the data does not go with it.
        """
        if trainer.source is None or not trainer.source.learners:
            return None
        _check(trainer, labelled)
        return cls(trainer)

    @property
    def decisions(self) -> list[str]:
        """A line for the user where logits over a vocabulary are computed whole; else empty."""
        classes = getattr(self._trainer.layout, "classes", None)
        if not classes:
            return []
        kilobytes = 12 * classes * (1 + len(self._learners)) // 1024  # logits, log-probabilities and gradients
        return [f"models that train together: all logits at once, at about {kilobytes:,} KB of memory a token"]

    def begin(self) -> None:
        """Make the optimizers for a new training."""
        trainer = self._trainer
        self._optimizers.clear()
        self._losses.clear()
        for name, learner in self._learners.items():
            model = trainer.source.models[name]
            model.zero_grad()  # of a training that was interrupted within a step
            with torch.no_grad():
                parallel.first_to_all([*model.parameters(), *model.buffers()])
            held, trainer.optimizer = trainer.optimizer, None
            try:
                optimizer = trainer.create_optimizer(model)
            finally:
                trainer.optimizer = held
            self._optimizers[name] = optimizer
            _log_rate(name, learner, trainer.args.learning_rate)

    # ---- One micro-batch ----

    def look(self, outputs: Sequence[Mapping[str, Any]], student: Rows, inputs: Mapping[str, Any]) -> None:
        """Store the rows of a micro-batch.

        Args:
            outputs: Outputs of each of the source's models, with their graph, in the order of `models`.
            student: Rows with the student's logits.
            inputs: The batch.
        """
        layout = self._trainer.layout
        columns = layout.teacher_columns
        self._rows, self._inputs = {"student": student}, inputs
        for name, one in zip(self._learners, outputs, strict=True):
            self._outputs[name], logits = one, layout.logits(one)
            self._rows[name] = layout.select(logits if columns is None else logits[..., list(columns)], None, inputs)

    def compute(self, counts: Tensor, weights: Tensor | None) -> None:
        """Compute the loss of each model for the micro-batch that `look` was given.

        Args:
            counts: Counts of the whole step, as `Weighing` counts them.
            weights: Weight of each example in each of the student's terms, `(batch, terms)`; None for 1.
        """
        weighing = self._trainer.weighing
        for name in self._learners:
            # Terms with parameters of their own are refused, so the student's can be used for another model.
            terms, given, divisors = self._trainer.terms, weights, weighing.divisors(counts)
            if name in self._of_labels:
                own = weighing.of_example(self._inputs)
                given = None if own is None else own.unsqueeze(-1)
                terms, divisors = self._of_labels[name], weighing.of_unit(counts, "label").reshape(1)
            means = weighted_mean(terms.per_example(self._comparison(name)), given, divisors)
            self._losses.append(terms.weighted(means * parallel.processes()))
        self._rows, self._outputs, self._inputs = {}, {}, {}

    def _comparison(self, name: str) -> Comparison:
        """Return what objectives compare for a model: its rows with the mean of the others."""
        layout, others = self._trainer.layout, self._learners[name].taught_by
        teacher = None
        if others:
            members = [self._rows[other].student.detach() for other in others]
            mean = Mean((1 / len(others),) * len(others))
            teacher = mean_rows(layout, members, mean, self._trainer.terms.temperatures)
        return Comparison(
            rows=replace(self._rows[name], teacher=teacher),
            student=self._outputs[name],
            teacher=None,
            inputs=self._inputs,
            tokens=layout.tokens(self._inputs),
            teacher_rows=None,
        )

    def backward(self) -> None:
        """Compute the gradients of the losses since the last call."""
        losses, self._losses = self._losses, []
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]

    # ---- One step ----

    def gather(self) -> list[Tensor]:
        """Average the gradients of a step over processes, clip them, and return their norm for each model."""
        norms = []
        most = self._trainer.args.max_grad_norm or float("inf")
        for name in self._optimizers:
            trained = [*self._trainer.source.models[name].parameters()]
            parallel.average_gradients(trained)
            norms.append(nn.utils.clip_grad_norm_(trained, most))
        return norms

    def step(self, *, left_out: bool) -> None:
        """Take the step of each model, and delete the gradients.

        Args:
            left_out: Delete the gradients only, as the student's step was skipped.
        """
        theirs = self._trainer.optimizer.param_groups
        for name, optimizer in self._optimizers.items():
            factor = self._factor(name)
            for index, group in enumerate(optimizer.param_groups):
                rate = theirs[index if len(theirs) == len(optimizer.param_groups) else 0]["lr"]
                group["lr"] = rate if factor is None else rate * factor
            if not left_out:
                optimizer.step()
            optimizer.zero_grad()

    def _factor(self, name: str) -> float | None:
        """Return its learning rate as a multiple of the student's; None if they are the same."""
        own = self._learners[name].learning_rate
        return None if own is None else own / self._trainer.args.learning_rate

    # ---- Checkpoints ----

    def save(self, directory: Path) -> None:
        """Write the states of the optimizers into a checkpoint."""
        torch.save({name: one.state_dict() for name, one in self._optimizers.items()}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Load the states of the optimizers from a checkpoint.

        Raises:
            UserError: The file is missing: moments would silently start again from zero.
        """
        if not (directory / FILE).exists():
            raise UserError(f"{directory} has no {FILE} with the optimizers of the teacher's models. Start over.")
        with only_values(directory):
            states = torch.load(directory / FILE, map_location="cpu", weights_only=True)
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(states[name])


def _log_rate(name: str, learner: Learner, student: float) -> None:
    if learner.learning_rate is not None and parallel.is_first():
        logger.info("%s trains with a learning rate of %g, the student with %g", name, learner.learning_rate, student)


def _check(trainer: Any, labelled: bool | None) -> None:
    """Refuse a training in which models beside the student cannot train; warn if they would learn nothing.

    Raises:
        UserError: See above; `key` names the training argument.
    """
    learners = trainer.source.learners.values()
    if has_loss_scale(trainer):
        raise UserError(
            "a teacher that trains with the student does not work with fp16, whose loss scale is the student's. Use "
            "bf16: true, or float32.",
            key="fp16",
        )
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if trainer.brings_optimizer:
        raise UserError(
            "a teacher that trains with the student needs an optimizer of the same kind for its models. Pass "
            "optimizer_cls_and_kwargs, or optim in args, instead of optimizers."
        )
    if any(word in name for word in OF_ANOTHER_KIND):
        raise UserError(
            f"{name} does not work with a teacher that trains with the student. Take another, such as adamw_torch.",
            key="optim",
        )
    if not trainer.args.learning_rate and any(one.learning_rate for one in learners):
        raise UserError("the teacher's learning rate follows the student's, which is 0.", key="learning_rate")
    if (trainer.terms.learned or trainer.terms.watch) and any(one.taught_by for one in learners):
        raise UserError(
            "an objective looks into the student, or learns parameters of its own for it, and models that train with "
            "it would need theirs. Use objectives on logits, such as kl."
        )
    if labelled is False:
        raise UserError(
            "the train split has no labels, and models that train with the student learn from labels. Take a trained "
            "model as the teacher."
        )
    learns_labels = any(one.needs().labels and one.has_weight for one in trainer.objectives)
    if not learns_labels and any(one.taught_by for one in learners) and parallel.is_first():
        logger.warning(
            "no objective learns from labels, and models that learn only from each other need no more than to agree, "
            "on anything. Add Labels()"
        )
