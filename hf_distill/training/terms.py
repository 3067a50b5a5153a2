"""The loss terms of one training: its objectives, prepared for its two models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from hf_distill import parallel
from hf_distill.models.inspection import base_model
from hf_distill.models.target_rows import upcast
from hf_distill.objectives.base import RowObjective, Term, temperatures_of, unique_names
from hf_distill.objectives.guard import check_result, guarded
from hf_distill.objectives.schedule import number
from hf_distill.rows.base import UNITS
from hf_distill.training.chunked.rows import HeadRows

if TYPE_CHECKING:
    from hf_distill.objectives import Comparison, Objective

logger = logging.getLogger(__name__)

# Number of train examples that objectives see which choose their layers by the data.
OBSERVED = 64


class Terms(Sequence[Term]):
    """The loss terms of a training: one per objective, in the same order.

    Args:
        objectives: The objectives.
        student: The student, without a wrapper such as DDP; it may be a PEFT model.
        teacher: The teacher, without a wrapper; None if there is none.

    Attributes:
        objectives: As given.
        needs: What each objective needs.
        names: Names of the objectives, repeated ones with a number: kl, kl_2.
        learned: The terms with parameters or buffers.
        outputs: Arguments of `forward` that make a model return what the objectives need besides logits.
        differentiates: Whether an objective compares derivatives.
        watch: Whether an objective looks into the models with hooks.
        units: Place in `UNITS` of the unit of each objective.
    """

    def __init__(self, objectives: Sequence[Objective], student: nn.Module, teacher: nn.Module | None) -> None:
        self.objectives = tuple(objectives)
        self.names = unique_names(objectives)
        models = [base_model(model) for model in (student, teacher) if model is not None]
        self._terms = tuple(_prepared(objective, models[0], (*models, None)[1]) for objective in objectives)
        self.learned = nn.ModuleDict(
            {str(index): term for index, term in enumerate(self._terms) if any(True for _ in term.state_dict())}
        )
        self.needs = tuple(objective.needs() for objective in objectives)
        self.outputs = {f"output_{name}": True for needs in self.needs for name in needs.outputs}
        self.differentiates = any(needs.derivatives for needs in self.needs)
        self.watch = any(type(term).watching is not Term.watching for term in self._terms)
        self.units = [UNITS.index(objective.unit) for objective in objectives]
        eager = any(needs.eager_attention for needs in self.needs)
        self._eager: tuple[Any, ...] = tuple(models) if eager else ()
        self._warned = False
        self._steps: int | None = None

    @overload
    def __getitem__(self, index: int) -> Term: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Term]: ...
    def __getitem__(self, index: int | slice) -> Term | Sequence[Term]:
        """Return the term at an index, or the terms of a slice."""
        return self._terms[index]

    def __len__(self) -> int:
        """Return the number of objectives."""
        return len(self._terms)

    @property
    def weights(self) -> list[float]:
        """Current weight of every term."""
        return [number(term.objective.weight) for term in self]

    def weighted(self, values: Tensor) -> Tensor:
        """Return the sum of all terms, each times its current weight.

        Args:
            values: Value of every term, `(terms,)`.
        """
        return torch.stack([value * weight for value, weight in zip(values, self.weights, strict=True)]).sum()

    def go_to(self, step: int, steps: int) -> None:
        """Set scheduled values (weights, temperatures) to their value after `step` of `steps` optimiser steps."""
        if steps != self._steps:
            self._steps = steps
            self._warn_of_cut_off(steps)
        for term, objective in zip(self, self.objectives, strict=True):
            term.objective = objective.at(step, steps)

    def _warn_of_cut_off(self, steps: int) -> None:
        if parallel.is_first():
            for name, objective in zip(self.names, self.objectives, strict=True):
                for field, text in objective.cut_off(steps).items():
                    logger.warning("%s: %s %s", name, field, text)

    def go_to_end(self) -> None:
        """Set scheduled values to their last value, so that evaluations can be compared with each other."""
        for term, objective in zip(self, self.objectives, strict=True):
            term.objective = objective.at_end()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context manager: let the terms hook into one forward pass of both models."""
        with ExitStack() as stack:
            for term in self:
                stack.enter_context(term.watching())
            yield

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Context manager: compute attention as plain matrix products if a term needs that; undo it at the end.

        Fused kernels return no attention maps, and can be differentiated only once. It is undone so that the model is
        measured and saved with its own attention.
        """
        changed = []
        for model in self._eager:
            if (before := model.config._attn_implementation) != "eager":
                self._warn(model)
                model.set_attn_implementation("eager")
                changed.append((model, before))
        try:
            yield
        finally:
            for model, before in changed:
                model.set_attn_implementation(before)

    def _warn(self, model: Any) -> None:
        if not self._warned:
            logger.warning(
                "%s computes attention with '%s', and an objective needs 'eager': it is used for this training. It is "
                "slower, and its memory grows with the square of the length",
                *(type(model).__name__, model.config._attn_implementation),
            )
        self._warned = True

    @property
    def needs_logits(self) -> bool:
        """Whether an objective needs all logits at once, so that they cannot be computed in chunks."""
        return any(
            needs.whole_batch or (needs.rows and not _goes_by_rows(term))
            for term, needs in zip(self, self.needs, strict=True)
        )

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which they soften logits at present; 1 among them, at which likeliest classes are compared."""
        return temperatures_of(self.row_objectives.values())

    @property
    def row_objectives(self) -> dict[int, RowObjective]:
        """The objectives on rows of logits, by their index."""
        return {index: one for index, term in enumerate(self) if isinstance(one := term.objective, RowObjective)}

    def per_example(
        self, comparison: Comparison, shares: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the sum of every term for every example, `(batch, terms)`, float32 or better, not weighted.

        Args:
            comparison: The outputs of both models on one batch.
            shares: What the loss multiplies each sum by, without its weight, `(terms,)`. If None, sums over `HeadRows`
                have no gradient.
            weights: What the loss multiplies the sum of each example by besides, `(batch, terms)`; None for 1.

        Raises:
            ValueError: An objective returned a tensor of another shape, such as a mean, which would silently be divided
                once more.
        """
        columns = []
        examples = comparison.rows.examples
        chunked: dict[int, Tensor] = {}
        if isinstance(comparison.rows, HeadRows):
            chunked = self._sums_in_chunks(comparison.rows, shares, weights)
        for index, term in enumerate(self):
            if index in chunked:
                sums = chunked[index]
            else:
                with guarded(term.objective):
                    sums = term(comparison)
                check_result(
                    *(term.objective, sums, (examples,), None),
                    f"per_example must return the sum of each of the {examples} examples",
                )
            columns.append(upcast(sums))
        return torch.stack(columns, -1)

    def _sums_in_chunks(self, rows: HeadRows, shares: Tensor | None, given: Tensor | None) -> dict[int, Tensor]:
        """Return the sums of all objectives on logits by their index, computed together for a few rows at a time."""
        places = list(self.row_objectives)
        coefficients = None
        if shares is not None:
            weights = self.weights
            coefficients = torch.stack([shares[place] * weights[place] for place in places]) if places else shares[:0]
            if given is not None and places:
                coefficients = coefficients * torch.stack([given[:, place] for place in places], -1).to(coefficients)
        sums = rows.sums_in_chunks([*self.row_objectives.values()], coefficients)
        return dict(zip(places, sums.unbind(-1), strict=True))

    @property
    def undecided(self) -> list[Term]:
        """The terms that need to see a few batches before training."""
        return [term for term in self if term.needs_data]

    def settle(
        self, batches: Iterable[Mapping[str, Any]], compare: Callable[[Mapping[str, Any]], Comparison]
    ) -> Iterator[str]:
        """Show batches to the undecided terms, and yield a line about what each has chosen.

        Args:
            batches: A few batches.
            compare: Runs both models on a batch.
        """
        for batch in batches:
            with torch.no_grad(), self.eager_attention():
                with self.watching():
                    comparison = compare(batch)
                for term in self.undecided:
                    term.observe(comparison)
        for term in self.undecided:
            if text := term.settle():
                yield text


def _prepared(objective: Objective, student: nn.Module, teacher: nn.Module | None) -> Term:
    with guarded(objective):
        return objective.prepare(student, teacher)


def _goes_by_rows(term: Term) -> bool:
    """Return whether a term only sums the values of single rows, so that they can be computed in chunks."""
    objective = term.objective
    plain = isinstance(objective, RowObjective) and type(objective).per_example is RowObjective.per_example
    return plain and type(term).forward is Term.forward
