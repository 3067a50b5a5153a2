"""The command `hf-distill sweep`: a run for each setting, what they share trained once, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.files.atomic import check_writable
from hf_distill.files.lock import Lock
from hf_distill.formatting import counted
from hf_distill.run.arrival import duration
from hf_distill.run.console import Narrator
from hf_distill.run.sweep import record
from hf_distill.run.sweep.drawing import Past, draw
from hf_distill.run.sweep.planning import Plan, check_each
from hf_distill.run.sweep.settings import PlannedSetting, Setting
from hf_distill.run.sweep.sharing import in_words
from hf_distill.run.sweep.trials import Trials, in_order

if TYPE_CHECKING:
    from hf_distill.report.sweep.results import Sweep


def sweep(plan: Plan) -> Sweep:
    """Run every setting of a sweep that is not finished, and write the table.

    Settings that have failed are in the result too; the same call again tries them again, after the others.

    Raises:
        UserError: There is a mistake in the recipe with some setting; nothing has been loaded.
    """
    record.check_place(plan.directory)
    trials, asked = _look(plan)
    check_each(plan, _unfinished(trials, asked))
    narrator = Narrator(enabled=parallel.is_first_of_machine())
    for line in in_words(plan, asked, trials.known):
        narrator.say(line)
    lock = Lock(plan.directory)
    if parallel.is_first_of_all():
        check_writable(plan.directory)
        lock.take_or_refuse()
    try:
        _run(trials, asked, narrator)
    finally:
        lock.release()
    return trials.sweep()


def check(plan: Plan) -> list[str]:
    """Check every setting of a sweep, loading no weights; return what would be run and what is shared.

    Raises:
        UserError: There are mistakes, all of them with the settings that make them.
    """
    record.check_place(plan.directory)
    trials, asked = _look(plan)
    found = check_each(plan, asked)
    first = [f"  {line}" for line in found[0].splitlines()]
    title = "for example" if plan.draws else "first run  "
    return [*in_words(plan, asked, trials.known), f"{title} {asked[0].setting.in_words()}:", *first]


def saved(directory: Path) -> str:
    """Return the sentence about what an interrupted sweep has finished."""
    states = [one.get("state") for one in record.read(directory) or []]
    return (
        f" Finished in {directory}: {counted(states.count('finished'), 'setting')}. Run the same command again: it "
        "goes on with the one that was interrupted."
    )


def _look(plan: Plan) -> tuple[Trials, list[PlannedSetting]]:
    """Return the settings that are there and that are asked for; of a random search, those that are checked."""
    from hf_distill.run.sweep.planning import each

    trials = Trials(plan, tuple(record.read(plan.directory) or ()))
    trials.find()
    asked: list[PlannedSetting] = each(plan.words, plan.settings(), plan.read)
    if not plan.draws:
        by_name = {one.setting.name: one for one in asked}
        each(plan.words, [one.setting for one in asked], lambda one: trials.add(by_name[one.name]))
    return trials, asked


def _unfinished(trials: Trials, asked: Sequence[PlannedSetting]) -> list[PlannedSetting]:
    return [one for one in asked if (found := trials.known.get(one.setting.name)) is None or found.report is None]


def _run(trials: Trials, asked: Sequence[PlannedSetting], narrator: Narrator) -> None:
    plan, by_name = trials.plan, {one.setting.name: one for one in asked}
    total = trials.total or len(asked)
    trials.save()
    tried: set[str] = set()
    began = time.monotonic()
    while (name := _next(trials, tried)) is not None:
        tried.add(name)
        one = by_name.get(name) or plan.read(Setting(dict(trials.known[name].values)))
        place = list(trials.known).index(name) + 1
        narrator.heading(f"Setting {place} of {max(total, place)}: {one.setting.in_words()}")
        if done := len(tried) - 1:
            left = sum(found.state in ("waiting", "running") for found in trials.known.values())
            left += max(total - len(trials.known), 0)
            narrator.say(f"about {duration((time.monotonic() - began) / done * left)} left in this sweep")
        trials.run(one)


def _next(trials: Trials, tried: set[str]) -> str | None:
    """Return the next setting to run, which may be drawn now; None if all are done."""
    waiting = [name for name in in_order(trials.known) if name not in tried]
    if waiting and trials.known[waiting[0]].state != "failed":
        return waiting[0]
    plan = trials.plan
    if trials.total is not None and len(trials.known) < trials.total:
        scores = {one.trial.name: one.value for one in trials.sweep().ranked}
        past = [Past(one.values, scores.get(name)) for name, one in trials.known.items()]
        found = draw(
            plan.words.axes,
            [one for one in past if plan.words.holds(one.values)],
            sampler=plan.options.sampler or "random",
            seed=int(plan.base.training.get("seed", 42)),
            greater_is_better=trials.sweep().greater_is_better,
        )
        if found is not None:
            setting = Setting(found)
            trials.add(plan.read(setting))
            if trials.known[setting.name].report is None:
                return setting.name
            return _next(trials, tried)
    return waiting[0] if waiting else None
