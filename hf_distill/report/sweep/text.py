"""The table of a sweep as text, and the sentences about its best setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.formatting import count, counted
from hf_distill.report.runs.grounds import first_difference, grounds, hint
from hf_distill.report.sweep.results import ScoredSetting, Sweep, short_keys
from hf_distill.report.text import NOTHING, metric_title, metric_value, milliseconds, signed, unsigned

if TYPE_CHECKING:
    from hf_distill.report.results import Results
    from hf_distill.report.sweep.results import SettingRun

# Settings that are named in a sentence.
NAMED = 3


@dataclass(frozen=True)
class SettingRow:
    """A line of the table.

    Attributes:
        cells: Its texts, one for each title.
        best: Whether it is the best setting.
        close: Whether it could be as good as the best.
    """

    cells: tuple[str, ...]
    best: bool = False
    close: bool = False


def titles(sweep: Sweep) -> list[str]:
    """Return the titles of the columns."""
    several = any(one.spread is not None for one in sweep.ranked)
    spread = ["std over seeds"] if several else []
    twice = any(one.baseline is not None for one in sweep.ranked)
    baseline = ["without teacher", "gain"] if twice else []
    return [
        *short_keys(sweep.keys).values(),
        metric_title(sweep.headline) or "student",
        *spread,
        "below the best",
        "teacher",
        *baseline,
        "size",
        "step",
    ]


def rows(sweep: Sweep) -> list[SettingRow]:
    """Return the lines of the table, the best first, then the settings without a result."""
    columns = titles(sweep)
    found = [_row(sweep, one, columns) for one in sweep.ranked]
    scored = {one.trial.name for one in sweep.ranked}
    for trial in sweep.trials:
        if trial.name not in scored:
            cells = [*_values(sweep, trial), _state(trial)]
            found.append(SettingRow((*cells, *[""] * (len(columns) - len(cells)))))
    return found


def _state(trial: SettingRun) -> str:
    return "no value" if trial.state == "finished" else trial.state


def _values(sweep: Sweep, trial: SettingRun) -> list[str]:
    return [shown(trial.values[key]) for key in sweep.keys]


def _row(sweep: Sweep, one: ScoredSetting, columns: list[str]) -> SettingRow:
    report, metric = one.report, one.report.metric
    best = one is sweep.best
    against = sweep.against_best.get(one.trial.name)
    difference = NOTHING
    if against is not None:
        difference = _with_noise(unsigned(report, abs(against.difference)), report, against.noise)
    cells = {
        metric_title(sweep.headline): metric_value(report, metric, one.value),
        "std over seeds": NOTHING if one.spread is None else _bare(unsigned(report, one.spread)),
        "below the best": difference,
        "teacher": metric_value(report, metric, one.teacher),
        "without teacher": metric_value(report, metric, one.baseline),
        "gain": _gain(one),
        "size": NOTHING if report.student.parameters is None else count(report.student.parameters),
        "step": NOTHING if one.step_seconds is None else milliseconds(1000 * one.step_seconds),
    }
    texts = [*_values(sweep, one.trial), *(cells[title] for title in columns[len(sweep.keys) :])]
    return SettingRow(tuple(texts), best, against is not None and against.within_noise is not False)


def _gain(one: ScoredSetting) -> str:
    report = one.report
    if report.gain is None:
        return NOTHING
    return _with_noise(signed(report, report.gain), report, report.noise)


def _with_noise(text: str, report: Results, noise: float | None) -> str:
    return _bare(text) + ("" if noise is None else f" ± {_bare(unsigned(report, noise))}")


def _bare(text: str) -> str:
    """Return a difference without its unit, which would make every column wider."""
    return text.removesuffix(" points")


def shown(value: Any) -> str:
    """Return a value of a setting for the table.

    >>> shown(0.0001), shown([{"name": "kl", "weight": 0.5}, "hidden"]), shown([0, 2, 5]), shown(None)
    ('0.0001', 'kl (weight 0.5), hidden', '0, 2, 5', 'null')
    """
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {shown(item)}" for key, item in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name} ({rest})" if name and rest else name or rest
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "[]"
    return value if isinstance(value, str) else json.dumps(value)


def in_words(values: Mapping[str, Any]) -> str:
    """Return the values of a setting in words.

    >>> in_words({"objectives.0.temperature": 2, "training.learning_rate": 1e-4})
    'temperature 2, learning_rate 0.0001'
    """
    names = short_keys(values)
    return ", ".join(f"{names[key]} {shown(value)}" for key, value in values.items())


def verdict(sweep: Sweep) -> list[str]:
    """Return the sentences about a sweep: what is best, how certain that is, and what the figures do not say."""
    return [*_best(sweep), *_problems(sweep)]


def _best(sweep: Sweep) -> Iterator[str]:
    best = sweep.best
    if not sweep.is_comparable:
        what = first_difference([grounds(one.report) for one in sweep.ranked])
        rows_ = " To vary the train rows, name rows of their own for the evaluation: data.splits.eval."
        yield (
            f"Which setting is best is not said: their {what} differ{hint(what)}, so that their figures cannot be "
            f"compared.{rows_ if what == 'eval rows' else ''}"
        )
    elif best is None:
        yield "No setting has a result yet."
    if best is None:
        return
    report, name = best.report, metric_title(best.report.metric)
    seeds = f", mean of {len(best.values)} seeds" if len(best.values) > 1 else ", one seed"
    value = metric_value(report, report.metric, best.value)
    among = f"Best of {counted(len(sweep.ranked), 'setting')}" if len(sweep.ranked) > 1 else "The only setting so far"
    yield f"{among}: {in_words(best.trial.values)} ({name} {value}{seeds})."
    if len(sweep.ranked) > 1:
        yield _certainty(sweep, best)
        rows_ = f"the {counted(report.eval_rows, 'eval row')}" if report.eval_rows else "the eval rows"
        yield (
            f"It was chosen on {rows_}, so that its {name} there is rather better than on other rows. For a figure "
            "that was not chosen, run it on rows that this sweep has not seen (data.splits.eval, and a "
            "training.output_dir of its own)."
        )


def _certainty(sweep: Sweep, best: ScoredSetting) -> str:
    others = sweep.against_best
    close, unknown = sweep.within_noise, [name for name, one in others.items() if one.within_noise is None]
    more = "" if best.spread is not None else " Only one seed was trained: --seeds 3 shows the spread over seeds."
    if sweep.is_certain:
        return f"It is ahead of each other setting by more than the 95 % interval of their difference.{more}"
    if not close:
        return f"Whether it is really better than the others is not known.{more or ' They have the same values.'}"
    by_name = {one.trial.name: one.trial for one in sweep.ranked}
    told = "; ".join(in_words(by_name[name].values) for name in close[:NAMED])
    rest = f"; and {len(close) - NAMED} more" if len(close) > NAMED else ""
    doubt = f" Of {counted(len(unknown), 'other')} it is not known." if unknown else ""
    many = f"all {len(others)} others" if len(close) == len(others) else f"{len(close)} of the {len(others)} others"
    which = "another setting is" if len(close) == 1 else f"{many} are"
    return f"That it is the best is not certain: {which} within noise of it ({told}{rest}).{doubt}{more}"


def _problems(sweep: Sweep) -> Iterator[str]:
    for trial in sweep.failed:
        yield f"Failed: {in_words(trial.values)}: {trial.error}"
    if waiting := sum(one.state in ("waiting", "running") for one in sweep.trials):
        yield f"Not run to the end: {counted(waiting, 'setting')}."
    without = [one for one in sweep.trials if one.report is not None and one.name not in _scored(sweep)]
    if without:
        yield f"Finished without {sweep.headline or 'a value'}: {counted(len(without), 'setting')}."


def _scored(sweep: Sweep) -> set[str]:
    return {one.trial.name for one in sweep.ranked}
