"""For whom it got worse, in whole runs: groups of the data in every task's report, in `--check`, and over seeds."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import NEGATIVE, POSITIVE
from prepared import dataset
from runs import WriteRecipe, run

from hf_distill.cache.example_hashes import NOT_READ
from hf_distill.errors import UserError
from hf_distill.objectives import KLDivergence
from hf_distill.recipe.reader import load_recipe
from hf_distill.report.report import Report
from hf_distill.run.dry_run import check
from hf_distill.run.fit import _own
from hf_distill.run.group_checks import check_groups

pytestmark = pytest.mark.usefixtures("brief_latency")

Row = tuple[str, str, str, float, float]
# So long that the groups are learned if they weigh the same, and the rare one is not if all rows do.
ENOUGH = {
    "max_steps": 80,
    "learning_rate": 8e-3,
    "per_device_train_batch_size": 64,
    "lr_scheduler_type": "linear",
}


def sentences(rows: int, rare: float, seed: int) -> list[Row]:
    """Return sentences with their label, group and the probabilities of a teacher that knows them all.

    In the rare ones the adjective means the opposite, and "plot" or "cast" says so.
    """
    chance = random.Random(seed)
    found = []
    for index in range(rows):
        label, is_rare = index % 2, chance.random() < rare
        words = [chance.choice(("the", "film", "story", "is", "was", "very")) for _ in range(chance.randint(1, 4))]
        words.append(chance.choice((NEGATIVE, POSITIVE)[label != is_rare]))
        words += [("cast", "plot")[label]] * is_rare
        chance.shuffle(words)
        positive = 0.98 if label else 0.02
        name, group = ("negative", "positive")[label], "rare" if is_rare else "common"
        found.append((" ".join(words), name, group, positive, 1 - positive))
    return found


def write(path: Path, rows: list[Row]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "label", "class", "positive", "negative"))
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def with_groups(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe on such sentences: two fifths of the eval rows are rare, and 3 % of those trained on."""

    def recipe(train: int = 1280, held_out: int = 400, **sections: Any) -> Path:
        path = {
            "train": write(tmp_path / "train.csv", sentences(train, 0.03, 1)),
            "validation": write(tmp_path / "validation.csv", sentences(held_out, 0.4, 2)),
        }
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        training = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
        given: dict[str, Any] = {
            "data": {"path": path, "columns": {"text": "sentence", "group": "class"}},
            "teacher": {"name": "given", "columns": {"probabilities": ["positive", "negative"]}},
            "student": {"name": "pretrained", "model": str(make_model("bert", layers=1, **still))},
            "objectives": [{"name": "kl"}],
            "training": {**training, **sections.pop("training", {})},
        }
        return write_recipe(**{**given, **sections})

    return recipe


def test_a_gap_that_distillation_widens_is_told(with_groups: Any, tmp_path: Path) -> None:
    """90 % of the teacher's accuracy kept, and the rest was all of one group."""
    report: Report = run(with_groups(objectives=[{"name": "kl"}], training=ENOUGH))
    by_group, by_class = report.for_whom
    assert (by_group.by, by_group.kind, by_group.metric) == ("class", "group", "accuracy")
    assert [group.name for group in by_group.groups] == ["rare", "common"]
    rare = by_group.groups[0]
    assert (rare.outcome, rare.metrics["teacher"]) == ("worse", 1.0)
    rows = list(csv.DictReader((tmp_path / "validation.csv").open(encoding="utf-8")))
    assert rare.rows == sum(row["class"] == "rare" for row in rows)
    assert rare.metrics["student"] == pytest.approx(right(tmp_path / "out", rows)["rare"])
    assert by_group.distance is not None
    assert by_group.distance.changed("teacher") == 1
    text = " ".join(report.verdict())
    assert "most for 'rare'" in text or "'rare': accuracy" in text
    assert "The gap between the best and the worst group grew" in text
    assert by_group.fairness is not None
    assert by_group.fairness.equalized_odds_difference["teacher"] == 0
    assert by_group.fairness.equalized_odds_difference["student"] > 0.2
    assert by_class.kind == "class"
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    stored = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert "## For whom did it get worse? By 'class'" in card
    assert stored["for_whom"][0]["groups"][0]["outcome"] == "worse"
    assert Report.load(tmp_path / "out").for_whom[0] == by_group


@pytest.mark.parametrize("weights", ["inverse_frequency", "worst_group"])
def test_weighted_groups_close_the_gap(with_groups: Any, weights: Any) -> None:
    """Weights that do not reach the loss, or a report that finds a gap in every student."""
    report: Report = run(with_groups(objectives=[{"name": "kl", "group_weights": weights}], training=ENOUGH))
    by_group = report.for_whom[0]
    assert not by_group.with_outcome("worse")
    assert by_group.distance is not None
    assert by_group.distance.changed("teacher") == 0
    text = " ".join(report.verdict())
    assert "not shown to be worse than the teacher for any of 2 groups of 'class'" in text
    assert "did not change significantly" in text


def test_a_group_that_is_not_there_is_told_before_the_run(with_groups: Any) -> None:
    """A weight for a name with a typo would weigh nothing."""
    assert "group_weights worst_group" in check(
        load_recipe(with_groups(objectives=[{"name": "kl", "group_weights": "worst_group"}]))
    )
    with pytest.raises(UserError, match=r"objectives\[0\]\.group_weights: there is no group 'rar'.*'rare'"):
        check(load_recipe(with_groups(objectives=[{"name": "kl", "group_weights": {"rar": 2.0}}])))


def test_what_a_changed_weight_makes_new() -> None:
    """A training that is found finished although its weights have changed; or a teacher asked again about each row."""
    split = dataset(input_ids=[[1], [2]], length=[1, 1], example_group=["a", "b"], example_weight=[1.0, 2.0])
    own, grouped = (_own(split, [KLDivergence(group_weights=one)]).column_names for one in (None, "worst_group"))
    assert set(grouped) - set(own) == {"example_group"}
    assert "example_weight" in own
    assert set(split.column_names) - set(NOT_READ) == {"input_ids"}


def right(model: Path, rows: list[dict[str, str]]) -> dict[str, float]:
    """Return the accuracy of a saved model on each group."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    student, tokenizer = AutoModelForSequenceClassification.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        inputs = tokenizer([row["sentence"] for row in rows], return_tensors="pt", padding=True)
        guesses = student(**inputs).logits.argmax(-1).tolist()
    found: dict[str, list[bool]] = {}
    for guess, row in zip(guesses, rows, strict=True):
        found.setdefault(row["class"], []).append(student.config.id2label[guess] == row["label"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_seeds_and_baseline(with_groups: Any) -> None:
    """The groups of the first seed alone, or those of a column `class` taken for the classes."""
    short = {"num_train_epochs": 1, "max_steps": 3}
    report: Report = run(with_groups(160, 120, training=short, report={"latency": False, "baseline": True, "seeds": 2}))
    for whom in report.for_whom:
        for group in whom.groups:
            for model in ("student", "baseline"):
                values = [seed.parts[whom.kind][model][group.name] for seed in report.seeds]
                assert group.metrics[model] == pytest.approx(np.mean(values))
                assert group.std[model] == pytest.approx(np.std(values, ddof=1))
    assert "without the teacher it is" in " ".join(report.verdict())


def test_check_says_what_the_report_cannot(with_groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out after the training, a group of three rows, or one that train lacks, cannot be mended."""
    path = with_groups(160, 40)
    rows = sentences(160, 0.0, 1)
    write(path.parent / "train.csv", [*rows, *((*row[:2], "other", *row[3:]) for row in rows[:2])])
    monkeypatch.setattr("hf_distill.run.group_checks.is_here", lambda package: False)
    text = check(load_recipe(path))
    assert "'other' has no rows in the eval split" in text
    assert "'rare' has no rows in the train split" in text
    assert "fewer than 30 eval rows" in text
    assert "pip install 'hf-distill[fairness]'" in text


def test_a_metric_that_has_no_parts_is_refused() -> None:
    """A report without a word on the groups, after hours of training for them."""
    prepared = SimpleNamespace(
        groups=object(), evaluator=SimpleNamespace(names=("evaluate/own",), headline="evaluate/own", has_units=False)
    )
    with pytest.raises(UserError, match="cannot be computed on a part") as caught:
        check_groups(prepared)  # type: ignore[arg-type]
    assert caught.value.key == "columns.group"
