"""Find the hidden states of a teacher that objectives read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from hf_distill.cache import hidden_states
from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.layers import States
    from hf_distill.objectives.base import Objective

Configs = tuple["PretrainedConfig", "PretrainedConfig"]


def states_of(objectives: Iterable[Objective], configs: Configs) -> tuple[States, ...]:
    """Return the hidden states of a teacher that objectives read, each layer once.

    Args:
        objectives: The objectives; one that does not fit the models is skipped, as `Objective.check` reports it.
        configs: Configurations of student and teacher.
    """

    def wanted() -> Iterator[States]:
        for objective in objectives:
            with suppress(UserError):
                yield from objective.needs(*configs).states or ()

    return hidden_states.merged(wanted())
