"""The terms of one training: its objectives, made ready for its two models."""

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

# Examples of the train split shown to objectives that choose their layers by the data.
OBSERVED = 64


class Terms(Sequence[Term]):
    """One term an objective, in their order.

    Args:
        objectives: What is compared.
        student: Without wrapper of a distributed training; PEFT's may be there.
        teacher: Likewise; None where there is none.

    Attributes:
        objectives: As given.
        needs: What each of them needs.
        names: Of the objectives, repeated ones numbered: kl, kl_2.
        learned: The terms that have something to train or to keep.
        outputs: Arguments that make a model return what the objectives want besides logits.
        differentiates: Whether one of them does.
        watch: Whether one of them looks into the models with hooks.
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
        self._units = [UNITS.index(objective.unit) for objective in objectives]
        eager = any(needs.eager_attention for needs in self.needs)
        self._eager: tuple[Any, ...] = tuple(models) if eager else ()
        self._warned = False
        self._steps: int | None = None

    @overload
    def __getitem__(self, index: int) -> Term: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Term]: ...
    def __getitem__(self, index: int | slice) -> Term | Sequence[Term]:
        """Return the term of an objective."""
        return self._terms[index]

    def __len__(self) -> int:
        """Return the number of objectives."""
        return len(self._terms)

    @property
    def weights(self) -> list[float]:
        """Present weight of every term."""
        return [number(term.objective.weight) for term in self]

    def go_to(self, step: int, steps: int) -> None:
        """Set what changes during a training to its value after `step` of `steps` optimiser steps."""
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
        """Set it to its last value, so that evaluations can be compared with each other."""
        for term, objective in zip(self, self.objectives, strict=True):
            term.objective = objective.at_end()

    def counts(self, units: Tensor) -> Tensor:
        """Return what the sum of every term is divided by, from the counts of all units in the order of `UNITS`."""
        return torch.stack([units[index] for index in self._units])  # a list of them would be sent to the device first

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the terms follow one forward pass of both models."""
        with ExitStack() as stack:
            for term in self:
                stack.enter_context(term.watching())
            yield

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Have attention computed as plain matrix products where a term needs that, and as before afterwards.

        The fused kernels keep no maps, and differentiate only once. Who measures or saves a model later must find it as
        it was.
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
                "%s computes attention with '%s', which an objective here cannot look into: 'eager' for this training, "
                "which is slower and takes memory with the square of the length",
                *(type(model).__name__, model.config._attn_implementation),
            )
        self._warned = True

    @property
    def needs_logits(self) -> bool:
        """Whether one of them wants all logits at once."""
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
        """Those on logits, by their place."""
        return {index: one for index, term in enumerate(self) if isinstance(one := term.objective, RowObjective)}

    def per_example(self, comparison: Comparison, shares: Tensor | None = None) -> Tensor:
        """Return the sum of every term for every example, `(batch, terms)`, float32 or better.

        Args:
            comparison: Of one batch.
            shares: What the loss multiplies each sum with, apart from its weight, `(terms,)`. Without them sums over
                `HeadRows` have no gradient.

        Raises:
            ValueError: An objective returned something else: a mean would go unnoticed, and be divided once more.
        """
        columns = []
        examples = comparison.rows.examples
        walked: dict[int, Tensor] = {}
        if isinstance(comparison.rows, HeadRows):
            walked = self._walk(comparison.rows, shares)
        for index, term in enumerate(self):
            if index in walked:
                sums = walked[index]
            else:
                with guarded(term.objective):
                    sums = term(comparison)
                check_result(
                    *(term.objective, sums, (examples,), None),
                    f"per_example must return the sum of each of the {examples} examples",
                )
            columns.append(upcast(sums))
        return torch.stack(columns, -1)

    def _walk(self, rows: HeadRows, shares: Tensor | None) -> dict[int, Tensor]:
        """Evaluate all objectives on logits together, a few rows at a time."""
        places = list(self.row_objectives)
        coefficients = None
        if shares is not None:
            weights = self.weights
            coefficients = torch.stack([shares[place] * weights[place] for place in places]) if places else shares[:0]
        sums = rows.walk([*self.row_objectives.values()], coefficients)
        return dict(zip(places, sums.unbind(-1), strict=True))

    @property
    def undecided(self) -> list[Term]:
        """Those that want to see a few batches first."""
        return [term for term in self if term.needs_data]

    def settle(
        self, batches: Iterable[Mapping[str, Any]], compare: Callable[[Mapping[str, Any]], Comparison]
    ) -> Iterator[str]:
        """Show batches to the undecided terms; yield what they decided."""
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
    """Whether a term is nothing but the sums of `RowObjective.rows`, so that rows can come a few at a time."""
    objective = term.objective
    plain = isinstance(objective, RowObjective) and type(objective).per_example is RowObjective.per_example
    return plain and type(term).forward is Term.forward
