"""Write the verdict of a report: sentences on whether distillation helped, how certain that is, and what got worse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_distill.formatting import counted
from hf_distill.metrics.table import AGREEMENT
from hf_distill.models.training_hooks import IN_SHORT
from hf_distill.report.group_text import for_whom_sentence
from hf_distill.report.lineage import against_first, is_long
from hf_distill.report.results import NORMAL_95, NOTHING, ModelResult, SeedResult
from hf_distill.report.text import metric_title, metric_value, percent, signed, unsigned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_distill.report.for_whom import Kind
    from hf_distill.report.results import Results

LINES = 4
# Smaller differences of expected calibration errors could come from the choice of bins.
CALIBRATION = 0.01


def verdict(report: Results) -> list[str]:
    """Return one to four sentences, the most important first."""
    first = _quality(report) + _about_student(report) + _members(report) + _first(report) + _together(report)
    lines = [first, _direct(report), _gain(report)]
    lines += [*_for_whom(report, "group"), *_cautions(report)]
    return [line for line in lines if line][:LINES]


def _quality(report: Results) -> str:
    teacher, student = report.headline("teacher"), report.headline("student")
    if teacher is None or student is None or report.metric == AGREEMENT:
        return f"{_without_metric(report)} {_size_and_speed(report)}".strip()
    values = [metric_value(report, report.metric, value).removesuffix(" %") for value in (student, teacher)]
    kept, name = report.retention, metric_title(report.metric)
    if report.is_chance("teacher"):
        start = f"The teacher is no better than a trivial guess: {_against_chance(report, 'teacher')}."
        nothing = f"By this metric there was nothing to learn from it: the student's {name} is {values[0]}."
        return " ".join((start, nothing, _size_and_speed(report))).strip() + _other_weights(report)
    if kept is None or kept <= 0:
        start = f"The student's {name} is {values[0]} against the teacher's {values[1]}"
    elif not report.greater_is_better:
        change = f"{abs(1 / kept - 1) * 100:.1f} % {'more' if kept < 1 else 'less'}" if kept != 1 else "the same"
        if kept < 0.5:  # a perplexity may be any number of times the teacher's
            change = f"{_times(1 / kept)} times as much"
        start = f"The student's {name} is {values[0]} against the teacher's {values[1]} ({change})"
    elif kept > 1:
        doubt = ", not significant" if not _apart(report, "student", "teacher") else ""
        start = f"The student's {name} is above the teacher's ({values[0]} against {values[1]}{doubt})"
    else:
        start = f"The student kept {percent(kept)} of the teacher's {name} ({values[0]} of {values[1]})"
    return f"{start}{_size_and_speed(report, sentence=False)}{_other_weights(report)}{_over_seeds(report)}"


def _about_student(report: Results) -> str:
    """Return the sentence that the student's entry tells in short; "" if there is none."""
    facts = report.settings.get("student")
    told = facts.get(IN_SHORT, "") if isinstance(facts, dict) else ""
    return f" {told}" if told else ""


def _first(report: Results) -> str:
    """Return the sentence that compares the student with the first teacher of its lineage; "" if that is its own."""
    against = against_first(report) if is_long(report) else None
    if against is None or (kept := against.retention) is None:
        return ""
    both = [against.headline(one) for one in ("student", "teacher")]
    values = [metric_value(report, report.metric, one).removesuffix(" %") for one in both]
    ratio, name = against.compression, report.lineage[0].name
    smaller = f", with {_times(ratio)} times fewer parameters" if ratio is not None and ratio > 1.005 else ""
    if report.greater_is_better and kept <= 1:
        return f" Of the first teacher, {name}, it kept {percent(kept)} ({values[0]} of {values[1]}){smaller}."
    return f" Against the first teacher, {name}: {metric_title(report.metric)} {values[0]} to {values[1]}{smaller}."


def _together(report: Results) -> str:
    """Return the sentence about the mean of all generations; "" if it was not evaluated."""
    value = report.together.get(report.metric)
    if value is None:
        return ""
    return f" The mean of all generations has {metric_value(report, report.metric, value).removesuffix(' %')}."


def _direct(report: Results) -> str:
    """Return the sentence about the same student, taught by the first teacher of a chain; "" if there is none."""
    if not report.direct:
        return ""
    own = report.seeds or (SeedResult(report.direct[0].seed, report.student.metrics),)
    pairs = tuple(
        SeedResult(one.seed, one.student, other.student) for one, other in zip(own, report.direct, strict=True)
    )
    other = ModelResult(report.direct[0].student, None, None)
    paired = replace(report, baseline=other, seeds=pairs, gain_error=report.direct_error, best={})
    gain, noise, name = paired.gain, paired.noise, metric_title(report.metric)
    if gain is None:
        return ""
    if noise is None and not any(abs(one) > NOTHING for one in paired.gains):
        same = f"the same student taught by the first teacher directly has the same {name} {_equal(report, len(pairs))}"
        return f"No effect of the chain was measured: {same}."
    facts = f"{signed(report, gain)} {name} compared with the same student taught by the first teacher directly"
    facts = f"{facts} ({_facts(paired)})"
    if noise is None:
        return f"The chain's effect: {facts}. The uncertainty of this difference is not known."
    if abs(gain) <= noise:
        return f"The chain's effect is not significant: {facts}."
    return f"The chain {'helped' if (gain > 0) == report.greater_is_better else 'hurt'}: {facts}."


def not_compared(report: Results) -> Mapping[str, str]:
    """Return what the report does not compare -> why: comparisons that would say nothing, or are refused."""
    found: Mapping[str, str] = report.settings.get("not_compared", {})
    return found


def _members(report: Results) -> str:
    """Return the sentence about the best of several teachers; "" for a single one."""
    facts = report.settings.get("teacher")
    scores: dict[str, float] = facts.get("members", {}) if isinstance(facts, dict) else {}
    together = report.headline("teacher")
    if not scores or together is None:
        return ""
    name = (max if report.greater_is_better else min)(scores, key=scores.__getitem__)
    values = [metric_value(report, report.metric, one).removesuffix(" %") for one in (scores[name], together)]
    shown = {metric_value(report, report.metric, one).removesuffix(" %") for one in scores.values()}
    if len(shown) == 1:
        return "" if shown == {values[1]} else f" Each of the {len(scores)} teachers alone has {values[0]}."
    return f" Of the {len(scores)} teachers the best alone is {name}, with {values[0]}; together they have {values[1]}."


def _other_weights(report: Results) -> str:
    """Return the sentence about different types of weights in teacher and student; "" if they are the same."""
    theirs, ours = report.teacher.weights, report.student.weights
    return f" The teacher was measured in {theirs}, the student in {ours}." if theirs and theirs != ours else ""


def _against_chance(report: Results, model: str) -> str:
    """Return `its accuracy is 50.0 against 51.2 for always 'no'`."""
    chance, value = report.chance, report.headline(model)
    assert chance is not None
    values = [metric_value(report, report.metric, one).removesuffix(" %") for one in (value, chance.value)]
    better = value is not None and (value > chance.value if report.greater_is_better else value < chance.value)
    noise = ", not significantly better" if better else ""
    return f"its {metric_title(report.metric)} is {values[0]} against {values[1]} for {chance.answer}{noise}"


def _over_seeds(report: Results) -> str:
    # The first seed, whose student is saved, may have been lucky.
    values = [seed.student.get(report.metric) for seed in report.seeds]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return ""
    average = metric_value(report, report.metric, sum(known) / len(known))
    return f" Over {len(known)} seeds it is {average.removesuffix(' %')} on average."


def _apart(report: Results, one: str, other: str) -> bool:
    """Return whether two models differ by more than the sampling error of the eval split, if that is known."""
    values, error = (report.headline(one), report.headline(other)), report.binomial_error(one, other)
    if values[0] is None or values[1] is None:
        return False
    return abs(values[0] - values[1]) > NORMAL_95 * (error or 0.0)


def _without_metric(report: Results) -> str:
    rows = f"of {counted(report.eval_rows, 'eval row')}" if report.eval_rows else "of the eval rows"
    same = f"Student and teacher predict the same on {percent(report.agreement)} {rows}"
    if report.metric == AGREEMENT and report.agreement is not None:
        return f"{same}; without labels in the eval split it is not known which of them is right."
    agree = "" if report.agreement is None else f" {same}."
    name = metric_title(report.metric)
    if not (reasons := _undefined(report)):
        return f"No {name} was measured: what the student lost is not known.{agree}"
    return (
        f"What the student lost is not known: {name} is not defined here ({'; '.join(reasons)}). Name another metric "
        f"first in evaluation.metrics, or evaluate on other rows.{agree}"
    )


def _undefined(report: Results) -> list[str]:
    """Return why the headline metric has no value, each reason once."""
    found = [model.undefined.get(report.metric, "") for model in report.models.values()]
    return list(dict.fromkeys(filter(None, found)))


def _size_and_speed(report: Results, *, sentence: bool = True) -> str:
    """Return the student's size and speed: improvements in one clause, each of the others in a sentence."""
    better, worse = [], []
    if "size and speed" in not_compared(report):
        return "" if sentence else "."
    ratio, whose = report.compression, _the_teacher(report)
    if ratio is not None:
        if ratio > 1.005:
            better.append(f"{_times(ratio)} times fewer parameters")
        elif ratio < 0.995:
            worse.append(f"It is larger than {whose}: {_times(1 / ratio)} times the parameters.")
        else:
            worse.append(f"It is not smaller than {whose}.")
    speed = report.speedup
    if speed is not None:
        # A few percent may change from one measurement to the next.
        if speed > 1.05:
            better.append(f"{_times(speed)} times the speed at batch 1")
        elif speed < 0.95:
            worse.append(f"It is slower: {_times(1 / speed)} times the teacher's latency at batch 1.")
        else:
            worse.append("It is not faster at batch 1.")
    gained = " and ".join(better)
    if sentence:
        start = f"The student has {gained}." if gained else ""
        if not gained and worse:
            worse[0] = worse[0].replace("It", "The student", 1)
    else:
        start = f" with {gained}." if gained else "."
    return " ".join(part for part in (start, *worse) if part)


def _the_teacher(report: Results) -> str:
    """Return `the teacher`; where the lineage has several, with its name."""
    return f"its own teacher, {report.lineage[-2].name}" if is_long(report) else "the teacher"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.1 else f"{ratio:.1f}"


def _gain(report: Results) -> str:
    gain = report.gain
    if gain is None:
        if report.baseline is None and (why := not_compared(report).get("training without the teacher")):
            return f"Whether the teacher helped is not known: the same student cannot be trained without it, as {why}."
        if report.baseline is None:
            return (
                "Whether the teacher helped is not known: the same student was not trained without it "
                "(report: {baseline: true} does that)."
            )
        name = metric_title(report.metric)
        missing = f"{name} is not defined here" if _undefined(report) else f"there is no {name} to compare"
        return f"Whether the teacher helped is not known: {missing}."
    if report.metric == AGREEMENT:
        return (
            f"Agreement with the teacher: {signed(report, gain)} compared with the same student trained without it; "
            "without labels it is not known whether that made the student better."
        )
    helped = gain > 0 if report.greater_is_better else gain < 0
    noise = report.noise
    against = f"{signed(report, gain)} {metric_title(report.metric)} compared with the same student trained without it"
    facts = f"({_facts(report)})"
    if noise is None and not any(abs(one) > NOTHING for one in report.gains):
        return _no_effect(report)
    best = _at_its_best(report)
    if helped and best and not _helps_at_best(report):
        return f"This run does not show that the teacher helped: {against} {facts}, but {best}."
    after = f" It is {best}." if best else ""
    if noise is None:
        start = "The teacher seems to have helped" if helped else "The teacher did not help"
        return f"{start}: {against} {facts}.{after} The uncertainty of this difference is not known."
    if abs(gain) <= noise:
        doubt = "This run does not show that it helped."
        return f"The teacher's effect is not significant: {against} {facts}.{after} {doubt}"
    if len(report.gains) == 1:
        after += " Only one seed was trained."  # the interval does not include variation over seeds
    return f"The teacher {'helped' if helped else 'hurt'}: {against} {facts}.{after}"


def _at_its_best(report: Results) -> str:
    """Return the gain over the baseline's best evaluation as text; "" if the baseline was best at its end."""
    over = report.gain_over_best
    if over is None or report.gain is None or abs(over - report.gain) <= NOTHING:
        return ""
    where = f"mean of {len(report.gains)} seeds, each at its best"
    if len(report.gains) == 1:
        best = report.best["baseline"]
        value = metric_value(report, report.metric, best.value).removesuffix(" %")
        where = f"{value} at step {best.step:,} of {best.steps:,}"
    return f"{signed(report, over)} compared with that student's best evaluation during training ({where})"


def _helps_at_best(report: Results) -> bool:
    if report.noise is not None:
        return report.shows_help
    over = report.gain_over_best or 0.0
    return over > 0 if report.greater_is_better else over < 0


def _no_effect(report: Results) -> str:
    """Return the sentence for equal scores of both students; an interval of width 0 would claim too much."""
    same = f"the same student trained without it has the same {metric_title(report.metric)}"
    facts = _equal(report, len(report.gains))
    return f"No effect of the teacher was measured: {same} {facts}. This run does not show that it helped."


def _equal(report: Results, seeds: int) -> str:
    """Return `(90.0, one seed, 50 eval rows)`: what two students have in common whose scores are equal."""
    value = metric_value(report, report.metric, report.headline("student")).removesuffix(" %")
    facts = f"in each of {seeds} seeds" if seeds > 1 else f"{value}, one seed"
    rows = f", {counted(report.eval_rows, 'eval row')}" if report.eval_rows else ""
    return f"({facts}{rows})"


def _facts(report: Results) -> str:
    noise, seeds = report.noise, len(report.gains)
    interval = f"; 95 % interval ± {unsigned(report, noise)}" if noise is not None else ""
    if report.gain_std is not None:
        return f"mean of {seeds} seeds, standard deviation {unsigned(report, report.gain_std)}{interval}"
    values = [
        metric_value(report, report.metric, report.headline(model)).removesuffix(" %")
        for model in ("student", "baseline")
    ]
    size = f" from {counted(report.eval_rows, 'eval row')}" if interval and report.eval_rows else ""
    return f"{values[0]} against {values[1]}, one seed{interval}{size}"


def _for_whom(report: Results, kind: Kind) -> list[str]:
    return [for_whom_sentence(report, one) for one in report.for_whom if one.kind == kind]


def _seeds_without(report: Results) -> list[str]:
    """Return a line for the seeds that the means leave out, as their training gave no finite metric."""
    found = {
        seed.seed: [one.get(report.metric) for one in (seed.student, seed.baseline) if one] for seed in report.seeds
    }
    lost = [str(seed) for seed, values in found.items() if any(one is None or not math.isfinite(one) for one in values)]
    if not lost or len(lost) == len(found):
        return []
    has = f"Seed {lost[0]} has" if len(lost) == 1 else f"Seeds {', '.join(lost)} have"
    left = "is" if len(lost) == 1 else "are"
    return [f"{has} no finite {metric_title(report.metric)} and {left} left out of every mean: training may diverge."]


def _cautions(report: Results) -> list[str]:
    lines = [
        f"{steps} steps of the {training} were skipped, as a loss or gradient was not finite (on_nan)."
        for training, steps in report.settings.get("skipped_steps", {}).items()
    ]
    lines += _seeds_without(report)
    if report.is_chance("student") and not report.is_chance("teacher"):
        lines.append(f"The student itself is no better than a trivial guess: {_against_chance(report, 'student')}.")
    teacher, baseline = report.headline("teacher"), report.headline("baseline")
    if teacher is not None and baseline is not None:
        ahead = baseline > teacher if report.greater_is_better else baseline < teacher
        if ahead and _apart(report, "teacher", "baseline"):
            values = [metric_value(report, report.metric, value).removesuffix(" %") for value in (teacher, baseline)]
            lines.append(
                f"The teacher itself is worse than the same student trained without it: {metric_title(report.metric)} "
                f"{values[0]} against {values[1]}."
            )
    lines += _for_whom(report, "class")
    if {"teacher", "student"} <= report.calibration.keys():
        before, after = report.calibration["teacher"], report.calibration["student"]
        if after.ece - before.ece > max(CALIBRATION, NORMAL_95 * after.error):
            lines.append(
                f"Calibration got worse: expected calibration error {percent(after.ece)} against the teacher's "
                f"{percent(before.ece)}."
            )
    return lines
