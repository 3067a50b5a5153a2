"""Several runs beside each other: the differences are right, and nothing is compared that cannot be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import RECIPE, regression, several_seeds, speed, unlabelled, whole
from rich.console import Console
from scipy.stats import t

from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.metrics.bootstrap import Units, gain_error
from hf_distill.report.ancestors import Ancestor
from hf_distill.report.report import Report
from hf_distill.report.results import Results
from hf_distill.report.runs.comparison import RunComparison, difference, over_seeds, seed_values
from hf_distill.report.runs.page import html
from hf_distill.report.runs.plots import plots
from hf_distill.report.runs.reading import read_runs
from hf_distill.report.runs.recipes import differing
from hf_distill.report.runs.terminal import show
from hf_distill.report.runs.text import notes, parts, verdict
from hf_distill.report.sweep.results import SettingRun, Sweep
from hf_distill.report.text import Row


def on(rows: str, report: Report, **metrics: float) -> Report:
    """Return a report on these eval rows, its student with these metrics."""
    lineage = (Ancestor(name="teacher"), Ancestor(name="student", rows=rows))
    student = replace(report.student, metrics={**report.student.metrics, **metrics})
    return replace(report, lineage=lineage, student=student)


def store(report: Report, place: Path) -> None:
    """Write the file that is read; pages and plots would take seconds."""
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")


def compared(tmp_path: Path, **reports: Report) -> RunComparison:
    """Return the comparison of reports that were saved to disk, and read again."""
    for name, report in reports.items():
        store(report, tmp_path / name)
    return RunComparison(tuple(read_runs([tmp_path / name for name in reports])))


def table(comparison: RunComparison) -> dict[str, Row]:
    return {row.label: row for part in parts(comparison) for row in part.rows}


def test_the_interval_of_one_seed_is_that_of_two_shares() -> None:
    """Too narrow, a comparison finds a winner among equals. By hand: 83.1 and 84.1 % of 10,000 rows."""
    found = difference(whole(), on("", whole(), accuracy=0.841))
    assert found is not None
    error = math.sqrt((0.831 * 0.169 + 0.841 * 0.159) / 10_000)
    assert (found.value, found.noise) == (pytest.approx(-0.01), pytest.approx(1.96 * error))
    assert found.within_noise is True
    smaller = difference(whole(), on("", whole(), accuracy=0.851))
    assert smaller is not None
    assert smaller.within_noise is False


def test_the_same_rows_are_compared_in_pairs(tmp_path: Path) -> None:
    """Rows that are hard for both students are not noise of their difference, and would hide what was gained. By hand:
    the standard error of the mean of the differences of rows."""
    rng = np.random.default_rng(0)
    hard = rng.random(2000) < 0.2
    right = [(~hard & (rng.random(2000) < share)).astype(float) for share in (0.99, 0.96)]
    one, other = (
        replace(
            on("x", whole(), accuracy=float(rows.mean())),
            resampled=tuple(Units.means(rows).resampled()),
            eval_rows=2000,
        )
        for rows in right
    )
    found = difference(one, other)
    assert found is not None
    by_hand = float(np.std(right[0] - right[1], ddof=1)) / math.sqrt(2000)
    assert found.noise == pytest.approx(1.96 * by_hand, rel=0.2)
    assert found.noise == pytest.approx(1.96 * (gain_error(*map(Units.means, right)) or 0.0))
    alone = difference(one, replace(other, resampled=()))
    assert alone is not None
    assert alone.noise is not None
    assert alone.noise > 2 * found.noise
    assert difference(one, replace(other, eval_rows=1999)) == difference(
        one, replace(other, eval_rows=1999, resampled=())
    )
    assert not any("earlier version" in line for line in notes(compared(tmp_path, one=one, two=other)))


def test_seeds_are_compared_in_pairs() -> None:
    """The spread between seeds, which both runs share, is not noise of the difference. Against SciPy."""
    one, other = several_seeds((0.83, 0.80, 0.86), (0.8,) * 3), several_seeds((0.81, 0.79, 0.83), (0.8,) * 3)
    one, other = (replace(each, eval_rows=None) for each in (one, other))
    found = difference(one, other)
    assert found is not None
    gaps = [0.02, 0.01, 0.03]
    assert (found.value, found.seeds) == (pytest.approx(0.02), 3)
    assert found.noise == pytest.approx(t.ppf(0.975, 2) * 0.01 / math.sqrt(3), rel=2e-3)
    later = replace(other, seeds=tuple(replace(seed, seed=seed.seed + 1) for seed in other.seeds))
    shifted = difference(one, later)  # of the first run's seeds 42, 43 and 44, the second has 43 and 44
    assert shifted is not None
    assert (shifted.value, shifted.seeds) == (pytest.approx((0.80 - 0.81 + 0.86 - 0.79) / 2), 2)
    assert sum(gaps) / 3 == pytest.approx(found.value)


def test_an_error_is_best_where_it_is_small(tmp_path: Path) -> None:
    """Sorted like accuracy, the worst run would win; and its noise is not known from one seed."""
    found = compared(tmp_path, small=on("x", regression(), mse=0.45), large=on("x", regression(), mse=0.5))
    said = " ".join(verdict(found))
    assert said.startswith("small has the lowest mse, 0.45.")
    assert "not known" in said
    assert "small and large: reports of an earlier version" in " ".join(notes(found))
    assert table(found)["difference from small"].cells == {"small": "best", "large": "+0.05"}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (on("y", whole(), accuracy=0.9), "eval rows differ"),
        (on("", whole(), accuracy=0.9), "not known whether other had the same eval rows"),
        (replace(on("x", whole()), task="token-classification"), "tasks differ"),
        (on("x", regression()), "metrics differ"),
        (on("x", unlabelled()), "metrics differ"),
    ],
)
def test_what_cannot_be_compared(other: Report, why: str, tmp_path: Path) -> None:
    """A run on easier rows wins every comparison of numbers."""
    found = compared(tmp_path, one=on("x", whole()), other=other)
    (line,) = verdict(found)
    assert why in line
    assert not any(label.startswith("difference") for label in table(found))
    assert "eval accuracy" not in {plot.title for plot in plots(found)}
    assert not found.behind(found.alike[0])


def perplexities(value: float, **changes: Any) -> Report:
    """Return a report of a language model on rows `x`."""
    report = replace(regression(), task="text-generation", metric="perplexity", chance=None)
    results = {name: replace(one, metrics={"perplexity": value}) for name, one in report.models.items()}
    return replace(on("x", replace(report, **results)), **changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"conditions": {"perplexity": {"tokens": "b"}}}, "their tokens differ (one / other; a perplexity is one of"),
        ({"conditions": {}}, "not known whether other had the same tokens"),
        ({"eval_rows": 900}, "their numbers of evaluated rows differ (1,000: one; 900: other; texts that are cut"),
    ],
)
def test_perplexities_of_other_tokens_are_not_compared(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    """A tokenizer with long tokens, or texts cut early, would lose to one with short ones, whatever the model."""
    known: dict[str, Any] = {"eval_rows": 1000, "conditions": {"perplexity": {"tokens": "a"}}}
    one, other = perplexities(20.0, **known), perplexities(10.0, **{**known, **changes})
    found = compared(tmp_path / "runs", one=one, other=other)
    (line,) = verdict(found)
    assert why in line
    assert not any(label.startswith("difference") for label in table(found))
    assert "Effect of distillation" not in {plot.title for plot in plots(found)}
    settings = (SettingRun(name, {"k": name}, "finished", each) for name, each in (("one", one), ("other", other)))
    assert Sweep("recipe.yaml", ("k",), tuple(settings)).best is None
    same = compared(tmp_path / "same", one=one, other=perplexities(10.0, **known))
    assert verdict(same)[0].startswith("other has the lowest perplexity, 10.")


def test_a_perplexity_beside_the_headline_metric_is_not_compared(tmp_path: Path) -> None:
    """Side by side in the table, two perplexities of other tokens look like a difference."""
    one, other = (
        replace(on("x", whole(), perplexity=value), conditions={"perplexity": {"tokens": tokens}})
        for value, tokens in ((20.0, "a"), (10.0, "b"))
    )
    found = compared(tmp_path, one=one, other=other)
    assert table(found)["difference from one"].cells["one"] == "best"
    assert [line for line in notes(found) if line.startswith("The values of perplexity are not comparable")]


def test_of_three_runs_the_two_alike_are_compared(tmp_path: Path) -> None:
    """One run on other rows must not hide which of the others is better, nor be ranked among them."""
    a, b, c = on("x", whole()), on("x", whole(), accuracy=0.9), on("y", whole(), accuracy=0.99)
    found = compared(tmp_path, a=a, b=b, c=c)
    said = verdict(found)
    assert "a, b / c" in said[0]
    assert said[1].startswith("Of a and b b has the highest accuracy, 90.0 %.")
    assert "a (-6.9 ± 0.9) is further behind than noise" in said[1]
    assert table(found)["difference from b"].cells == {"a": "-6.9 ± 0.9", "b": "best", "c": "-"}
    assert table(found)["eval rows"].cells == {"a": "10,000", "b": "10,000", "c": "10,000"}


@pytest.mark.parametrize(("change", "why"), [({"threads": 4}, "the threads differ"), ({"device": "GPU"}, "machines")])
def test_speeds_of_other_machines(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    """The student of a slow machine is not a slow student."""
    one = on("x", whole())
    same = compared(tmp_path / "same", one=one, two=one)
    assert table(same)["latency, batch 1"].cells == {"one": "10.0 ms", "two": "10.0 ms"}
    other = replace(one, student=replace(one.student, latency=replace(speed(5.0, 9.0), **change)))
    found = compared(tmp_path, one=one, two=other)
    assert "latency, batch 1" not in table(found)
    assert any("Speed is not compared" in line and why in line for line in notes(found))


def test_settings_that_differ() -> None:
    """Told apart by their place in a list, the same objectives in another order look like other settings."""
    kl, labels = {"name": "kl", "temperature": 2.0}, {"name": "labels", "weight": 0.5}
    one = {"objectives": [kl, labels], "training": {"output_dir": "a", "bf16": True}, "data": {"path": "/x/a.csv"}}
    two = {"objectives": [labels, kl], "training": {"output_dir": "b", "bf16": True}, "data": {"path": "/y/a.csv"}}
    assert differing([one, two]) == {"data.path": ("/x/a.csv", "/y/a.csv")}
    schedule = {**kl, "temperature": {"start": 4.0, "end": 1.0}}
    three = {"objectives": [schedule], "training": {"bf16": False}, "data": {"path": "/x/a.csv"}}
    assert differing([one, three]) == {
        "objectives.kl.temperature": ("2", None),
        "objectives.labels.weight": ("0.5", None),
        "objectives.kl.temperature.start": (None, "4"),
        "objectives.kl.temperature.end": (None, "1"),
        "training.bf16": ("true", "false"),
    }


def test_a_key_that_is_left_out_has_its_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`-` beside a value that is the default says that the recipes differ, and one run would explain the other. Against
    the arguments as Transformers has them."""
    from dataclasses import MISSING, fields

    from hf_distill.recipe.training_source import default_values
    from hf_distill.run.whole_recipe import whole_recipe
    from hf_distill.training_args import DistillationArguments

    same = RECIPE.replace("epochs: 3", "epochs: 3.0, learning_rate: 5.0e-5, save_strategy: epoch").replace(
        "name: sst2", "name: sst2\n  max_length: null"
    )
    other = (
        same.replace("5.0e-5", "1.0e-4")
        .replace("temperature: 2.0", "temperature: 4.0")
        .replace("name: labels,", "name: labels, label_smoothing: 0.1,")
    )
    scheduled = RECIPE.replace(", temperature: 2.0", ", temperature: {start: 4.0, end: 1.0}")
    plain = RECIPE.replace(", temperature: 2.0", "")
    for name, text in {"plain": plain, "same": same, "other": other, "scheduled": scheduled}.items():
        store(replace(on("x", whole()), recipe=text), tmp_path / name)

    def listed(*names: str) -> dict[str, list[str]]:
        assert main(["compare", *(str(tmp_path / name) for name in names)]) == 0
        rows = (line.split("  ") for line in capsys.readouterr().out.splitlines())
        return {
            row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()]
            for row in rows
            if "." in row[0] and row[0].strip().partition(".")[0] in ("data", "objectives", "training")
        }

    default = {item.name: item.default for item in fields(DistillationArguments) if item.default is not MISSING}
    temperature = whole_recipe(plain)["objectives"][0]["temperature"]
    assert listed("plain", "same") == ({} if temperature == 2 else {"objectives.kl.temperature": ["1 (default)", "2"]})
    assert listed("same", "other")["training.learning_rate"] == [f"{default['learning_rate']:g}", "0.0001"]
    assert listed("plain", "other")["training.learning_rate"] == ["5e-05 (default)", "0.0001"]
    assert listed("plain", "other")["objectives.labels.label_smoothing"] == ["0 (default)", "0.1"]
    assert listed("plain", "scheduled")["objectives.kl.temperature"] == [f"{temperature:g} (default)", "-"]
    read = default_values()
    assert {key: default[key] for key in read} == read
    assert len(read) > 100
    store(replace(on("x", whole()), recipe=RECIPE.replace("name: kl", "name: of_a_later_version")), tmp_path / "later")
    assert listed("later", "same")["training.learning_rate"] == ["-", "5e-05"]


def test_curves_have_one_scale(tmp_path: Path) -> None:
    """The same objective at two temperatures is two quantities: on one plot, the wrong run learns faster."""
    one = on("x", whole())
    warm = replace(one, recipe=RECIPE.replace("temperature: 2.0", "temperature: 4.0"))
    titles = {plot.title for plot in plots(compared(tmp_path / "warm", one=one, two=warm))}
    assert titles == {"accuracy", "Effect of distillation", "eval accuracy", "objective/labels"}
    weight = replace(one, recipe=RECIPE.replace("weight: 0.5", "weight: 0.9"))
    assert "objective/kl" in {plot.title for plot in plots(compared(tmp_path / "weight", one=one, two=weight))}
    teacher = replace(one, recipe=RECIPE.replace("bert-base-uncased-SST-2", "other"))
    assert "objective/kl" not in {plot.title for plot in plots(compared(tmp_path / "t", one=one, two=teacher))}


def test_mistakes_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory beside the right one is the usual mistake: the message should name the right one."""
    for name in ("bert", "runs/small"):
        store(whole(), tmp_path / name)
    (tmp_path / "bert" / "checkpoint-50").mkdir()
    (tmp_path / "stopped" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"task": 1}', encoding="utf-8")
    given = {
        "bert/checkpoint-50": f"Did you mean {tmp_path / 'bert'}?",
        "runs": f"Did you mean {tmp_path / 'runs/small'}?",
        "bret": f"Did you mean {tmp_path / 'bert'}?",
        "stopped": "not finished",
        "broken": "wanted a report of hf-distill",
    }
    assert main(["compare", *(str(tmp_path / name) for name in given)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(given)
    for line, (name, text) in zip(lines, given.items(), strict=True):
        assert line.startswith(str(tmp_path / name))
        assert text in line
    assert main(["compare", str(tmp_path / "bert")]) == 2
    assert "at least two" in capsys.readouterr().err
    with pytest.raises(UserError, match="same one twice"):
        read_runs([tmp_path / "bert", tmp_path / "runs" / ".." / "bert"])


def test_without_pytorch(tmp_path: Path) -> None:
    """A table of what is on disk must not wait ten seconds for PyTorch, nor need it."""
    store(on("x", whole()), tmp_path / "one")
    store(on("x", several_seeds((0.84, 0.85), (0.8, 0.8))), tmp_path / "two")
    words = ["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--into", str(tmp_path)]
    script = (
        "import sys; sys.modules.update(torch=None, transformers=None); from hf_distill.cli import main;"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "two has the highest accuracy" in done.stdout
    assert "<h1>one, two</h1>" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_what_others_wrote_is_only_shown(tmp_path: Path) -> None:
    """Reports are often a colleague's, or from the Hub."""
    evil = "<img src=x onerror=alert(1)>\x1b[2J[red]"
    recipe = json.dumps({"student": {"name": evil}, "training": {"output_dir": "x"}})
    two = replace(on("x", whole()), recipe=recipe, task=evil)
    found = compared(tmp_path, **{"a": on("x", whole()), "<b>x": two})
    page = html(found)
    assert "<img" not in page
    assert "<b>x" not in page
    assert "\x1b" not in page
    console = Console(width=200, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    show(found, console)
    assert "\\x1b[2J[red]" in console.export_text()


def test_many_runs(tmp_path: Path) -> None:
    """Of more runs than colours, the table has all, and the page says which the plots leave out."""
    found = compared(tmp_path, **{f"run{index}": on("x", whole(), accuracy=0.7 + index / 100) for index in range(9)})
    page = html(found)
    assert "The plots show the first 6 runs" in page
    assert "could not be drawn" not in page
    assert len(table(found)["accuracy"].cells) == 9
    assert isinstance(found.runs[0].report, Results)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_seed_that_diverged_is_not_left_out_of_the_mean(value: float | None) -> None:
    """The mean of the other seeds looks right: a setting that diverges every third time would be called the best."""
    report = several_seeds((0.8, 0.82, 0.81), (0.7, 0.71, 0.72))
    last = report.seeds[-1]
    student = {name: one for name, one in last.student.items() if name != report.metric}
    if value is not None:
        student[report.metric] = value
    wrong = replace(report, seeds=(*report.seeds[:-1], replace(last, student=student)))
    assert len(seed_values(report, report.metric)) == len(report.seeds) > 1
    assert seed_values(wrong, report.metric) == ()
    assert over_seeds(wrong, report.metric) == (None, None)
    setting = SettingRun("one", {"student.layers": 2}, "finished", report=wrong)
    assert Sweep("recipe.yaml", ("student.layers",), (setting,)).scored == []
