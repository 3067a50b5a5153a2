"""Reads the recipe of every setting of a sweep, and checks each as `--check` does; all mistakes are told at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.formatting import counted, readable
from hf_distill.metrics.table import AGREEMENT
from hf_distill.run.sweep.axes import Words, read_words, text_of
from hf_distill.run.sweep.drawing import SAMPLERS, check_installed
from hf_distill.run.sweep.settings import PlannedSetting, Setting, ends, grid, planned

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

# Lines that are told at most.
LINES = 20


@dataclass(frozen=True)
class SweepOptions:
    """What the options of the command say.

    Attributes:
        trials: How many settings to draw at random; None for a grid.
        sampler: How they are drawn: `random`, or `tpe`; empty for `random`.
        seeds: How many seeds each setting is trained with; None for the recipe's `report.seeds`.
        metric: Metric by which the settings are sorted; empty for the headline of the reports.
        into: Directory of the sweep; empty for one beside the recipe's `output_dir`.
        restart: Whether finished runs start over.
    """

    trials: int | None = None
    sampler: str = ""
    seeds: int | None = None
    metric: str = ""
    into: str = ""
    restart: bool = False


@dataclass(frozen=True)
class Plan:
    """A sweep as it is asked for.

    Attributes:
        file: The recipe's file.
        words: What the words after it say.
        options: What the options say.
        directory: Directory of the sweep.
        base: The recipe with the first of all values.
    """

    file: str
    words: Words
    options: SweepOptions
    directory: Path
    base: Recipe

    @property
    def draws(self) -> bool:
        """Whether the settings are drawn at random."""
        return self.options.trials is not None

    def settings(self) -> list[Setting]:
        """Return all settings of a grid; of a random search those that are checked."""
        return ends(self.words) if self.draws else grid(self.words)

    def total(self, known: Iterable[Mapping[str, Any]]) -> int | None:
        """Return how many settings a random search ends with, those of earlier starts included; None for a grid.

        Args:
            known: The values of the settings that are there already.
        """
        trials, different = self.options.trials, self.words.number
        if trials is None or different is None:
            return trials
        return min(trials, different + sum(not self.words.holds(values) for values in known))

    def read(self, setting: Setting) -> PlannedSetting:
        """Return a setting with its recipe.

        Raises:
            UserError: The recipe has mistakes.
        """
        return planned(setting, _read(self.file, self.words, setting.values, self.options), self.directory)


def plan(file: str, words: Sequence[str], options: SweepOptions) -> Plan:
    """Return a sweep as it is asked for; nothing is opened but the recipe.

    Raises:
        UserError: There are mistakes in the words or options, or in the recipe with the first of all values.
    """
    found = read_words(words)
    _check(found, options)
    settings = ends(found) if options.trials is not None else grid(found)
    gathered = each(found, settings, lambda one: _read(file, found, one.values, options))
    base = gathered[0]
    if options.metric:
        _check_metric(options.metric)
    place = options.into or f"{str(base.training['output_dir']).rstrip('/')}-sweep"
    return Plan(file, found, options, Path(place).expanduser(), base)


def each(words: Words, settings: Sequence[Setting], look: Callable[[Setting], Any]) -> list[Any]:
    """Return what a function returns for each setting.

    Raises:
        UserError: It raised some; each line once, with the setting that makes it unless all make it.
    """
    found, lines = [], dict[str, list[tuple[Setting, str]]]()
    for setting in settings:
        try:
            found.append(look(setting))
        except UserError as error:
            for line in error.mistakes:
                lines.setdefault(_without_values(line, setting), []).append((setting, line))
    if lines:
        told = [_told(words, made, settings) for made in lines.values()]
        more = [f"and {counted(len(told) - LINES, 'more mistake')}"] if len(told) > LINES else []
        raise UserError(*told[:LINES], *more)
    return found


def _without_values(line: str, setting: Setting) -> str:
    """Return a line without what differs between settings: a mistake in a key is made by each of its values."""
    line = line.replace(setting.name, "")
    for key, value in setting.values.items():
        line = line.replace(f"{key}={text_of(value)}", f"{key}=[..]")
    return line


def _told(words: Words, made: Sequence[tuple[Setting, str]], every: Sequence[Setting]) -> str:
    """Return a mistake as it is told: with the setting, unless all make it, or all with a value that is in the line."""
    setting, line = made[0]
    named = [key for key, value in setting.values.items() if f"{key}={text_of(value)}" in line]
    if len(made) == len(every) or any(_of_value(key, made, every) for key in named):
        return line + _hint(words, line)
    more = f" and {len(made) - 1} other settings" if len(made) > 2 else " and another setting" if len(made) > 1 else ""
    return f"with {setting.in_words()}{more}: {line}"


def _of_value(key: str, made: Sequence[tuple[Setting, str]], every: Sequence[Setting]) -> bool:
    """Return whether all settings make a mistake that have the same values of a key as those that make it."""
    values = {text_of(one.values[key]) for one, _ in made}
    return len(made) == sum(text_of(one.values[key]) in values for one in every)


def _hint(words: Words, line: str) -> str:
    """Return a hint for a list that was meant as one value."""
    if "wanted a list" not in line:
        return ""
    for axis in words.axes:
        if f"{axis.key}=" in line and not any(isinstance(value, list) for value in axis.values):
            whole = f"{axis.key}=[{text_of(list(axis.values))}]"
            return f" In a sweep a list has the values to try; one value that is a list: {whole}"
    return ""


def _read(file: str, words: Words, values: Mapping[str, Any], options: SweepOptions) -> Recipe:
    """Return the recipe with some values.

    Raises:
        UserError: It has mistakes.
    """
    from hf_distill.recipe.paths import check_paths
    from hf_distill.recipe.reader import load_recipe

    overrides = words.overrides(dict(values))
    if options.seeds is not None:
        overrides.append(f"report.seeds={options.seeds}")
    if options.into:
        overrides.append(f"training.output_dir={text_of(options.into)}")
    recipe = load_recipe(file, overrides)
    check_paths(recipe)
    return recipe


def _check(words: Words, options: SweepOptions) -> None:
    """Refuse words and options that do not fit together.

    Raises:
        UserError: They do not; one line for each mistake.
    """
    mistakes = []
    ranges = [axis for axis in words.axes if axis.kind]
    if ranges and options.trials is None:
        mistakes.append(
            f"'{readable(ranges[0].key)}' has a range, from which settings are drawn at random. Say how many: --trials "
            "20. For a grid, list the values: key=[1,2,4]"
        )
    if "training.output_dir" in [key for key, _ in words.given]:
        mistakes.append("training.output_dir: each setting has a directory of its own. Say where they are: --into DIR")
    for name, value in (("--trials", options.trials), ("--seeds", options.seeds)):
        if value is not None and value < 1:
            mistakes.append(f"{name} {value}: wanted a number from 1 on.")
    if options.seeds is not None and "report.seeds" in [key for key, _ in words.given]:
        mistakes.append("--seeds sets report.seeds, which is given too. Leave one of them out.")
    if options.sampler and options.trials is None:
        mistakes.append(f"--sampler {options.sampler} draws settings at random. Say how many: --trials 20")
    if options.sampler not in ("", *SAMPLERS):
        mistakes.append(f"--sampler {readable(options.sampler)}: wanted {' or '.join(SAMPLERS)}.")
    if mistakes:
        raise UserError(*mistakes)
    if options.trials is not None:
        check_installed()


def _check_metric(metric: str) -> None:
    """Refuse a metric that does not exist; whether the runs have it is known when their data is read.

    Raises:
        UserError: It is unknown.
    """
    from hf_distill.metrics.score import check_names

    if metric == AGREEMENT:
        return
    try:
        check_names([metric])
    except UserError as error:
        raise UserError(f"--metric {readable(metric)}: {error.mistakes[0]}") from error


def check_each(of: Plan, settings: Sequence[PlannedSetting]) -> list[str]:
    """Check settings with all that is on this machine, as `--check` does; return what each would do.

    Raises:
        UserError: There are mistakes, all of them.
    """
    from hf_distill.run.dry_run import check

    recipes = {one.setting.name: one.recipe for one in settings}

    def look(setting: Setting) -> str:
        recipe = recipes[setting.name]
        # On a restart, whatever is in its directory will go.
        return check(recipe, claims=not of.options.restart, metric=of.options.metric)

    return each(of.words, [one.setting for one in settings], look)


def alone(of: Plan, values: Mapping[str, Any]) -> str:
    """Return the command that runs one setting by itself."""
    overrides = of.words.overrides(dict(values))
    if of.options.seeds is not None:
        overrides.append(f"report.seeds={of.options.seeds}")
    output = str(of.base.training["output_dir"]).rstrip("/")
    overrides.append(f"training.output_dir={output}-{Setting(dict(values)).name.rpartition('-')[2]}")
    return " ".join(["hf-distill", *map(shlex.quote, [of.file, *overrides])])
