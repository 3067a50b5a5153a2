"""Which objectives a cached teacher can serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from hf_distill.cache import hidden_states as kept_states
from hf_distill.errors import UserError
from hf_distill.objectives.base import Objective, RowObjective
from hf_distill.objectives.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.cache.format import Kept
    from hf_distill.models.layers import States

Configs = tuple["PretrainedConfig", "PretrainedConfig"]


def states_of(objectives: Iterable[Objective], configs: Configs) -> tuple[States, ...]:
    """Return which hidden states of a teacher objectives read, each layer once.

    Args:
        objectives: Those that do not fit the models are left out: `Objective.check` tells of them.
        configs: Of student and teacher.
    """

    def wanted() -> Iterator[States]:
        for objective in objectives:
            with suppress(UserError):
                yield from objective.teacher_states(*configs)

    return kept_states.merged(wanted())


def check_objective(objective: Objective, kept: Kept, configs: Configs | None) -> None:
    """Refuse an objective that wants more of the teacher than a cache keeps.

    Args:
        objective: What is compared.
        kept: What is kept.
        configs: Of student and teacher; None where they are not known, and layers cannot be compared.

    Raises:
        UserError: It does; `key` is the setting.
    """
    if not objective.needs_teacher:
        return
    _check_kind(objective)
    if objective.reads == "states" and configs is not None:
        _check_layers(objective, kept, configs)
    if kept.is_sparse and isinstance(objective, RowObjective):
        _check_rows(objective, kept)


def _check_kind(objective: Objective) -> None:
    """Refuse what no cache can serve."""
    taken = objective.outputs - ({"hidden_states"} if objective.reads == "states" else set())
    if objective.reads != "model" and not objective.differentiates and not taken:
        return
    what = "what goes on within its layers"
    if objective.differentiates:
        what = "derivatives of its answers"
    elif "attentions" in objective.outputs:
        what = "its maps of attention"
    raise UserError(
        f"'{objective.name}' looks into the teacher ({what}), and a cached teacher has its answers and its hidden "
        "states, no more. Leave it out, compare hidden states ({name: hidden}), or take the teacher itself."
    )


def _check_layers(objective: Objective, kept: Kept, configs: Configs) -> None:
    lacking = kept_states.missing(kept.states, objective.teacher_states(*configs))
    if not lacking:
        return
    there = ", ".join(str(one.states) for one in kept.states) or "none"
    raise UserError(
        f"'{objective.name}' compares hidden states of layers of the teacher that are not in the cache: "
        f"{', '.join(map(str, lacking))} (there: {there}). Add them to the layers of the cached teacher; left out, "
        "those are kept that objectives name."
    )


def _check_rows(objective: RowObjective, kept: Kept) -> None:
    if not objective.takes_sparse:
        raise UserError(
            f"'{objective.name}' does not work with a cached teacher of this task, or one given as data, of which only "
            f"the likeliest tokens are known: {objective.needs_all_classes}. Leave it out, or take the teacher itself."
        )
    if kept.tail and not objective.takes_samples:
        raise UserError(
            f"'{objective.name}' does not work with tokens that were drawn from the tail: its mean over the draws is "
            "another loss. Wanted kl or soft_cross_entropy, or a cached teacher with tail: 0."
        )
    own = getattr(objective, "temperature", None)
    if isinstance(own, Schedule):
        raise UserError(
            "a cache keeps the teacher's likeliest tokens at one temperature, and this one changes during training. "
            "Wanted: a number.",
            key="temperature",
        )
    if own is not None and own != kept.temperature:
        raise UserError(
            f"{own:g} here, and the cache keeps the teacher's likeliest tokens at temperature {kept.temperature:g}: "
            "they cannot be softened any more. Use one temperature for all.",
            key="temperature",
        )
