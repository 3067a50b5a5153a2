"""Trains or loads the teachers of an ensemble: each with another seed, on other rows, or on data of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_distill.teachers.base import FineTune, FineTuning, Teacher, under
from hf_distill.teachers.row_choice import Choice, bag, not_held_out, together

if TYPE_CHECKING:
    from hf_distill.models.loading import Head
    from hf_distill.tasks.base import View


@dataclass(frozen=True)
class Training:
    """How the teachers are trained that the run trains.

    Attributes:
        fine_tune: Trains a model on the run's data.
        several: Whether several are trained of one entry, so that each needs a seed of its own.
        bags: Whether each is trained on a bootstrap sample of the labelled rows.
        holding_out: Whether a tenth of the labelled rows trains none of them.
        views: The data as each reads it, if they do not read the same.
        names: Number or name of each.
    """

    fine_tune: FineTune
    several: bool = False
    bags: bool = False
    holding_out: bool = False
    views: Sequence[View] = ()
    names: Sequence[str] = ()

    def of(self, seed: int, index: int) -> FineTune:
        """Return what trains one of the teachers.

        Args:
            seed: Seed of the run.
            index: Number of the teacher, from 0.
        """
        choices: list[Choice] = [not_held_out] if self.holding_out else []
        choices += [bag(seed + index)] if self.bags else []

        def train(model: Any, how: FineTuning) -> Any:
            training = dict(how.training)
            if self.several:
                training["seed"] = int(training.get("seed", seed)) + index
            rows = [*([how.rows] if how.rows else []), *choices]
            which = self.names[index] if self.names else str(index + 1)
            how = replace(how, training=training, rows=together(rows) if rows else None, which=which)
            return self.fine_tune(model, replace(how, view=self.views[index]) if self.views else how)

        return train


def load_each(entries: Sequence[tuple[str, Teacher]], heads: Sequence[Head], training: Training) -> list[Any]:
    """Return the teachers, each loaded or trained.

    Args:
        entries: Key path and entry of each.
        heads: The head of each.
        training: How those are trained that the run trains.
    """
    seed, models = torch.initial_seed(), []
    for index, (path, one) in enumerate(entries):
        # Each teacher gets its own new head: the same one whether the teachers before it were trained or loaded.
        torch.manual_seed(seed + index)
        with under(path):
            models.append(one.load(heads[index], training.of(seed, index)))
    return models
