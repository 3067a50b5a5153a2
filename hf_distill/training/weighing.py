"""How much each example counts in each term of the loss: its own weight, times the weight of its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import parallel
from hf_distill.data.example_columns import GROUP, WEIGHT, group_names
from hf_distill.errors import UserError
from hf_distill.objectives.group_weights import STEP
from hf_distill.rows.base import UNITS
from hf_distill.training.example_batches import AddExamples, classes_of

if TYPE_CHECKING:
    from hf_distill.rows.base import Unit
    from hf_distill.training.terms import Terms

# The weights of `worst_group`, in a checkpoint.
FILE = "group_weights.safetensors"
# How many groups' weights are logged.
LOGGED = 20


class Weighing:
    """The weights of the examples of one training, and what a term's sum is divided by.

    The term `k` of a step is `sum_i a_i g_k(i) S_k(i) / sum_i a_i g_k(i) n_k(i)`: `a_i` is the weight of example `i`,
    `g_k(i)` that of its group in this term, `S_k(i)` its loss sum and `n_k(i)` its number of the term's unit. With
    `worst_group` it is `sum_g q_g * L_g`, where `L_g` is the mean of group `g` in this step, and after the step
    `q_g <- q_g exp(eta * L_g)`, scaled to a sum of 1 (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1). As in the
    authors' code (`LossComputer.compute_robust_loss`, whose step size is 0.01 by default too), `L_g` is 0 for a group
    that the step lacks. They update `q` before the loss of a step, with that of its batch, and not after it.

    Counts of a step are one vector, so that processes add them up at once: of every unit; of every unit, times the
    weight of its example; of every term, with its group's weight too; and of every term with `worst_group`, those of
    each group.

    Args:
        terms: The loss terms.
        train: The train split, whose groups `worst_group` knows; None if nothing is trained.
        device: Where the training runs.
    """

    def __init__(self, terms: Terms, train: Any, device: torch.device) -> None:
        self._terms = terms
        self._exact = torch.float32 if device.type == "mps" else torch.float64
        given = [objective.group_weights for objective in terms.objectives]
        self._worst = [index for index, one in enumerate(given) if one == "worst_group"]
        tables = [one for one in given if isinstance(one, dict)]
        names = {name for table in tables for name in table}
        if self._worst and GROUP in getattr(train, "column_names", ()):
            names |= set(group_names(train))
        self.names = tuple(sorted(names))
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self._classes = classes_of(train)
        # The last is that of a group that is not known, whose number is -1.
        self._tables = [
            torch.tensor([*(one.get(name, 1.0) for name in self.names), 1.0], dtype=self._exact, device=device)
            if isinstance(one, dict)
            else None
            for one in given
        ]
        self._device = device
        self.log_q = torch.zeros(len(self._worst), len(self.names), dtype=self._exact, device=device)
        # Loss sums of the groups in this step, of this process.
        self.sums = torch.zeros_like(self.log_q)
        self._step: Tensor | None = None
        self.begin()

    def begin(self) -> None:
        """Start again: all groups weigh the same."""
        self.log_q = torch.log_softmax(torch.zeros_like(self.log_q), -1)
        self.sums.zero_()
        self._step = None

    def collating(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> AddExamples:
        """Return a collator that adds weights and groups to the batches of another one."""
        return AddExamples(collate, self.numbers, self._classes, self._exact)

    # ---- Counts of a step ----

    def count(self, inputs: Mapping[str, Any], units: Mapping[Unit, Tensor]) -> Tensor:
        """Return the counts of a batch, as the class says.

        Args:
            inputs: The batch.
            units: Number of each unit in each example, `(batch,)` each.
        """
        plain = torch.stack([units[unit].sum() for unit in UNITS]).to(self._exact)
        weights = self._of_examples(inputs)
        if weights is None:
            # Not `plain[self._terms.units]`: the list of indices would have to be copied to the device.
            terms = torch.stack([plain[unit] for unit in self._terms.units])
            return torch.cat((plain, plain, terms, plain.new_zeros(self.log_q.numel())))
        own = self._own(inputs, weights)
        groups = [self._by_group(inputs, own * units[UNITS[self._terms.units[index]]]) for index in self._worst]
        return torch.cat(
            [
                plain,
                torch.stack([(own * units[unit]).sum() for unit in UNITS]),
                torch.stack(
                    [(weights[:, index] * units[UNITS[unit]]).sum() for index, unit in enumerate(self._terms.units)]
                ),
                *groups,
            ]
        )

    def no_counts(self) -> Tensor:
        """Return counts of 0, of which a step's are the sum."""
        size = 2 * len(UNITS) + len(self._terms) + self.log_q.numel()
        return torch.zeros(size, dtype=self._exact, device=self._device)

    def of_terms(self, counts: Tensor) -> Tensor:
        """Return the counts of the terms among the counts of a step, `(terms,)`."""
        return counts[2 * len(UNITS) :][: len(self._terms)]

    def of_unit(self, counts: Tensor, unit: Unit) -> Tensor:
        """Return the count of a unit, times the weight of its example, of a step, `()`."""
        return counts[len(UNITS) + UNITS.index(unit)]

    def divisors(self, counts: Tensor) -> Tensor:
        """Return what the sum of each term of a step is divided by, `(terms,)`: for `worst_group` 1."""
        found = self.of_terms(counts)
        if not self._worst:
            return found
        return torch.stack([torch.ones_like(one) if index in self._worst else one for index, one in enumerate(found)])

    def _of_groups(self, counts: Tensor) -> Tensor:
        return counts[2 * len(UNITS) + len(self._terms) :].reshape(self.log_q.shape).to(self.log_q)

    def start_step(self, counts: Tensor) -> None:
        """Note the counts of a step that begins."""
        self._step = counts

    # ---- Weights of a batch ----

    def of(self, inputs: Mapping[str, Any], counts: Tensor | None = None) -> Tensor | None:
        """Return the weight of each example in each term, `(batch, terms)`; None if all are 1.

        Args:
            inputs: The batch.
            counts: Counts of the step; without them, as in an evaluation, `worst_group` weighs all groups the same.
        """
        weights = self._of_examples(inputs)
        if weights is None or counts is None or not self._worst or GROUP not in inputs:
            return weights
        shares = self.log_q.exp() / torch.where(self._of_groups(counts) > 0, self._of_groups(counts), torch.inf)
        numbers = inputs[GROUP]
        own = self._own(inputs, weights)
        columns = list(weights.unbind(-1))
        for place, index in enumerate(self._worst):
            columns[index] = own * shares[place].to(own)[numbers]
        return torch.stack(columns, -1)

    def of_example(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the weight of each example, `(batch,)`; None if all are 1."""
        weights: Tensor | None = inputs.get(WEIGHT)
        return weights

    def groups(self, inputs: Mapping[str, Any], like: Tensor) -> Tensor:
        """Return the number of each example's group, `(batch,)`; -1 where it is not known."""
        found: Tensor | None = inputs.get(GROUP)
        return torch.full_like(like, -1) if found is None else found.to(like)

    def _of_examples(self, inputs: Mapping[str, Any]) -> Tensor | None:
        grouped = GROUP in inputs and (any(table is not None for table in self._tables) or bool(self._worst))
        if WEIGHT not in inputs and not grouped:
            return None
        own = inputs[WEIGHT] if WEIGHT in inputs else torch.ones_like(inputs[GROUP], dtype=self._exact)
        columns = [
            own if table is None or GROUP not in inputs else own * table.to(own)[inputs[GROUP]]
            for table in self._tables
        ]
        return torch.stack(columns, -1)

    def _own(self, inputs: Mapping[str, Any], weights: Tensor) -> Tensor:
        own = self.of_example(inputs)
        return torch.ones_like(weights[:, 0]) if own is None else own

    # ---- worst_group ----

    def note(self, inputs: Mapping[str, Any], sums: Tensor) -> None:
        """Add the loss sums of a micro-batch, `(batch, terms)`, to those of the groups in this step."""
        if not self._worst or GROUP not in inputs:
            return
        own = self._own(inputs, sums)
        for place, index in enumerate(self._worst):
            self.sums[place] += self._by_group(inputs, own.to(sums) * sums[:, index].detach())

    def _by_group(self, inputs: Mapping[str, Any], values: Tensor) -> Tensor:
        if GROUP not in inputs:
            return torch.zeros(len(self.names), dtype=self._exact, device=self._device)
        # One place more for a group that is not known; index_add takes no negative numbers.
        numbers = inputs[GROUP] % (len(self.names) + 1)
        found = torch.zeros(len(self.names) + 1, dtype=self._exact, device=values.device)
        return found.index_add(0, numbers.to(values.device), values.to(found))[:-1].to(self._device)

    def after_step(self) -> None:
        """Raise the weights of the groups by their losses in the step that ended, the same in all processes."""
        if not self._worst or self._step is None:
            return
        counts = self._of_groups(self._step)
        losses = parallel.summed(self.sums) / torch.where(counts > 0, counts, torch.inf)
        self.log_q = torch.log_softmax(self.log_q + STEP * losses, -1)
        self.sums.zero_()
        self._step = None

    def logged(self) -> dict[str, float]:
        """Return the weights of `worst_group` for the logs, those of the heaviest groups if there are many."""
        found = {}
        for place, index in enumerate(self._worst):
            shares = self.log_q[place].exp().tolist()
            heaviest = sorted(range(len(shares)), key=lambda number: -shares[number])[:LOGGED]
            for number in sorted(heaviest):
                found[f"group_weight/{self._terms.names[index]}/{self.names[number]}"] = shares[number]
        return found

    # ---- Checkpoints ----

    def save(self, directory: Path) -> None:
        """Write the weights of `worst_group` into a checkpoint, if there are any."""
        if self._worst:
            save_file({"log_q": self.log_q.cpu().contiguous()}, directory / FILE)

    def load(self, directory: Path) -> None:
        """Load the weights of `worst_group` from a checkpoint.

        Raises:
            UserError: The file is missing or of other groups: the weights would silently start again.
        """
        if not self._worst:
            return
        found = load_file(directory / FILE)["log_q"] if (directory / FILE).exists() else None
        if found is None or found.shape != self.log_q.shape:
            raise UserError(f"{directory} has no {FILE} with the weights of these groups. Start over.")
        self.log_q = found.to(self.log_q)


class WeighGroups(TrainerCallback):
    """Callback that updates the weights of `worst_group` at the end of each step, before anything is saved.

    Args:
        weighing: Returns the weights of the training.
    """

    def __init__(self, weighing: Callable[[], Weighing]) -> None:
        self._weighing = weighing

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update them."""
        self._weighing().after_step()


def positive(counts: Tensor) -> Tensor:
    """Return counts to divide by: 1 where a count is 0, as the sum is then 0 too."""
    return torch.where(counts > 0, counts, torch.ones_like(counts))


def weighted_mean(sums: Tensor, weights: Tensor | None, counts: Tensor) -> Tensor:
    """Return the sum of each term over some examples, divided by its count, `(terms,)`.

    Args:
        sums: `(batch, terms)`.
        weights: `(batch, terms)`; None for 1.
        counts: Of the step, `(terms,)`.
    """
    if weights is None:
        return sums.sum(0) / counts.to(sums)
    return (sums * (weights / counts).to(sums)).sum(0)  # divided in float64: in float32, a weight of 1e-50 is 0
