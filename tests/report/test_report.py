"""The report: its arithmetic, its file and its verdict."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from reports import model, regression, several_seeds, speed, unlabelled, whole

from hf_distill.metrics.chance import Chance
from hf_distill.report import page as report_html
from hf_distill.report.report import Report
from hf_distill.report.results import ModelResult, SeedResult


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_ratios() -> None:
    """A ratio turned upside down would sell a slower, larger student as a gain."""
    report = whole()
    assert report.retention == pytest.approx(0.831 / 0.852)
    assert report.gain == pytest.approx(0.012)
    assert (report.compression, report.speedup) == (2.0, 2.0)
    assert report.gain_std is None


def test_an_error_is_kept_the_other_way_round() -> None:
    """Retention of an error as student/teacher would call a worse student better than its teacher."""
    report = regression()
    assert report.retention == pytest.approx(0.4 / 0.5)
    assert report.gain == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("teacher", "student", "greater"),
    [(0.0, 0.5, True), (-0.2, 0.5, True), (0.4, 0.0, False), (math.nan, 0.5, True), (0.5, math.nan, True)],
)
def test_retention_is_none_where_it_means_nothing(teacher: float, student: float, greater: bool) -> None:
    """A division by zero at the end of a long run, or `inf` % kept."""
    report = whole(
        teacher=model(2, None, accuracy=teacher), student=model(1, None, accuracy=student), greater_is_better=greater
    )
    assert report.retention is None
    assert report.verdict()
    strict(json.dumps(report.to_dict(), allow_nan=False))


def test_gain_over_seeds() -> None:
    """The gain of the best seed, or a spread that mixes up the pairs, would be noise sold as a result."""
    student, baseline = (0.83, 0.85, 0.81, 0.84), (0.82, 0.82, 0.81, 0.80)
    report = several_seeds(student, baseline, gain_error=None, eval_rows=None)
    differences = np.subtract(student, baseline)
    assert report.gain == pytest.approx(differences.mean())
    assert report.gain_std == pytest.approx(differences.std(ddof=1))
    interval = scipy.stats.t.interval(0.95, 3, differences.mean(), scipy.stats.sem(differences))
    assert report.noise == pytest.approx((interval[1] - interval[0]) / 2, rel=2e-3)


def test_a_seed_without_baseline_is_left_out() -> None:
    """A missing baseline read as 0 would be a gain of 80 points."""
    report = several_seeds((0.83, 0.85, 0.81), (0.82, 0.82, math.nan))
    assert report.gains == pytest.approx((0.01, 0.03))


def test_noise_of_one_seed_is_binomial_where_nothing_better_is_known() -> None:
    """One accurate digit more than the eval split can give is a wrong digit."""
    report = whole(gain_error=None, eval_rows=400)
    variances = [scipy.stats.binom.var(400, p) / 400**2 for p in (0.831, 0.819)]
    assert report.noise == pytest.approx(scipy.stats.norm.ppf(0.975) * math.sqrt(sum(variances)), rel=1e-3)
    assert whole(gain_error=0.01).noise == pytest.approx(0.0196)


def test_noise_of_other_metrics_is_not_guessed() -> None:
    """The binomial formula on an F1 score would be a made-up error bar."""
    assert whole(metric="f1", gain_error=None).noise is None
    assert regression().noise is None


def test_models_without_baseline_or_latency() -> None:
    """A part that was not asked for must be None, not 0."""
    report = whole(baseline=None, teacher=model(2, None, accuracy=0.9))
    assert (report.gain, report.gain_std, report.noise, report.speedup) == (None, None, None, None)


def test_result_of_a_model(tiny_bert: Path) -> None:
    """The size in the report is counted on the model, not typed in."""
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_bert).half()
    result = ModelResult.of(loaded, {"accuracy": 0.5})
    assert result.parameters == loaded.num_parameters()
    assert result.bytes == 2 * result.parameters


# --- the file ---------------------------------------------------------------------------------------------------------


def test_promised_keys(tmp_path: Path) -> None:
    """Scripts that read `report.json` break silently when a key moves."""
    whole().save(tmp_path)
    content = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    promised = {"task", "metric", "teacher", "student", "baseline", "retention", "gain", "agreement", "compression"}
    assert promised | {"speedup"} <= content.keys()
    for name in ("teacher", "student", "baseline"):
        assert {"metrics", "parameters", "bytes", "latency_ms", "throughput"} <= content[name].keys()
    assert content["teacher"]["latency_ms"] == 20.0
    assert content["student"]["throughput"] == pytest.approx(32 / 0.160)
    assert content["gain"] == pytest.approx(0.012)
    assert unlabelled().to_dict()["baseline"] is None


def test_not_a_number_is_null(tmp_path: Path) -> None:
    """`NaN` in a file makes `jq`, browsers and Rust readers refuse all of it."""
    history = {
        "student": [{"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "objective/kl": np.float32(2.0)}]
    }
    report = whole(student=model(1, None, accuracy=math.nan), history=history, settings={"x": np.int64(3)})
    report.save(tmp_path)
    content = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["student"]["metrics"]["accuracy"] is None
    assert content["history"]["student"] == [{"step": 1, "loss": None, "grad_norm": None, "objective/kl": 2.0}]
    assert content["settings"]["x"] == 3


@pytest.mark.parametrize(
    "report",
    [whole(chance=Chance(0.5, 0.01, "always 'no'")), several_seeds((0.8, 0.9), (0.8, 0.8)), regression(), unlabelled()],
)
def test_round_trip(report: Report, tmp_path: Path) -> None:
    """A report shown again must say what the run said."""
    report.save(tmp_path)
    for path in (tmp_path, tmp_path / "report.json"):
        again = Report.load(path)
        assert again.to_dict() == report.to_dict()
        assert again.verdict() == report.verdict()
    assert report_html.html(Report.load(tmp_path)) == (tmp_path / "report.html").read_text(encoding="utf-8")
    # To the byte, as it was written; and with keys of another version, or without the latest ones.
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    again.save(tmp_path)
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    older = {key: value for key, value in json.loads(text).items() if key not in ("best", "chance")} | {"new": 1}
    (tmp_path / "report.json").write_text(json.dumps(older), encoding="utf-8")
    assert Report.load(tmp_path).student.metrics == again.student.metrics


@pytest.mark.parametrize("broken", ["html", "card"])
def test_a_report_is_whole_or_as_it_was(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that fails half-way must not leave this run's page beside the last run's numbers."""
    whole().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(report: Report) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(f"hf_distill.report.report.{broken}", fail)
    with pytest.raises(RuntimeError, match="broken"):
        regression().save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_numbers_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed while it writes must not look finished, not even to one who had a report there before."""
    from hf_distill.report import report as module

    whole().save(tmp_path)
    written: list[str] = []

    def killed(path: Path, content: str) -> None:
        written.append(path.name)
        assert not (tmp_path / "report.json").exists()
        if path.name == "README.md":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        whole().save(tmp_path)
    assert written == ["report.html", "README.md"]
    assert not (tmp_path / "report.json").exists()


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    lines = report.verdict()
    assert 1 <= len(lines) <= 4
    return "\n".join(lines)


def test_a_good_run() -> None:
    """The numbers a reader takes away, in words."""
    lines = whole().verdict()
    assert lines[0] == (
        "The student kept 97.5 % of the teacher's accuracy (83.1 of 85.2) with 2.0 times fewer parameters and "
        "2.0 times the speed at batch 1."
    )
    assert lines[1] == (
        "The teacher helped: +1.2 points accuracy compared with the same student trained without it (83.1 against "
        "81.9, one seed; 95 % interval ± 0.6 points from 10,000 eval rows). Only one seed was trained."
    )


def test_noise_is_called_noise() -> None:
    """A gain below the noise, told as a gain, is the lie that this report exists to prevent."""
    assert "The teacher's effect is not significant" in verdict(whole(gain_error=None, eval_rows=400))
    assert "not significant" in verdict(several_seeds((0.83, 0.85), (0.82, 0.80)))
    text = verdict(several_seeds((0.831, 0.832, 0.830), (0.819, 0.820, 0.8185)))
    assert "The teacher helped: +1.2 points" in text
    assert "3 seeds" in text
    assert "Over 3 seeds it is 83.1 on average." in text


def test_no_difference_is_no_interval_of_width_zero() -> None:
    """`95 % interval ± 0.0 points` reads as certainty, where two students answered alike and nothing was measured."""
    same = whole(baseline=model(1, None, accuracy=0.831), gain_error=0.0)
    assert same.noise is None
    assert same.verdict()[1] == (
        "No effect of the teacher was measured: the same student trained without it has the same accuracy (83.1, one "
        "seed, 10,000 eval rows). This run does not show that it helped."
    )
    seeds = several_seeds((0.83, 0.84), (0.83, 0.84), gain_error=0.0)
    assert seeds.verdict()[1].startswith("No effect of the teacher was measured: the same student trained without it")
    assert "has the same accuracy (in each of 2 seeds, 10,000 eval rows)" in seeds.verdict()[1]
    equal = several_seeds((0.85, 0.83), (0.83, 0.81), gain_error=0.0)
    assert equal.noise is None, "two seeds that happen to differ alike are no interval"
    assert "The teacher seems to have helped: +2.0 points accuracy" in verdict(equal)
    assert "The uncertainty of this difference is not known." in verdict(equal)
    for report in (same, seeds, equal):
        assert "±" not in "".join(report.verdict()[:2])
        assert "not significant" not in verdict(report)
    assert several_seeds((0.85, 0.83), (0.83, 0.81), gain_error=0.003).noise == pytest.approx(1.96 * 0.003)


def test_the_effect_of_a_chain_is_compared_row_by_row() -> None:
    """Two students that predict the same on every row were said to differ by up to 11.8 points."""
    direct = (SeedResult(42, {"accuracy": 0.831}),)
    same = verdict(whole(direct=direct, direct_error=0.0, eval_rows=50))
    assert "No effect of the chain was measured: " in same
    assert "has the same accuracy (83.1, one seed, 50 eval rows)" in same
    helped = whole(direct=(SeedResult(42, {"accuracy": 0.80}),), direct_error=0.01, eval_rows=50)
    assert "The chain helped: +3.1 points" in verdict(helped)
    assert "95 % interval ± 2.0 points" in verdict(helped)


def test_a_teacher_that_hurt() -> None:
    """A negative gain must be said, and in the right direction for an error."""
    assert "The teacher hurt: -3.1 points" in verdict(whole(baseline=model(1, None, accuracy=0.862)))
    assert "seems to have helped: -0.1 mse" in verdict(regression())
    worse = verdict(regression(baseline=model(1, None, mse=0.45)))
    assert "did not help: +0.05 mse" in worse
    assert "is not known" in worse


def test_what_cannot_be_compared() -> None:
    """A baseline that the teacher refuses would be recommended, and "not smaller than the teacher" told of a student's
    own average."""
    refused = whole(baseline=None, settings={"not_compared": {"training without the teacher": "rows are private"}})
    assert "cannot be trained without it, as rows are private" in verdict(refused)
    assert "baseline: true" not in verdict(refused)
    alike = whole(
        student=model(2_000_000, speed(20.0, 400.0), accuracy=0.83),
        settings={"not_compared": {"size and speed": "of the student's own kind"}},
    )
    assert "smaller than the teacher" not in verdict(alike)
    assert "faster" not in verdict(alike)
    assert "parameters" not in alike.verdict()[0]


def test_the_best_of_equal_teachers() -> None:
    """ "The best alone is teacher 1" of three that have the same score claims a difference."""

    def said(*scores: float) -> str:
        return verdict(whole(settings={"teacher": {"members": dict(zip("abc", scores, strict=True))}}))

    assert "the best alone is b, with 84.0" in said(0.8, 0.84, 0.82)
    assert "Each of the 3 teachers alone has 84.0" in said(0.84, 0.84, 0.84)
    assert "teachers" not in said(0.852, 0.852, 0.852)


def test_a_student_that_is_larger_or_slower() -> None:
    """`0.5 times fewer parameters` reads like a gain."""
    text = verdict(whole(student=model(4_000_000, speed(30.0, 500.0), accuracy=0.88)))
    assert "It is larger than the teacher: 2.0 times the parameters." in text
    assert "It is slower: 1.5 times the teacher's latency at batch 1." in text
    assert "times fewer" not in text
    assert "above the teacher's (88.0 against 85.2)" in text
    text = verdict(whole(student=model(2_000_000, speed(20.1, 500.0), accuracy=0.85)))
    assert "It is not smaller" in text
    assert "It is not faster" in text


def test_a_bad_teacher() -> None:
    """Whoever beats the teacher without it should not distil from it."""
    text = verdict(whole(teacher=model(2, None, accuracy=0.80)))
    assert "The teacher itself is worse than the same student trained without it: accuracy 80.0 against 81.9." in text
    assert "(83.1 against 80.0)" in text
    text = verdict(whole(teacher=model(2, None, accuracy=0.80), eval_rows=100))
    assert "The teacher itself" not in text
    assert "(83.1 against 80.0, not significant)" in text


NO_KNOWLEDGE = Chance(value=0.81, error=0.004, answer="always 'negative'")


def test_a_teacher_at_chance_level() -> None:
    """`The student kept 100 % of the teacher's accuracy` is true of a student of noise, and praises it."""
    guessing = model(2_000_000, speed(20.0, 400.0), accuracy=0.81)
    report = whole(teacher=guessing, student=model(1_000_000, speed(10.0, 160.0), accuracy=0.81), chance=NO_KNOWLEDGE)
    assert report.verdict()[0] == (
        "The teacher is no better than a trivial guess: its accuracy is 81.0 against 81.0 for always 'negative'. "
        "By this metric there was nothing to learn from it: the student's accuracy is 81.0. The student has 2.0 times "
        "fewer parameters and 2.0 times the speed at batch 1."
    )
    large = replace(report, student=model(4_000_000, speed(20.0, 160.0), accuracy=0.81))
    larger = "is 81.0. The student is larger than the teacher: 2.0 times the parameters. It is not faster"
    assert larger in verdict(large)
    assert "The teacher helped" not in verdict(whole(teacher=guessing, chance=NO_KNOWLEDGE, gain_error=0.02))
    above = replace(guessing, metrics={"accuracy": 0.815})
    assert "is 81.5 against 81.0 for always 'negative', not significantly better." in verdict(
        whole(teacher=above, chance=NO_KNOWLEDGE)
    )
    assert "chance" not in verdict(whole(teacher=replace(guessing, metrics={"accuracy": 0.83}), chance=NO_KNOWLEDGE))
    assert "of the teacher's accuracy kept" not in report_html.html(report)
    assert "accuracy of the teacher: no better than" in report_html.html(report)


def test_a_student_at_chance_level() -> None:
    """95 % kept of a teacher that is 5 points above the majority can be: nothing learned."""
    text = verdict(whole(student=model(1_000_000, None, accuracy=0.81), chance=NO_KNOWLEDGE))
    assert "The student kept 95.1 % of the teacher's accuracy" in text
    assert (
        "The student itself is no better than a trivial guess: its accuracy is 81.0 against 81.0 for always 'negative'."
        in text
    )
    assert "chance" not in verdict(whole(chance=NO_KNOWLEDGE))


def test_an_error_at_chance_level() -> None:
    """Of an error chance is the larger number: compared the wrong way round, every good teacher would be a guesser."""
    guess = Chance(value=0.7, error=0.0, answer="the same number every time")
    assert "chance" not in verdict(regression(chance=guess))
    text = verdict(regression(chance=replace(guess, value=0.39)))
    assert (
        "The teacher is no better than a trivial guess: its mse is 0.4 against 0.39 for the same number every time."
        in text
    )


def test_calibration_that_got_worse() -> None:
    """Same accuracy, but now always sure: a loss that accuracy does not show."""
    report = whole()
    swapped = {name: replace(report.calibration[name], ece=ece) for name, ece in (("teacher", 0.02), ("student", 0.08))}
    assert "Calibration got worse: expected calibration error 8.0 % against the teacher's 2.0 %." in verdict(
        whole(calibration=swapped)
    )
    few = {name: replace(one, counts=tuple(min(n, 1) for n in one.counts)) for name, one in swapped.items()}
    assert "Calibration" not in verdict(whole(calibration=few))
    assert "Calibration" not in verdict(whole(calibration=dict.fromkeys(swapped, swapped["teacher"])))


def test_without_labels_baseline_or_metric() -> None:
    """What is not known must be said to be not known."""
    text = verdict(unlabelled())
    assert "predict the same on 93.2 % of 2,000 eval rows" in text
    assert "2.0 times fewer parameters" in text
    assert "Whether the teacher helped is not known" in text
    assert "baseline: true" in text
    assert "there is no agreement to compare" in verdict(unlabelled(baseline=model(1, None)))
    assert "20.0 % more" not in verdict(regression())
    assert "0.5 against the teacher's 0.4 (25.0 % more)" in verdict(regression())
    agreeing = unlabelled(
        teacher=model(2, None, agreement=1.0),
        student=model(1, None, agreement=0.932),
        baseline=model(1, None, agreement=0.9),
    )
    text = verdict(agreeing)
    assert "Agreement with the teacher: +3.2 points" in text
    assert "kept" not in text
    assert "helped" not in text
    perfect = verdict(regression(teacher=model(2, None, mse=0.0)))
    assert "The student's mse is 0.5 against the teacher's 0" in perfect
    negative = whole(student=model(1, None, accuracy=-0.1))
    assert "-0.1 against the teacher's 0.852" in verdict(negative)


def test_a_notebook_shows_the_table_with_foreign_text_escaped() -> None:
    """A metric named with a pipe would shift the numbers of its row into the columns of other models."""
    report = whole()
    named = {name: replace(one, metrics={**one.metrics, "a|b <i>": 0.5}) for name, one in report.models.items()}
    shown = replace(report, **named)._repr_markdown_().splitlines()
    assert shown[:3] == [
        "| | teacher | student | student without teacher |",
        "|---|---:|---:|---:|",
        "| **accuracy** | **85.2 %** | **83.1 %** | **81.9 %** |",
    ]
    assert r"| a\|b &lt;i&gt; | 0.5 | 0.5 | 0.5 |" in shown
