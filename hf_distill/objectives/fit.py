"""Does an objective fit the models, the teacher and the data? The run, `--check` and the trainer ask here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.errors import UserError
from hf_distill.models.match import match
from hf_distill.models.needs import Gives, TaskFacts
from hf_distill.objectives.base import Objective
from hf_distill.objectives.guard import guarded

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_fit(
    objective: Objective,
    gives: Gives | None,
    facts: TaskFacts,
    configs: tuple[PretrainedConfig, PretrainedConfig] | None = None,
    key: str = "",
) -> None:
    """Refuse an objective that cannot compare these models, or needs what it is not given.

    Args:
        objective: What is compared.
        gives: What the teacher gives; None where there is none.
        facts: What is learned.
        configs: Of student and teacher; None where they are not known.
        key: Where the objective stands, `objectives[1]`.

    Raises:
        UserError: The first mistake; `key` is the setting.
    """
    with guarded(objective):
        needs = objective.needs()
    match(needs, gives, facts, key)
    if configs is None:
        return
    try:
        with guarded(objective):
            objective.check(*configs)
            needs = objective.needs(*configs)
    except UserError as error:
        raise UserError(*error.mistakes, key=".".join(filter(None, (key, error.key)))) from error
    match(needs, gives, facts, key)
