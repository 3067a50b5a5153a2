"""A metric without a value: `-` with the reason, everywhere, and never taken for a split without labels."""

from __future__ import annotations

import io
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import model, whole
from rich.console import Console
from runs import WriteRecipe, run

from hf_distill.metrics.score import score
from hf_distill.metrics.table import Undefined
from hf_distill.report.model_card import card
from hf_distill.report.page import html
from hf_distill.report.plots import plots
from hf_distill.report.report import Report
from hf_distill.report.results import SeedResult
from hf_distill.report.terminal import show
from hf_distill.tasks.evaluator import perplexity

NAN, INF = float("nan"), float("inf")
ONE_CLASS = "only one class among the labels"
LINES = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "kind", "logits", "labels", "reason"),
    [
        ("auc", "classes", LINES, [1, 1, 1], ONE_CLASS),
        ("auc", "classes", np.eye(3), [0, 1, 1], "not every class is among the labels"),
        ("auc", "binary", LINES, [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], "one column of labels is constant"),
        ("accuracy", "classes", LINES, [-100] * 3, "no row has a label"),
        ("accuracy", "classes", LINES * NAN, [0, 1, 0], "the predictions are NaN or infinite"),
        ("pearson", "values", np.ones(3), [1.0, 2.0, 3.0], "the predictions are all the same"),
        ("spearman", "values", np.arange(3.0), [2.0, 2.0, 2.0], "the labels are all the same"),
        ("r2", "values", np.ones(1), [1.0], "fewer than two rows have a label"),
        ("mse", "values", np.array([1e200, 0.0]), [1.0, 2.0], "it is too large for a number"),
    ],
)
def test_reasons(name: str, kind: Any, logits: Any, labels: Any, reason: str) -> None:
    """A bare NaN leaves the reader to guess whether labels, predictions or the metric are at fault."""
    value = score([name], logits, np.array(labels), kind)[name]
    assert math.isnan(value)
    assert isinstance(value, Undefined)
    assert value.reason == reason
    again = pickle.loads(pickle.dumps(value))
    assert again.reason == reason


def test_perplexity() -> None:
    """An infinite one was divided by: "kept 0.0 %" of the teacher's, or a traceback."""
    for loss in (None, math.nan, 800.0):
        value = perplexity(loss)
        assert isinstance(value, Undefined)


def undefined(*, alone: bool) -> Report:
    """Return a report whose headline, AUC, has no value for any model."""
    auc: dict[str, float] = {"auc": Undefined(ONE_CLASS)}
    more: dict[str, float] = {} if alone else {"accuracy": 0.75}
    models = {name: model(1000, None, **auc, **more) for name in ("teacher", "student", "baseline")}
    seeds = tuple(SeedResult(seed, {**auc, **more}, {**auc, **more}) for seed in (1, 2))
    return whole(metric="auc", calibration={}, gain_error=None, seeds=seeds, eval_rows=8, **models)


@pytest.mark.parametrize("alone", [False, True])
def test_a_report_without_its_headline(alone: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The verdict said "without labels in the eval split" where there are labels, and a plot failed."""
    report = undefined(alone=alone)
    said = " ".join(report.verdict())
    assert "without labels" not in said
    assert f"auc is not defined here ({ONE_CLASS})" in said
    assert "evaluation.metrics" in said
    assert "predict the same on 93.0 % of 8 eval rows" in said
    assert report.retention is None
    assert report.gain is None
    screen = Console(file=io.StringIO(), width=120)
    show(report, screen)
    for text in (screen.file.getvalue(), html(report), card(report)):  # type: ignore[attr-defined]
        assert f"auc is not defined (teacher, student, student without teacher): {ONE_CLASS}." in text
        assert "nan" not in text.replace("finance", "").lower().split()
    titles = [plot.title for plot in plots(report)]
    assert ("Metrics" in titles) is not alone
    assert not [plot for plot in plots(report) if not plot.svg]
    assert not caplog.records
    report.save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["student"]["metrics"]["auc"] is None
    assert content["student"]["undefined"] == {"auc": ONE_CLASS}
    again = Report.load(tmp_path)
    assert again.verdict() == report.verdict()
    assert again.student.undefined == report.student.undefined


def test_one_model_without_a_value() -> None:
    """A student that predicts one number has no correlation; the teacher's is as good as before."""
    constant = "the predictions are all the same"
    report = whole(
        metric="pearson",
        teacher=model(2000, None, pearson=0.9, mse=0.4),
        student=model(1000, None, pearson=Undefined(constant), mse=0.5),
        baseline=model(1000, None, pearson=0.8, mse=0.5),
        calibration={}, groups=(), confusion=None,
    )  # fmt: skip
    assert constant in report.verdict()[0]
    assert report.gain is None
    assert f"pearson is not defined (student): {constant}." in html(report)
    assert not [plot for plot in plots(report) if not plot.svg]


def test_steps_left_out_are_reported() -> None:
    """A training that left out a tenth of its data is not the one that the recipe describes."""
    report = whole()
    settings = {**report.settings, "skipped_steps": {"student": "2 of 80"}}
    assert "2 of 80 steps of the student were skipped" in " ".join(replace(report, settings=settings).verdict())
    assert "2 of 80" in html(replace(report, settings=settings))


@pytest.mark.parametrize("metrics", [["accuracy", "auc"], ["auc"]])
def test_a_run_whose_eval_split_has_one_class(metrics: list[str], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The whole way: a traceback, a page without a plot, and a sentence about missing labels."""
    train, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    for path, names in ((train, ("negative", "positive")), (validation, ("positive",))):
        lines = [f"the film was {('awful', 'great')[name == 'positive']},{name}" for name in names for _ in range(8)]
        path.write_text("\n".join(["sentence,label", *lines]) + "\n")
    data = {"path": {"train": str(train), "validation": str(validation)}, "columns": {"text": "sentence"}}
    report = run(write_recipe(data=data, evaluation={"metrics": metrics}, training={"max_steps": 1}))
    assert report.student.undefined == {"auc": ONE_CLASS}
    said = " ".join(report.verdict())
    assert "without labels" not in said
    assert ("auc is not defined here" in said) is (metrics[0] == "auc")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "could not be drawn" not in page
    assert ONE_CLASS in page
