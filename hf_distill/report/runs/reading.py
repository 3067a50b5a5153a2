"""Read finished runs from their directories: no weights are loaded, and PyTorch is not imported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.report.files import REPORT, from_plain
from hf_distill.report.recipe_facts import recipe_of
from hf_distill.report.results import Results

RECIPE = "recipe.yaml"
# How many directories with a report a message names.
NAMED = 3


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A finished run.

    Attributes:
        name: Its name in the tables: as much of the end of its path as tells it from the others.
        report: Its results.
        recipe: Its resolved recipe as plain values; empty if it is not known.
        whole: The same with the value of every key, those that it leaves out too; empty if they are not known.
    """

    name: str
    report: Results
    recipe: Mapping[str, Any]
    whole: Mapping[str, Any] = field(default_factory=dict)


def read_runs(paths: Sequence[str | Path]) -> list[ComparedRun]:
    """Return the runs in some output directories, in their order.

    Args:
        paths: Directories with a `report.json`, or such files.

    Raises:
        UserError: There are fewer than two; one is given twice, has no report or a damaged one. All mistakes at once.
    """
    places = [Path(path).expanduser() for path in paths]
    if len(places) < 2:
        raise UserError("wanted the output directories of at least two finished runs: hf-distill compare DIR DIR ...")
    reports, mistakes = [], []
    for place in places:
        try:
            reports.append(_read(place))
        except UserError as error:
            mistakes.append(error)
    resolved = [place.resolve() for place in places]
    twice = dict.fromkeys(place for place, one in zip(places, resolved, strict=True) if resolved.count(one) > 1)
    if twice:
        mistakes.append(UserError(f"wanted different runs, found the same one twice: {', '.join(map(str, twice))}."))
    if mistakes:
        raise UserError.together(mistakes)
    names = short_names([str(one.parent if one.name == REPORT else one) for one in resolved])
    return [
        ComparedRun(name, report, recipe_of(report.recipe)) for name, report in zip(names, reports, strict=True)
    ]  # fmt: skip


def _read(place: Path) -> Results:
    file = place if place.name == REPORT else place / REPORT
    if not file.is_file():
        raise UserError(f"{place}: wanted the output directory of a finished run, found no {REPORT}.{_instead(place)}")
    try:
        report = from_plain(Results, json.loads(file.read_text(encoding="utf-8")))
        if report.recipe:
            recipe_of(report.recipe)
        elif (beside := file.with_name(RECIPE)).is_file():
            from dataclasses import replace

            report = replace(report, recipe=beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{file}: wanted a report of hf-distill, found something else ({reason}).") from error
    return report


def _instead(place: Path) -> str:
    """Return what the user may have meant by a directory without a report, as the end of a message."""
    if place.is_dir():
        below = sorted({file.parent for pattern in ("*", "*/*") for file in place.glob(f"{pattern}/{REPORT}")})
        if below:
            more = f" ({len(below) - NAMED} more)" if len(below) > NAMED else ""
            return f" Did you mean {', '.join(map(str, below[:NAMED]))}?{more}"
    above = next((one for one in place.absolute().parents if (one / REPORT).is_file()), None)
    if above is not None:
        return f" Did you mean {_as_given(above, place)}?"
    if (place / RECIPE).is_file() or any(place.glob("checkpoint-*")):
        return " The run there is not finished: the same command again resumes it, and writes the report."
    if not place.exists() and place.parent.is_dir():
        beside = [one.name for one in place.parent.iterdir() if (one / REPORT).is_file()]
        if near := get_close_matches(place.name, beside, 1):
            return f" Did you mean {place.parent / near[0]}?"
    return ""


def _as_given(above: Path, place: Path) -> Path:
    """Return an absolute path the way the user wrote the place below it."""
    return next((one for one in place.parents if one.absolute() == above), above)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the last component of each path, with as many before it as tell the paths apart.

    >>> short_names(["/runs/a", "/runs/b"]), short_names(["/one/out", "/two/out"])
    (['a', 'b'], ['one/out', 'two/out'])
    """
    parts = [Path(path).parts for path in paths]
    return list(_unique(parts))


def _unique(parts: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for own in parts:
        counts = range(1, len(own) + 1)
        same = [sum(other[-count:] == own[-count:] for other in parts) for count in counts]
        yield "/".join(own[-next((count for count, n in zip(counts, same, strict=True) if n == 1), len(own)) :])
