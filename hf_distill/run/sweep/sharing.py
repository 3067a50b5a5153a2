"""Says what the runs of a sweep share: how many of their teachers, targets and baselines are different."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from hf_distill.component import entry, settings
from hf_distill.formatting import counted
from hf_distill.run.sweep.settings import PlannedSetting
from hf_distill.run.training_defaults import fine_tuning
from hf_distill.training.deciding import deciding
from hf_distill.training.labelled import label_objective

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.report.sweep.results import SettingRun
    from hf_distill.run.sweep.planning import Plan


def in_words(plan: Plan, asked: Sequence[PlannedSetting], known: Mapping[str, SettingRun]) -> Iterator[str]:
    """Yield lines about a sweep: its settings, how many are to be run, and what is trained once for several.

    Args:
        plan: The sweep.
        asked: Its settings; of a random search those that are checked.
        known: Those that are there already, and those of a grid.
    """
    done = sum(one.state == "finished" for one in known.values())
    total = plan.total(one.values for one in known.values()) or len(asked)
    yield f"sweep       {counted(total, 'setting')} of {_axes(plan)}, in {plan.directory}"
    left = max(total - done, 0) if plan.draws else sum(known[one.setting.name].report is None for one in asked)
    seeds = plan.base.report.seeds
    each = f", each with {seeds} seeds" if seeds > 1 else ""
    yield f"runs        {left} to run{each}" + (f", {done} finished" if done else "")
    if plan.base.hub.push:
        yield "hub         nothing is pushed; the command of the best setting does that"
    if plan.draws:
        yield "values      drawn when the sweep runs; checked are the ends of each range and each value of a list"
        return
    recipes = [one.recipe for one in asked]
    if plan.base.teacher.fine_tuning:
        yield f"teacher     {_times(_different(map(_teacher, recipes)), 'fine-tuned', len(recipes))}"
    if plan.base.report.baseline:
        yield f"baseline    {_times(_different(map(_baseline, recipes)), 'trained', len(recipes))}"


def _axes(plan: Plan) -> str:
    axes = plan.words.axes
    if not plan.draws:
        sizes = [f"{len(axis.values)} {axis.key}" for axis in axes]
        return " x ".join(sizes) + (f" = {prod(len(axis.values) for axis in axes)}" if len(axes) > 1 else "")
    ranges = [f"{axis.key} {axis.in_words()}" for axis in axes]
    how = "at random" if plan.options.sampler in ("", "random") else f"by {plan.options.sampler}"
    return f"{', '.join(ranges)}, drawn {how}"


def _times(number: int, done: str, runs: int) -> str:
    if number == 1:
        return f"{done} once for all {runs} settings" if runs > 1 else f"{done} once"
    return f"{done} {number} times at most for {counted(runs, 'setting')}, as what they are made of differs"


def _different(things: Iterator[Any]) -> int:
    return len({repr(one) for one in things})


def _teacher(recipe: Recipe) -> Any:
    """Return what decides on the trainings of a recipe's teachers."""
    how = [deciding(fine_tuning(recipe, recipe.training, one)) for one in recipe.teacher.fine_tuning.values()]
    return entry(recipe.teacher), how, _data(recipe), recipe.training.get("seed")


def _baseline(recipe: Recipe) -> Any:
    """Return what decides on the training of a recipe's baseline."""
    every = [objective for stage in recipe.plan for objective in stage.objectives]
    losses = [entry(label_objective([*stage.objectives, *every])) for stage in recipe.plan]
    training = [deciding({**recipe.training, **stage.training}) for stage in recipe.plan]
    teacher = entry(recipe.teacher) if recipe.student.copies_teacher else None
    return entry(recipe.student), losses, training, _data(recipe), teacher


def _data(recipe: Recipe) -> Any:
    return entry(recipe.task), settings(recipe.data), recipe.tokenizer
