"""The settings of a sweep as they are found, run and told: finished before, resumed, run now, or failed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.recipe.writer import dump_recipe
from hf_distill.report.sweep.results import SettingRun, State, Sweep
from hf_distill.run.beside import SharedTrainings
from hf_distill.run.directory import RunDirectory, stored_recipe
from hf_distill.run.sweep import record
from hf_distill.run.sweep.planning import Plan, alone
from hf_distill.run.sweep.settings import PlannedSetting, Setting
from hf_distill.run.sweep.sources import sources

if TYPE_CHECKING:
    from hf_distill.report.report import Report

logger = logging.getLogger(__name__)


@dataclass
class Trials:
    """The settings of a sweep, by name, and what has become of them.

    Attributes:
        plan: The sweep as it is asked for.
        earlier: Entries of the record that was found.
        known: Name -> setting, in the order of the table.
    """

    plan: Plan
    earlier: Sequence[Mapping[str, Any]] = ()
    known: dict[str, SettingRun] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        """How many settings a random search ends with; None for a grid."""
        return self.plan.total(one.values for one in self.known.values())

    def find(self) -> None:
        """Look which settings of earlier starts, with the same keys and recipe, are there."""
        for entry in self.earlier:
            setting = Setting(dict(entry["values"]))
            if set(setting.values) != set(self.plan.words.keys) or self.plan.options.restart:
                continue
            try:
                report = finished(self.plan.read(setting), entry)
            except UserError:
                continue
            if report is not None:
                files = str(entry["sources"])
                self.known[setting.name] = SettingRun(setting.name, setting.values, "finished", report, sources=files)
            elif self.plan.draws and self.plan.words.holds(setting.values):
                self.known[setting.name] = _unfinished(setting, entry)

    def add(self, one: PlannedSetting) -> None:
        """Add a setting that is asked for, if it is new.

        Raises:
            UserError: Its directory holds a run of another recipe, or is in use.
        """
        name = one.setting.name
        if not self.plan.options.restart:
            check_place(one)
        if name not in self.known:
            entry: Mapping[str, Any] = next((one for one in self.earlier if one.get("directory") == name), {})
            self.known[name] = _unfinished(one.setting, {} if self.plan.options.restart else entry)

    def sweep(self) -> Sweep:
        """Return the result so far."""
        return Sweep(
            recipe=self.plan.file,
            keys=self.plan.words.keys,
            trials=tuple(self.known.values()),
            metric=self.plan.options.metric,
            command={name: alone(self.plan, one.values) for name, one in self.known.items()},
            drawn=self.plan.draws,
        )

    def note(self, name: str, **changes: Any) -> None:
        """Note what has become of a setting, on the disk too."""
        self.known[name] = replace(self.known[name], **changes)
        self.save()

    def save(self) -> None:
        """Write the record and the page, by the first process."""
        from hf_distill.report.sweep.page import html, to_plain

        if not parallel.is_first_of_all():
            return
        sweep = self.sweep()
        record.write(self.plan.directory, to_plain(sweep), self.earlier)
        if sweep.ranked:
            from hf_distill.files.atomic import write_atomic

            write_atomic(self.plan.directory / record.PAGE, html(sweep))

    def run(self, one: PlannedSetting) -> bool:
        """Run a setting, or resume it; return whether it is finished.

        A mistake that shows only now is noted, and the other settings go on. With several processes it ends the sweep,
        since it may have come up in one of them alone.
        """
        from hf_distill.run.distill import distill_among

        name = one.setting.name
        shared = SharedTrainings(self.plan.directory / record.TEACHERS, self.plan.directory / record.BASELINES)
        self.note(name, state="running", error="", sources=sources(one.recipe))
        try:
            report = distill_among(one.recipe, restart=self.plan.options.restart, shared=shared)
        except _failures() as error:
            line = error.mistakes[0] if isinstance(error, UserError) else f"out of memory: {str(error).splitlines()[0]}"
            self.note(name, state="failed", error=line)
            if parallel.started() > 1:
                raise
            return False
        finally:
            gc.collect()
        self.note(name, state="finished", report=report)
        return True


def _unfinished(setting: Setting, entry: Mapping[str, Any]) -> SettingRun:
    """Return a setting that is to be run, as the record of an earlier start has left it."""
    left: State = "failed" if entry.get("state") == "failed" else "waiting"
    state: State = "running" if entry.get("state") == "running" else left
    return SettingRun(setting.name, setting.values, state, error=str(entry.get("error", "")))


def _failures() -> tuple[type[Exception], ...]:
    import torch

    return UserError, torch.OutOfMemoryError


def check_place(one: PlannedSetting) -> None:
    """Refuse a setting whose directory holds a run of another recipe, or is in use.

    Raises:
        UserError: It is so.
    """
    # Without the shape that a cost asks for it is not known whether a run that is there is of this recipe.
    RunDirectory(one.directory, dump_recipe(one.recipe)).check(restart=one.recipe.student.cost is not None)


def finished(one: PlannedSetting, entry: Mapping[str, Any]) -> Report | None:
    """Return the report of a setting that is finished, of the same recipe in all its sections and the same files.

    Args:
        one: The setting.
        entry: What the record has of it.

    Returns:
        The report; None if the run is not finished, or has to look whether its data and models are the same.

    Raises:
        UserError: Its directory holds a run of another recipe, or is in use.
    """
    from hf_distill.report.report import Report

    check_place(one)
    if entry.get("state") != "finished" or entry.get("sources") != sources(one.recipe):
        return None
    try:
        report = Report.load(one.directory)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stored_recipe(one.directory) is None or _after(report.recipe) != _after(dump_recipe(one.recipe)):
        return None
    return report


def _after(text: str) -> Any:
    """Return the sections of a recipe on which no training depends, so that a directory of a run allows others."""
    from hf_distill.recipe.document import parse

    content = parse(text)[0] or {}
    return content.get("report"), content.get("export")


def in_order(trials: Mapping[str, SettingRun]) -> Iterator[str]:
    """Yield the names of the settings to run: first the one that was interrupted, and last those that have failed."""
    for states in (("running",), ("waiting",), ("failed",)):
        yield from [name for name, one in trials.items() if one.state in states]
