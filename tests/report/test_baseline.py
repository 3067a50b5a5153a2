"""What is trained on labels alone draws from labelled rows; a baseline does so for as many steps, and at its best."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from reports import model, regression, several_seeds, whole
from runs import WriteRecipe, run, same, weights

from hf_distill.errors import UserError
from hf_distill.objectives import DecoupledKL, KLDivergence, Labels
from hf_distill.recipe.reader import load_recipe
from hf_distill.report.best import Best
from hf_distill.report.report import Report
from hf_distill.report.text import rows
from hf_distill.run.dry_run import check
from hf_distill.training.labelled import drawn_from, has_label, label_objective, on_labels_alone, same_steps, steps_of

# Every fourth of 64 train rows has a label.
LABELLED = 16


@pytest.fixture
def partly_labelled(sentiment_csv: Any, tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Paths of the data with few labels, and of the labelled rows alone."""
    with sentiment_csv.train.open(encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    labelled = [row for index, row in enumerate(every) if index % 8 < 2]
    some = [row if index % 8 < 2 else {**row, "label": ""} for index, row in enumerate(every)]
    paths = {}
    for name, content in (("some", some), ("labelled", labelled)):
        paths[name] = tmp_path / f"{name}.csv"
        with paths[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["sentence", "label"])
            writer.writeheader()
            writer.writerows(content)
    both = [{"train": str(path), "validation": str(sentiment_csv.validation)} for path in paths.values()]
    return both[0], both[1]


# --- which rows -------------------------------------------------------------------------------------------------------


def test_a_row_has_a_label_whatever_its_labels_are() -> None:
    """A row taken for labelled adds nothing to its batch; one taken for unlabelled is never learned from."""
    from datasets import Dataset

    nan = float("nan")
    columns: dict[str, tuple[list[Any], list[bool]]] = {
        "classes": ([0, -100, 3, None], [True, False, True, False]),
        "values": ([0.0, nan, -5.0, None], [True, False, True, False]),
        "binary": ([[0.0, 1.0], [nan, nan], [nan, 0.0], []], [True, False, True, False]),
        "tokens": ([[-100, 2, -1], [-100, -1], [-1, -1, 0], [-100]], [True, False, True, False]),
        "several values": ([[[0.5], [nan]], [[nan]], None, [[1.0]]], [True, False, False, True]),
    }
    for name, (values, wanted) in columns.items():
        split = Dataset.from_dict({"labels": values})
        assert has_label(split).tolist() == wanted, name
        assert has_label(split.select([3, 0])).tolist() == [wanted[3], wanted[0]], name
    assert has_label(Dataset.from_dict({"input_ids": [[1], [2]]})).tolist() == [True, True]  # masks are drawn later


def test_only_trainings_on_labels_alone_leave_rows_out() -> None:
    """A student that lost the rows without labels would lose what the teacher says about them."""
    from datasets import Dataset

    split = Dataset.from_dict({"labels": [0, -100, 1]})
    assert on_labels_alone([Labels(), DecoupledKL()])
    assert not on_labels_alone([Labels(), KLDivergence()])
    assert drawn_from(split, [Labels()])["labels"] == [0, 1]
    assert drawn_from(split, [Labels(), KLDivergence()]) is split


def test_teacher_and_baseline_learn_from_labelled_rows_as_if_there_were_no_others(
    partly_labelled: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Most batches without a label: the teacher learns little, and the baseline loses against a student that had every
    row. Both are to be the models that a run on the labelled rows alone trains in as many steps."""
    some, labelled = partly_labelled
    found = {}
    for name, paths, steps in (("some", some, None), ("labelled", labelled, 8)):
        path = write_recipe(
            data={"path": paths, "columns": {"text": "sentence"}},
            teacher={
                "name": "finetuned",
                "model": str(make_model("bert-bare", layers=2)),
                "training": {"num_train_epochs": 2},
                "output_dir": str(tmp_path / name),
            },
            student={"name": "pretrained", "model": str(make_model("bert-bare", layers=2))},
            report={"baseline": True, "latency": False},
            training={"output_dir": str(tmp_path / f"out-{name}"), **({"max_steps": steps} if steps else {})},
        )
        found[name] = run(path)
    (teacher,) = (tmp_path / "some").iterdir()
    (alone,) = (tmp_path / "labelled").iterdir()
    assert teacher.name == alone.name
    assert same(weights(teacher), weights(alone))
    assert found["some"].teacher.metrics == found["labelled"].teacher.metrics
    assert found["some"].baseline.metrics == found["labelled"].baseline.metrics
    histories = found["some"].history
    assert steps_of(histories["student"]) == steps_of(histories["baseline"]) == 8  # 64 rows in batches of 8
    assert steps_of(histories["teacher"]) == 4  # two epochs of 16 rows
    own = {log["step"]: log["loss"] for log in histories["baseline"] if "loss" in log}
    assert own == {log["step"]: log["loss"] for log in found["labelled"].history["baseline"] if "loss" in log}
    assert sum("eval_runtime" in log for log in histories["baseline"]) >= 4
    assert found["some"].settings["train_rows_with_label"] == LABELLED
    assert found["some"].settings["eval_rows_with_label"] == 32
    best = found["some"].best["baseline"]
    assert best.value == max(log["eval_accuracy"] for log in histories["baseline"] if "eval_accuracy" in log)
    assert (best.steps, best.evaluations) == (8, 4)
    assert Report.load(tmp_path / "out-some").best == found["some"].best


def test_how_many_labels_there_are_is_said(
    partly_labelled: Any, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column that was read as empty would turn a run into one without labels, and nobody would see it."""
    data = {"path": partly_labelled[0], "columns": {"text": "sentence"}}
    path = write_recipe(data=data, training={"max_steps": 1}, report={"baseline": True, "latency": False})
    assert "labels      16 of 64 train rows" in check(load_recipe(path))
    run(path)
    said = capsys.readouterr().out
    assert "16 of 64 train rows and 32 of 32 eval rows" in said
    assert said.count("on labels alone: batches from the 16 of 64 rows") == 1  # the baseline's, not the student's


def test_a_baseline_without_a_batch_is_told_before_the_student_is_trained(
    partly_labelled: Any, write_recipe: WriteRecipe
) -> None:
    """Its labelled rows do not fill a batch: it would fail hours later, when the student is done."""
    data = {"path": partly_labelled[0], "columns": {"text": "sentence"}}
    training = {"dataloader_drop_last": True, "per_device_train_batch_size": 32}
    with pytest.raises(UserError, match=r"16 examples with a label for batches of 32") as error:
        run(write_recipe(data=data, training=training, report={"baseline": True, "latency": False}))
    assert "training.dataloader_drop_last" in str(error.value)


def test_a_trainer_on_labels_alone_says_that_rows_have_none(
    make_model: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """In Python nobody drops rows: without a word the batches hold as few labels, or none and a loss of 0."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    from hf_distill import DistillationArguments, DistillationTrainer

    student = AutoModelForSequenceClassification.from_pretrained(make_model("bert", layers=2))

    def trainer(labels: list[int]) -> DistillationTrainer:
        data = Dataset.from_dict({"input_ids": [[2, 5, 3]] * len(labels), "labels": labels})
        args = DistillationArguments(output_dir=str(tmp_path), report_to=[])
        return DistillationTrainer(student, args, objectives=[Labels()], train_dataset=data)

    trainer([0, 1])
    assert "have one" not in caplog.text
    trainer([0, -100, -100])
    assert "only 1 of the 3 rows" in caplog.text
    with pytest.raises(ValueError, match="needs labels, but the train split has none"):
        trainer([-100, -100])


# --- as long, and judged as often -------------------------------------------------------------------------------------


def test_a_baseline_on_fewer_rows_is_as_long_and_its_best_can_be_seen() -> None:
    """Fewer rows are shorter epochs: with the student's epochs it learns less; judged every epoch it takes for ever."""
    history = [{"step": 300, "eval_runtime": 1.0}, {"step": 600, "eval_runtime": 1.0}, {"step": 600, "train_loss": 0.1}]
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    found = same_steps(history, epochs, eval_rows=1000, batch=32)
    assert found == {
        "max_steps": 600,
        "eval_strategy": "steps",
        "eval_steps": 60,
        "save_strategy": "steps",
        "save_steps": 60,
    }
    assert same_steps(history, epochs, eval_rows=10**6, batch=32)["eval_steps"] == 150  # dear: four times
    often = [{"step": step, "eval_runtime": 1.0} for step in range(10, 610, 10)]
    assert same_steps(often, epochs, eval_rows=1000, batch=32)["eval_steps"] == 10  # as often as the student
    plateau = {**epochs, "lr_scheduler_type": "reduce_lr_on_plateau"}
    assert same_steps(history, plateau, eval_rows=1000, batch=32)["eval_steps"] == 300  # others would change its rate
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 100}
    assert "save_steps" not in same_steps(history, steps, eval_rows=1000, batch=32)
    best = {**steps, "load_best_model_at_end": True}
    assert same_steps(history, best, eval_rows=1000, batch=32)["save_steps"] == 60  # the best is among the saved ones


def test_the_baseline_has_the_label_loss_of_its_student() -> None:
    """A student with smoothed labels would win by the smoothing; one at weight 0.5 against clipped gradients of 1."""
    assert label_objective([KLDivergence(), Labels(weight=0.3, label_smoothing=0.1)]) == Labels(label_smoothing=0.1)
    assert label_objective([KLDivergence()]) == Labels()


# --- what is claimed --------------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    return " ".join(report.verdict())


def at_best(value: float) -> dict[str, Best]:
    return {"baseline": Best(value, 40, 60, 10)}


def test_help_is_claimed_against_the_best_of_the_baseline() -> None:
    """A baseline trained until it had forgotten would make every teacher look good."""
    last = model(1, None, accuracy=0.80)  # the student: 83.1, noise 0.6 points
    worse = whole(baseline=last, best=at_best(0.84))
    assert worse.gain == pytest.approx(0.031)
    assert worse.gain_over_best == pytest.approx(-0.009)
    assert not worse.shows_help
    text = verdict(worse)
    assert "does not show that the teacher helped: +3.1 points" in text
    assert "-0.9 points compared with that student's best evaluation during training (84.0 at step 40 of 60)" in text
    assert "The teacher helped" not in text
    within = whole(baseline=last, best=at_best(0.829))
    assert not within.shows_help
    assert "The teacher helped" not in verdict(within)
    still = whole(baseline=last, best=at_best(0.81))
    assert still.shows_help
    assert "The teacher helped: +3.1 points" in verdict(still)
    assert "It is +2.1 points compared with that student's best evaluation" in verdict(still)
    assert "best evaluation" not in verdict(whole(baseline=last, best=at_best(0.80)))


def test_of_errors_the_best_is_the_lowest() -> None:
    """The highest error of a baseline would be the easiest to beat."""
    report = regression(gain_error=0.01, best=at_best(0.45))  # student 0.50, baseline 0.60 at its end
    assert report.gain_over_best == pytest.approx(0.05)
    assert "does not show that the teacher helped" in verdict(report)
    assert regression(gain_error=0.01, best=at_best(0.7)).gain_over_best == pytest.approx(-0.1)


def test_every_seed_has_its_own_best() -> None:
    """One lucky evaluation of the first seed is not the best of the others."""
    from dataclasses import replace

    report = several_seeds((0.83, 0.84, 0.83), (0.80, 0.81, 0.80))
    seeds = tuple(replace(seed, best=Best(0.835, 5, 60, 10)) for seed in report.seeds)
    report = replace(report, seeds=seeds)
    assert report.gain_over_best == pytest.approx((0.83 + 0.84 + 0.83) / 3 - 0.835)
    assert "does not show that the teacher helped" in verdict(report)
    assert "mean of 3 seeds" in verdict(report)


def test_the_best_has_a_row_of_its_own() -> None:
    """Read in the table, the baseline's end alone would be taken for all it could do."""
    table = {row.label: row.cells for row in rows(whole(best=at_best(0.84)))}
    assert table["best evaluation during training"] == {"teacher": "-", "student": "-", "baseline": "84.0 %"}
    assert "best evaluation during training" not in {row.label for row in rows(whole())}


def test_a_seed_that_diverged_is_said() -> None:
    """ "Over 2 seeds it is 81.0" says nothing of the third, whose training diverged: the method looks stable."""
    report = several_seeds((0.8, float("nan"), 0.82), (0.7, 0.71, 0.72))
    assert "Seed 43 has no finite accuracy" in verdict(report)
    assert "no finite" not in verdict(several_seeds((0.8, 0.81, 0.82), (0.7, 0.71, 0.72)))
