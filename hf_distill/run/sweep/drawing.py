"""Draws the settings of a random search by Optuna's samplers; what is left to do here is to remember them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.errors import UserError
from hf_distill.run.sweep.axes import Axis, text_of

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("random", "tpe")
# A drawn number is rounded to this many digits, to be read and typed again.
DIGITS = 3
# How often a setting is drawn again that was drawn before.
TRIES = 100


class Past(NamedTuple):
    """A setting that was drawn before.

    Attributes:
        values: Key -> value.
        score: Its metric; None if its run has failed or is not finished.
    """

    values: Mapping[str, Any]
    score: float | None


def check_installed() -> None:
    """Refuse a random search without Optuna.

    Raises:
        UserError: It is not installed.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError(
            "a random search draws its settings by Optuna, which is not installed: pip install 'hf-distill[sweep]'. A "
            "grid (values in lists, no --trials) needs nothing more."
        )


def draw(
    axes: Sequence[Axis], past: Sequence[Past], *, sampler: str, seed: int, greater_is_better: bool
) -> dict[str, Any] | None:
    """Return the next setting; None if there is none that was not drawn before.

    It depends on the arguments alone: each process of a launch draws the same, and so does a sweep that is
    resumed.

    Args:
        axes: The keys and their values.
        past: The settings before.
        sampler: `random`, or `tpe`, which draws more often near the best ones so far.
        seed: Seed of the sweep.
        greater_is_better: Whether a greater score is better.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {axis.key: _distribution(axis) for axis in axes}
    known = {_identity(one.values) for one in past}
    for attempt in range(TRIES):
        own = (seed + len(past)) * TRIES + attempt  # another one for each setting, whether or not it is of one start
        kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        study = optuna.create_study(
            direction="maximize" if greater_is_better else "minimize", sampler=kinds[sampler](seed=own)
        )
        study.add_trials([_trial(axes, distributions, one) for one in past])
        params = study.ask(distributions).params
        found = {axis.key: _value(axis, params[axis.key]) for axis in axes}
        if _identity(found) not in known:
            return found
    return None


def _identity(values: Mapping[str, Any]) -> str:
    return repr(sorted((key, text_of(value)) for key, value in values.items()))


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:  # as text, since Optuna takes no lists and mappings
        return CategoricalDistribution([text_of(value) for value in axis.values])
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "log")


def _value(axis: Axis, drawn: Any) -> Any:
    """Return the value that stands for what was drawn."""
    if axis.values:
        return next(value for value in axis.values if text_of(value) == drawn)
    if axis.kind == "int":
        return int(drawn)
    return min(max(float(f"{drawn:.{DIGITS}g}"), axis.low), axis.high)


def _trial(
    axes: Sequence[Axis], distributions: Mapping[str, optuna.distributions.BaseDistribution], past: Past
) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    params = {axis.key: text_of(past.values[axis.key]) if axis.values else past.values[axis.key] for axis in axes}
    return create_trial(
        state=TrialState.FAIL if past.score is None else TrialState.COMPLETE,
        params=params,
        distributions=dict(distributions),
        value=past.score,
    )
