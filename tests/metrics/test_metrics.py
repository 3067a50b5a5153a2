"""Metrics: the published numbers, on the rows that have a label, and refusals before anything is trained."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_distill.errors import UserError
from hf_distill.metrics.score import check, greater_is_better, score
from hf_distill.metrics.table import DEFAULTS, METRICS, Kind

NAN = math.nan
# Predicted 1, 1, 0, 1, 0 against 1, 0, 0, 1, 1: 2 true positives, 1 false positive, 1 false negative, 1 true negative.
TWO = np.array([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
TWO_LABELS = np.array([1, 0, 0, 1, 1])
# Predicted 0, 1, 1, 2 against 0, 1, 2, 2.
THREE = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
THREE_LABELS = np.array([0, 1, 2, 2])
# Predicted [1, 0], [1, 1], [0, 0] against [1, 0], [1, 0], [1, 0].
MULTI = np.array([[2.0, -1.0], [1.0, 0.5], [-1.0, -2.0]])
MULTI_LABELS = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 3 / 5),
        ("f1", 2 / 3),
        ("precision", 2 / 3),
        ("recall", 2 / 3),
        ("f1_macro", (2 / 3 + 1 / 2) / 2),
        ("f1_micro", 3 / 5),
        ("balanced_accuracy", (2 / 3 + 1 / 2) / 2),
        ("mcc", (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
        ("auc", 4 / 6),  # of the 3 x 2 pairs, the positive has the greater difference of logits in 4
    ],
)
def test_two_classes_by_hand(name: str, value: float) -> None:
    """With two classes the positive one is the second: macro F1 under the name of F1 is no number anyone published."""
    assert score([name], TWO, TWO_LABELS, "classes")[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 3 / 4),
        ("f1", (1 + 2 / 3 + 2 / 3) / 3),
        ("f1_macro", (1 + 2 / 3 + 2 / 3) / 3),
        ("f1_micro", 3 / 4),
        ("precision", (1 + 1 / 2 + 1) / 3),
        ("recall", (1 + 1 + 1 / 2) / 3),
        ("balanced_accuracy", (1 + 1 + 1 / 2) / 3),
        # Each class against the rest, ties count half; class 2 has .245 and .665 against .090 and .245.
        ("auc", (1 + (1 + 1 / 2 + 1) / 3 + (1 + 1 / 2 + 1 + 1) / 4) / 3),
    ],
)
def test_three_classes_by_hand(name: str, value: float) -> None:
    """More classes: the plain mean over classes, so that a rare class that a student loses is seen."""
    assert score([name], THREE, THREE_LABELS, "classes")[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("f1_micro", 2 * 2 / (2 * 2 + 1 + 1)),
        ("f1_macro", (4 / 5 + 0) / 2),
        ("precision", 2 / 3),
        ("recall", 2 / 3),
        ("exact_match", 1 / 3),
        ("hamming_loss", 2 / 6),
    ],
)
def test_several_labels_by_hand(name: str, value: float) -> None:
    """A label is predicted where its logit is positive: `argmax` would predict exactly one for every example."""
    assert score([name], MULTI, MULTI_LABELS, "binary")[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_values_by_hand(shape: tuple[int, ...]) -> None:
    """A `(rows, 1)` head minus `(rows,)` labels broadcasts to a square: an error that grows with the data set."""
    found = score(
        ["pearson", "spearman", "mse", "mae", "r2"], np.array([1.0, 2.0, 4.0]).reshape(shape), np.arange(3.0), "values"
    )
    assert found["pearson"] == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["mse"] == pytest.approx((1 + 1 + 4) / 3)
    assert found["mae"] == pytest.approx(4 / 3)
    assert found["r2"] == pytest.approx(1 - 6 / 2)


def test_several_values_are_averaged_over_columns() -> None:
    """Correlated over all columns at once, two outputs of different scale look correlated whatever the model says."""
    logits = np.array([[0.0, 102.0], [1.0, 101.0], [2.0, 100.0]])
    labels = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    assert score(["pearson", "spearman"], logits, labels, "values") == pytest.approx({"pearson": 0.0, "spearman": 0.0})


@pytest.mark.parametrize(
    ("kind", "logits", "labels"),
    [
        ("classes", TWO, TWO_LABELS),
        ("classes", THREE, THREE_LABELS),
        ("binary", MULTI, MULTI_LABELS),
        ("values", np.arange(5.0)[:, None] ** 2, np.arange(5.0)),
    ],
)
def test_rows_without_label_do_not_count(kind: Kind, logits: Any, labels: Any) -> None:
    """-100 taken for a class, or NaN for a value, moves every metric by the share of unlabelled rows."""
    names = [name for name, metric in METRICS.items() if kind in metric.kinds]
    nothing = labels[:1].copy()
    nothing[..., :1] = -100 if kind == "classes" else NAN  # one missing of several takes the row out
    more = score(names, np.concatenate([logits[:1] - 9, logits]), np.concatenate([nothing, labels]), kind)
    np.testing.assert_equal(more, score(names, logits, labels, kind))


# Computed by their tasks, from figures, generated texts, or the windows of a question.
BY_THE_TASK = {"tokens", "texts", "spans"}


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if set(metric.kinds) - BY_THE_TASK])
def test_every_metric_is_a_plain_float_best_at_the_truth(name: str) -> None:
    """A numpy number cannot be written to the report's JSON; a wrong `greater_is_better` picks the worst checkpoint."""
    for kind in set(METRICS[name].kinds) - BY_THE_TASK:
        if kind == "classes":
            labels: Any = np.array([0, 1, 2, 1, 0, 2])
            truth = np.eye(3)[labels]
        elif kind == "tags":
            labels = np.array([[0, 1, -100], [2, 0, 1], [0, 0, 2], [1, 2, 0]])
            truth = np.eye(3)[labels.clip(0)]
        else:
            labels = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
            truth = labels if kind == "values" else labels * 2 - 1
        tags = ("O", "B-X", "I-X") if kind == "tags" else None
        best = score([name], truth, labels, kind, tags)[name]
        worse = score([name], np.roll(truth, 1, axis=0), labels, kind, tags)[name]
        assert type(best) is float
        assert best == (1.0 if greater_is_better(name) else 0.0)
        assert (worse < best) if greater_is_better(name) else (worse > best)


def test_order_is_kept_and_defaults_exist() -> None:
    """The first metric is the headline of the report: sorted by name, another one would be compared."""
    assert list(score(["mcc", "accuracy", "f1"], TWO, TWO_LABELS, "classes")) == ["mcc", "accuracy", "f1"]
    for kind, names in DEFAULTS.items():
        check(names, kind, 2, ("O", "B-X"))


@pytest.mark.parametrize("kind", ["classes", "binary", "values"])
def test_undefined_is_nan_and_silent(kind: Kind) -> None:
    """A diverged model's NaN logits have an `argmax` of 0 and thus an accuracy; hundreds of warnings hide the rest."""
    names = [name for name, metric in METRICS.items() if kind in metric.kinds]
    labels = np.array([0, 1, 1]) if kind == "classes" else np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(math.isnan, score(names, np.full((3, 2), NAN), labels, kind).values()))
        assert all(map(math.isnan, score(names, np.zeros((3, 2))[:0], labels[:0], kind).values()))
        constant = score(names, np.ones((3, 2)), labels, kind)
        one_row = score(names, np.ones((1, 2)), labels[:1], kind)
    if kind == "values":
        assert math.isnan(constant["pearson"])
        assert math.isnan(constant["spearman"])
        assert math.isnan(one_row["pearson"])
    else:
        assert math.isnan(one_row["auc"])  # one class only


def test_auc_does_not_saturate() -> None:
    """Probabilities of confident models round to 1.0 and tie; the ranking must come from the logits."""
    logits = np.array([[-50.0, 50.0], [-60.0, 60.0]])
    assert score(["auc"], logits, np.array([0, 1]), "classes") == {"auc": 1.0}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("acuracy", "classes", "Did you mean 'accuracy'"),
        ("accuracy", "values", "Use pearson"),
        ("accuracy", "binary", "exact_match"),
        ("pearson", "classes", "Use accuracy"),
        ("exact_match", "classes", "Use accuracy"),
    ],
)
def test_misfits_are_refused(name: str, kind: Kind, words: str) -> None:
    """Accuracy of a regression is 0 or 1 at random: it must be refused before hours of training, not after."""
    with pytest.raises(UserError, match=words) as caught:
        check(["f1" if kind != "values" else "mse", name], kind, 3)
    assert caught.value.key == "metrics"


# --- the evaluate library ---------------------------------------------------------------------------------------------

SCRIPT = """
import datasets
import evaluate


class Tiny(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("{type}")
        if self.config_name == "multilabel":
            kind = datasets.Sequence(kind)
        features = datasets.Features({{"predictions": kind, "references": kind}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        right = sum(p == r for p, r in zip(predictions, references))
        return {results}
"""


def script(directory: Path, results: str, name: str = "tiny", type_: str = "int32") -> str:
    place = directory / name
    place.mkdir()
    (place / f"{name}.py").write_text(SCRIPT.format(results=results, type=type_), encoding="utf-8")
    return f"evaluate/{place}"


def test_evaluate_script_from_disk(tmp_path: Path) -> None:
    """The user's own metric must see class indices of labelled rows, in the order of the rows."""
    name = script(tmp_path, "{'right': right}")
    check([name], "classes", 2)
    found = score(["accuracy", name], TWO, np.array([1, 0, 0, -100, 1]), "classes")
    assert found == {"accuracy": 0.5, name: 2.0}
    assert score([name], MULTI, MULTI_LABELS, "binary") == {name: 1.0}


def test_evaluate_script_of_values(tmp_path: Path) -> None:
    """A regression head is `(rows, 1)`; metric scripts want `(rows,)`."""
    name = script(tmp_path, "{'right': right}", "values", "float32")
    check([name], "values", 1)
    assert score([name], np.array([[1.0], [2.0]]), np.array([1.0, 3.0]), "values") == {name: 1.0}


def test_evaluate_with_several_numbers_asks_which(tmp_path: Path) -> None:
    """Taking the first of several numbers makes the headline metric depend on the script's order of keys."""
    name = script(tmp_path, "{'right': right, 'wrong': len(references) - right}", "several")
    with pytest.raises(UserError, match="#wrong"):
        check([name], "classes", 2)
    check([f"{name}#wrong"], "classes", 2)
    assert score([f"{name}#wrong"], TWO, TWO_LABELS, "classes") == {f"{name}#wrong": 2.0}


def test_evaluate_failures_are_one_line(tmp_path: Path) -> None:
    """A metric that cannot be had, or fails on this task, must say so when the recipe is checked."""
    with pytest.raises(UserError, match="from the Hub") as caught:
        check(["evaluate/accuracy"], "classes", 2)
    assert caught.value.key == "metrics"
    with pytest.raises(UserError, match="no such file"):
        check([f"evaluate/{tmp_path}/none"], "classes", 2)
    broken = script(tmp_path, "right / 0", "broken")
    with pytest.raises(UserError, match="division by zero"):
        check([broken], "classes", 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", True),
        ("mse", False),
        ("evaluate/accuracy", True),
        ("evaluate/mse", False),
        ("evaluate/user/my_mae", False),
        ("evaluate/some/where/wer.py", False),
        ("evaluate/multi#mse", False),
        ("evaluate/mse_suite#r2", True),
        ("evaluate/answer", True),
    ],
)
def test_greater_is_better(name: str, expected: bool) -> None:
    """The wrong direction reports a loss as a gain and keeps the worst checkpoint."""
    assert greater_is_better(name) is expected


def test_reading_the_table_imports_nothing_heavy() -> None:
    """`--check` of a recipe's text must not wait for scikit-learn."""
    heavy = ("sklearn", "scipy", "torch", "evaluate")
    code = f"import sys, hf_distill.metrics.score; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
