"""Noisy teachers (PATE): what a vote costs, how noise flips it, which rows a student sees, and a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import WriteRecipe, run
from scipy.optimize import brentq
from scipy.special import erfc
from scipy.stats import norm

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.calibration import CalibrationRows
from hf_distill.recipe.recipe import Recipe
from hf_distill.rows import ExampleRows, TokenRows
from hf_distill.run.dry_run import check
from hf_distill.run.private_rows import check_private
from hf_distill.tasks import TASKS
from hf_distill.teachers import CachedTeacher, FinetunedTeacher, NoisyTeacher, PretrainedTeacher
from hf_distill.teachers.noisy import targets, voters
from hf_distill.teachers.noisy.privacy import Accountant, PrivacyBudget
from hf_distill.teachers.noisy.votes import answers, on_simplex, shard

DELTA = 1e-5
ORDERS = np.linspace(1.05, 200, 400_001)


def converted(divergence: Any) -> float:
    """Return epsilon of Rényi divergences at `ORDERS` (Canonne, Kamath and Steinke 2020, proposition 12)."""
    inside = divergence + np.log1p(-1 / ORDERS) - np.log(DELTA * ORDERS) / (ORDERS - 1)
    return float(inside.min())


@pytest.mark.parametrize(("sigma", "queries"), [(5.0, 10), (40.0, 1000), (100.0, 286)])
def test_epsilon_of_gnmax(sigma: float, queries: int) -> None:
    """With the sensitivity of one count, not of two, the reported epsilon would be too low by a third."""
    found = Accountant("gnmax", sigma, None, DELTA).epsilon(queries, queries)
    assert found == pytest.approx(converted(queries * ORDERS / sigma**2), rel=5e-3)
    # Exact: a Gaussian mechanism of sensitivity sqrt(2 n) (Balle and Wang 2018, theorem 8). A bound is never below it.
    ratio = math.sqrt(2 * queries) / sigma

    def excess(epsilon: float) -> float:
        shift = epsilon / ratio
        return float(norm.cdf(ratio / 2 - shift) - math.exp(epsilon) * norm.cdf(-ratio / 2 - shift)) - DELTA

    exact = brentq(excess, 0, 60)
    assert exact < found < 1.2 * exact


@pytest.mark.parametrize(("asked", "answered"), [(100, 0), (100, 37), (100, 100)])
def test_a_threshold_costs_for_every_query(asked: int, answered: int) -> None:
    """That a row was not answered says something about the private rows; free of charge it would leak without limit."""
    found = Accountant("confident", 20.0, 30.0, DELTA).epsilon(asked, answered)
    wanted = converted(asked * ORDERS / (2 * 30.0**2) + answered * ORDERS / 20.0**2)
    assert found == pytest.approx(wanted, rel=5e-3)


def test_epsilon_of_laplace() -> None:
    """A query is (2 gamma, 0)-private; many are cheaper than their sum, and never dearer than the paper's moments."""
    one = Accountant("laplace", 1 / 0.05, None, DELTA)
    assert one.epsilon(1, 1) == pytest.approx(0.1)
    assert 0.29 < one.epsilon(3, 3) <= 0.3
    moments = np.arange(1, 100)  # Papernot et al. 2017, theorem 2, with the conversion of that paper
    paper = ((100 * 2 * 0.05**2 * moments * (moments + 1)) + math.log(1 / DELTA)) / moments
    assert 0.5 * paper.min() < one.epsilon(100, 100) < paper.min()


@pytest.mark.parametrize(("mechanism", "noise"), [("gnmax", 12.0), ("laplace", 10.0)])
def test_as_many_queries_as_fit(mechanism: Any, noise: float) -> None:
    """One query too many exceeds the budget; one too few wastes labels."""
    accountant = Accountant(mechanism, noise, None, DELTA)
    budget = PrivacyBudget(accountant, 3.0, 10_000)
    rows, found = answers(np.tile([3, 22], (10_000, 1)), None, budget, None, np.random.default_rng(0))
    assert budget.asked == budget.answered == len(rows) == len(found)
    assert budget.epsilon <= 3.0 < accountant.epsilon(len(rows) + 1, len(rows) + 1)


def test_unanswered_rows_leave_budget_for_others() -> None:
    """The bound holds whatever is answered: all charges, at the order that was fixed before, stay below it."""
    accountant = Accountant("confident", 10.0, 15.0, DELTA)
    budget = PrivacyBudget(accountant, 5.0, 10_000)
    votes = np.tile([[25, 0], [13, 12]], (5_000, 1))
    rows, _ = answers(votes, None, budget, 100.0, np.random.default_rng(0))
    assert (len(rows), budget.answered) == (0, 0)
    assert budget.asked > 2 * accountant.fitting(5.0, 10_000)
    last, order = accountant.epsilon(budget.asked, budget.answered, budget.order), budget.order
    assert last <= budget.epsilon == 5.0 < accountant.epsilon(budget.asked + 1, budget.answered + 1, order)
    few = PrivacyBudget(accountant, 5.0, 3)
    assert few.epsilon == accountant.epsilon(3, 3) < 5.0
    some, _ = answers(votes, None, few, 19.0, np.random.default_rng(1))
    assert few.asked == 3 >= few.answered == len(some)


@pytest.mark.parametrize("votes", [(14, 11), (10, 8, 7)])
def test_noise_flips_votes_as_often_as_published(votes: tuple[int, ...]) -> None:
    """Noise of another size, or on the difference instead of on every count, has another privacy than is accounted."""
    draws, sigma, scale = 40_000, 4.0, 5.0
    counts = np.array(votes)
    behind = counts[0] - counts[1:]

    def flipped(mechanism: Any, noise: float) -> float:
        budget = PrivacyBudget(Accountant(mechanism, noise, None, DELTA), 1e9, draws)
        _, found = answers(np.tile(counts, (draws, 1)), None, budget, None, np.random.default_rng(0))
        assert len(found) == draws
        return float(1 - found[:, 0].mean())

    gaussian = 0.5 * erfc(behind / (2 * sigma)).sum()  # Papernot et al. 2018, proposition 7
    laplace = ((2 + behind / scale) / (4 * np.exp(behind / scale))).sum()  # Papernot et al. 2017, lemma 4
    for found, published in ((flipped("gnmax", sigma), gaussian), (flipped("laplace", scale), laplace)):
        if len(votes) == 2:
            assert found == pytest.approx(published, abs=4 * math.sqrt(0.25 / draws))
        else:
            assert 0.5 * published < found < published


def test_soft_answers() -> None:
    """The noise is on sums of distributions, of which one teacher changes two by no more than one vote would."""
    random, sums = np.random.default_rng(0), np.tile([12.0, 8.0, 5.0], (20_000, 1))
    budget = PrivacyBudget(Accountant("gnmax", 1.0, None, DELTA), 1e9, len(sums))
    _, found = answers(sums, sums, budget, None, random)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found.mean(0), sums[0] / 25, atol=2e-3)
    # Onto the plane of distributions, noise loses the part along (1, 1, 1).
    np.testing.assert_allclose(found.std(0), math.sqrt(2 / 3) / 25, rtol=0.03)
    for values in random.normal(0.3, 1, (50, 4)):
        nearest = on_simplex(values)
        assert nearest.min() >= 0
        others = random.dirichlet(np.ones(4), 500)
        assert ((others - values) ** 2).sum(1).min() >= ((nearest - values) ** 2).sum() - 1e-12


def test_shards() -> None:
    """A row in two shards changes two votes, and epsilon is that of another data set."""
    parts = [shard(103, 10, index, seed=3) for index in range(10)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(103))
    assert {len(part) for part in parts} == {10, 11}


TUNED = FinetunedTeacher(model="a")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"count": 1}, "count"),
        ({"noise": 0.0}, "noise"),
        ({"noise": -1.0}, "noise"),
        ({"delta": 0.0}, "delta"),
        ({"queries": 0}, "queries"),
        ({"seed": -1}, "seed"),
        ({"teacher": PretrainedTeacher(model="a")}, "finetuned"),
        ({"teacher": NoisyTeacher(teacher=TUNED, noise=9.0, budget=1.0)}, "finetuned"),
        ({"mechanism": "confident"}, "both threshold"),
        ({"mechanism": "confident", "threshold": 26.0, "threshold_noise": 4.0}, "more than 25"),
        ({"threshold": 9.0}, "confident"),
        ({"mechanism": "laplace", "soft": True}, "Gaussian"),
    ],
)
def test_impossible_settings(fields: dict[str, Any], words: str) -> None:
    """Each would run, and protect nobody or teach nothing."""
    with pytest.raises(ValueError, match=words):
        NoisyTeacher(**{"teacher": TUNED, "noise": 9.0, "budget": 1.0, **fields})


@pytest.fixture
def half_private(sentiment_csv: Any, tmp_path: Path) -> dict[str, Any]:
    """The data section of a recipe: 24 private rows of train with a label, 40 public ones without."""
    with sentiment_csv.train.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "half.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "label"))
        writer.writerows((row["sentence"], row["label"] if at < 24 else "") for at, row in enumerate(rows))
    return {
        "path": {"train": str(path), "validation": str(sentiment_csv.validation)},
        "columns": {"text": "sentence", "label": "label"},
    }


@pytest.fixture
def private(write_recipe: WriteRecipe, make_model: Any, half_private: dict[str, Any]) -> Any:
    """Function that writes a recipe with three noisy teachers; arguments are settings of the teacher and sections."""
    bare = str(make_model("bert-bare", layers=1))
    inner = {"name": "finetuned", "model": bare, "training": {"max_steps": 2}}

    def write(sections: dict[str, Any] | None = None, **settings: Any) -> Path:
        noisy = {"name": "noisy", "teacher": inner, "count": 3, "noise": 1.0, "budget": 30.0, "delta": 1e-3, **settings}
        shown = {
            "data": half_private,
            "teacher": noisy,
            "student": {"name": "pretrained", "model": bare},
            "objectives": [{"name": "kl"}],
        }
        return write_recipe(**{**shown, **(sections or {})})

    return write


def learned(report_of: Any) -> Any:
    return report_of.settings["teacher"]["privacy"]


def test_a_private_run(private: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that sees a labelled row, or is pruned by what it does on one, a second draw for the same rows, or
    curves of the private trainings in a report: each gives away more than epsilon says, and no score shows it."""
    from hf_distill.run.fit import Fitter

    seen: list[tuple[bool, list[int], list[list[int]]]] = []
    fit = Fitter.fit

    def spy(self: Fitter, *args: Any, **settings: Any) -> Any:
        rows = self.rows(settings["objectives"])
        seen.append((settings.get("teacher") is not None, rows["labels"], rows["input_ids"]))
        return fit(self, *args, **settings)

    measured: list[list[int]] = []
    batches = CalibrationRows.batches
    monkeypatch.setattr(Fitter, "fit", spy)
    monkeypatch.setattr(
        CalibrationRows, "batches", lambda self, *args: measured.extend(self.train["input_ids"]) or batches(self, *args)
    )
    bare = str(make_model("bert-bare", layers=1))
    sections = {"student": {"name": "prune_width", "intermediate": 0.5, "model": bare}}
    path = private(sections, noise=2.0, budget=9.0)
    plan = check(load_recipe(path))
    assert "up to" in plan
    most = Accountant("gnmax", 2.0, None, 1e-3).fitting(9.0, 40)
    assert f"Of the other 40, the teacher answers at most {most}" in plan
    report = run(path)
    told = learned(report)
    accountant = Accountant("gnmax", 2.0, None, 1e-3)
    assert told["asked"] == told["answered"] == accountant.fitting(9.0, 40)
    assert 0 < told["answered"] < 40
    assert told["epsilon"] == accountant.epsilon(told["asked"], told["asked"]) <= 9.0
    parts = [rows for has_teacher, labels, rows in seen if not has_teacher]
    assert [len(part) for part in parts] == [8, 8, 8]
    (labels, rows) = next((labels, rows) for has_teacher, labels, rows in seen if has_teacher)
    assert len(rows) == told["answered"]
    assert set(labels) <= {-100, -1}
    assert not {*map(tuple, rows)} & {tuple(row) for part in parts for row in part}
    assert sorted(measured) == sorted(rows)
    assert not any("teacher" in name for name in report.history)
    assert "baseline: true" not in " ".join(report.verdict())
    assert "3 teachers on private rows" in report.settings["teacher_column"]
    trained_on = report.settings["rows_trained_on"]
    assert trained_on["student"].startswith(f"{told['answered']} without a label")
    assert trained_on["teacher"] == "each of 3 teachers on its own part of the 24 with a label"
    (file,) = (tmp_path / "out" / "_noisy").glob("*.npz")
    before = file.read_bytes()
    monkeypatch.setattr(targets, "_noise", lambda: pytest.fail("drawn again"))
    again = run(path)
    assert learned(again) == told
    assert file.read_bytes() == before
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "epsilon" in card
    # Another recipe in the same directory: both answers are told to whoever sees both students.
    with pytest.raises(UserError, match="add up") as caught:
        run(private(sections, noise=2.1, budget=9.0), restart=True)
    assert "teacher.budget" in str(caught.value)
    # Run again without its answers (asked anew, at the cost of another epsilon), teachers are not: they said it before.
    path = private(sections, noise=2.0, budget=9.0)
    file.unlink()
    with monkeypatch.context() as asked:
        asked.setattr(targets, "_noise", lambda: np.random.default_rng(0))
        asked.setattr(voters, "_distributions", lambda *_: pytest.fail("asked again"))
        assert learned(run(path, restart=True)) == told
    file.write_bytes(before[:-40])
    with pytest.raises(UserError, match="damaged"):
        run(path, restart=True)


def test_rows_that_were_not_answered(private: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be learned with whatever stands in their place, or a student would train on no row at all."""
    confident = {"mechanism": "confident", "threshold": 2.5, "threshold_noise": 1.0, "soft": True, "queries": 30}
    told = learned(run(private(**confident, budget=1e3)))
    assert told["asked"] == 30 > told["answered"] > 0

    class Low:
        def normal(self, mean: float, deviation: float, size: Any = None) -> Any:
            return -50.0 if size is None else np.zeros(size)

    monkeypatch.setattr(targets, "_noise", Low)
    none = private({"training": {"output_dir": str(tmp_path / "none")}}, **confident, budget=1e3)
    for _ in range(2):
        with pytest.raises(UserError, match="no row was answered") as caught:
            run(none)
        assert "teacher.threshold" in str(caught.value)


ACCURACY = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}


@pytest.mark.parametrize(
    ("sections", "settings", "key", "words"),
    [
        ({"report": {"baseline": True}}, {}, "report.baseline", "private"),
        ({"student": {"name": "copy_layers", "layers": 1}}, {}, "student", "private rows"),
        ({"objectives": [{"name": "kl"}, {"name": "labels"}]}, {}, "objectives[1]", "private"),
        ({"objectives": [{"name": "logits_mse"}]}, {}, "objectives[0]", "noisy teacher"),
        ({"training": ACCURACY}, {}, "training.metric_for_best_model", "beyond epsilon"),
        ({}, {"budget": 0.01}, "teacher.budget", "no query fits"),
        ({}, {"count": 25}, "teacher.count", "24"),
    ],
)
def test_what_would_not_be_private(
    sections: dict[str, Any], settings: dict[str, Any], key: str, words: str, private: Any
) -> None:
    """Refused before anything is trained: afterwards the private rows are in the student."""
    recipe = load_recipe(private(sections, **settings))
    with pytest.raises(UserError, match=words) as caught:
        check(recipe)
    assert key in str(caught.value)


def test_a_push_of_scores_without_noise(private: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A model card that says epsilon, and gives away figures that it does not cover, is public within the run."""
    check_private(load_recipe(private({"hub": {"push": True}, "report": {"baseline": False}})))
    assert "without noise" in caplog.text


def test_no_public_rows(private: Any, sentiment_csv: Any) -> None:
    """Asked about their own rows, teachers answer for the labels that they were trained on."""
    files = {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)}
    recipe: Recipe = load_recipe(private({"data": {"path": files, "columns": {"text": "sentence"}}}))
    with pytest.raises(UserError, match="no row is left to ask"):
        check(recipe)


def test_parts_without_a_class_and_a_delta_that_protects_no_one(private: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Teachers that never saw a class do not vote for it; a bound that fails once per row protects no row."""
    check(load_recipe(private(count=12, delta=0.1)))
    assert "lack a class" in caplog.text
    assert "protects none" in caplog.text


@pytest.mark.parametrize("kind", ["multi-label", "regression", "token-classification"])
def test_rows_that_have_no_single_vote(kind: str) -> None:
    """Each label of a row would be one more query, and only one be accounted."""
    layout: Any = {
        "multi-label": ExampleRows(kind="binary", width=3),
        "regression": ExampleRows(kind="values", width=1),
        "token-classification": TokenRows(classes=3),
    }[kind]
    prepared: Any = SimpleNamespace(layout=layout)
    teacher = NoisyTeacher(teacher=TUNED, noise=9.0, budget=1.0)
    with pytest.raises(UserError, match="each of them would be a query"):
        teacher._check_rows(prepared)


def test_stored_once_and_by_an_extra_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache around noisy answers would ask for every row of every split; without the package there is no epsilon."""
    teacher = NoisyTeacher(teacher=TUNED, noise=9.0, budget=1.0)
    with pytest.raises(ValueError, match="stored anyway"):
        CachedTeacher(teacher=teacher)
    monkeypatch.setattr("hf_distill.locations.is_here", lambda package: False)
    with pytest.raises(UserError, match=r"pip install 'hf-distill\[privacy\]'"):
        teacher.check_task(TASKS["text-classification"]())


def test_tasks_without_votes() -> None:
    """A language model or a span has no votes to count."""
    teacher = NoisyTeacher(teacher=TUNED, noise=9.0, budget=1.0)
    for name in ("question-answering", "text-generation", "fill-mask", "sentence-similarity"):
        with pytest.raises(UserError, match="no classes to vote on"):
            teacher.check_task(TASKS[name]())
