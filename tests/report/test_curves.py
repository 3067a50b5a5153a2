"""Charts compare like with like: one quantity a panel, one scale a plot, gaps where there is no number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from reports import RECIPE, whole

from hf_distill.objectives import KLDivergence, Labels
from hf_distill.report import drawing, plots
from hf_distill.report.calibration import Calibration, Confusion
from hf_distill.report.curves import Quantity, panels

STAGES = RECIPE.replace(
    RECIPE[RECIPE.index("objectives:") : RECIPE.index("training:")],
    """stages:
  - objectives:
      - {name: kl, weight: 0.5, temperature: 2.0}
      - {name: labels, weight: 0.5, label_smoothing: 0.1}
  - objectives:
      - {name: kl, weight: 0.9, temperature: 4.0}
      - {name: labels, weight: 0.1, label_smoothing: 0.1}
""",
)


def history(**values: float) -> list[dict[str, Any]]:
    """Return a log whose every value says what quantity it is."""
    names = {name.replace("_of_", "/"): value for name, value in values.items()}
    return [{"step": step, **names} for step in (1, 2)] + [
        {"step": 2, **{f"eval_{name}": value for name, value in names.items()}, "eval_accuracy": -1.0}
    ]


def test_no_panel_shows_two_quantities() -> None:
    """A student's weighted loss beside a baseline's label loss makes it look twice as good. So do two temperatures of
    `kl`, or smoothed labels beside plain ones. Here all values of one quantity are equal, and no two quantities are."""
    report = whole(
        recipe=STAGES,
        history={
            "teacher": history(loss=1.0, objective_of_labels=1.0),  # plain labels, at weight 1
            "student stage 1": history(loss=2.0, objective_of_kl=3.0, objective_of_labels=4.0),
            "student stage 2": history(loss=5.0, objective_of_kl=6.0, objective_of_labels=4.0),
            "baseline stage 1": history(loss=4.0, objective_of_labels=4.0),
            "baseline stage 2": history(loss=4.0, objective_of_labels=4.0),
            "student seed 43 stage 1": history(loss=2.0, objective_of_kl=3.0, objective_of_labels=4.0),
        },
    )
    found = panels(report)
    shown = {
        quantity.title: {value for curve in every.values() for value in curve.values}
        for quantity, every in found.items()
    }
    assert shown == {
        "objective/labels, teacher": {1.0},
        "objective/kl, stage 1": {3.0},
        "objective/labels": {4.0},
        "objective/kl, stage 2": {6.0},
        "eval accuracy": {-1.0},
        "eval loss, student, stage 1": {2.0},
        "eval loss, student, stage 2": {5.0},
    }
    labels = found[Quantity("objective/labels")]
    assert {run for run, _ in labels} == {"student", "baseline", "student seed 43"}
    assert labels["student", True].steps == [2, 4]  # the second stage counts on


def test_without_a_recipe_the_student_has_its_loss_to_itself() -> None:
    """A report made in Python has no recipe to look into."""
    both = {
        "student": history(loss=2.0, objective_of_labels=4.0),
        "baseline": history(loss=4.0, objective_of_labels=4.0),
    }
    found = panels(whole(recipe="", history=both))
    assert [quantity.title for quantity in found] == ["objective/labels", "eval accuracy", "eval loss, student"]
    assert {run for run, _ in found[Quantity("loss", "student")]} == {"student"}


@pytest.mark.parametrize("missing", [math.nan, math.inf, None])
def test_what_is_no_number_is_a_gap(missing: float | None) -> None:
    """A line drawn across it would show values that nobody measured; None is how report.json keeps NaN."""
    values = [0.5, missing, 0.3]
    report = whole(history={"student": [{"step": 1 + i, "objective/kl": value} for i, value in enumerate(values)]})
    curve = panels(report)[Quantity("objective/kl")]["student", False]
    assert curve.steps == [1, 2, 3]
    assert math.isnan(curve.values[1])
    assert "Gaps" in next(plot.note for plot in plots.plots(report) if plot.title == "objective/kl")
    nothing = whole(history={"student": [{"step": 1, "objective/kl": missing}]})
    assert panels(nothing) == {}


def test_a_thinned_curve_ends_where_the_training_ended() -> None:
    """The last value is the one that is read off."""
    log = [{"step": step, "objective/kl": 1.0 / step} for step in range(1, 1000)]
    curve = panels(whole(history={"student": log}))[Quantity("objective/kl")]["student", False]
    steps, values = drawing.thinned(curve.steps, curve.values)
    assert len(steps) <= 2 * drawing.POINTS
    assert (steps[-1], values[-1]) == (999, 1.0 / 999)


def test_panels_that_are_left_out_are_told() -> None:
    """A curve that is missing without a word is taken for one that does not exist."""
    log = [{"step": 1, **{f"objective/term_{index}": 1.0 for index in range(9)}}]
    notes = [plot.note for plot in plots.plots(whole(history={"student": log}))]
    assert sum("3 more curves are in report.json" in note for note in notes) == 1


def test_dots_and_shades_have_one_scale() -> None:
    """The dots of two models, or agreement and disagreement, each by a scale of its own, cannot be compared."""
    figure = Figure()
    bins = {
        name: Calibration(0.1, (count, 100, 0), (0.2, 0.6, None), (0.3, 0.5, None))
        for name, count in (("teacher", 50), ("student", 100))
    }
    drawing.draw_calibration(figure, bins)
    teacher, student = (one for one in figure.axes[0].collections if isinstance(one, PathCollection))
    (few, many, _), (first, second, _) = (map(float, dots.get_sizes()) for dots in (teacher, student))
    assert few < many == first == second
    figure = Figure()
    drawing.draw_confusion(figure, Confusion(("a", "b"), ((50, 50), (10, 90))))
    shades = [patch.get_alpha() or 0.0 for patch in figure.axes[0].patches]
    assert shades[0] == shades[1]
    assert shades[2] < shades[0] < shades[3]


def test_steps_without_a_label_do_not_lower_the_curve_of_labels(make_model: Any, tmp_path: Path) -> None:
    """Counted as 0, a student with labels in every second batch seems to have half the loss of its baseline."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    from hf_distill import DistillationArguments, DistillationTrainer

    student, teacher = (
        AutoModelForSequenceClassification.from_pretrained(make_model("bert", seed=seed)) for seed in (0, 1)
    )
    ids = [[2, 5, 6, 3], [2, 7, 8, 3], [2, 9, 5, 3], [2, 6, 7, 3]]
    labels = [0, -100, 1, -100]
    args = DistillationArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=0.0,
        logging_steps=4,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    student.config.hidden_dropout_prob = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = DistillationTrainer(
        student,
        args,
        teacher=teacher,
        objectives=[KLDivergence(), Labels()],
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
    )
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    with torch.no_grad():
        logits = student(input_ids=torch.tensor(ids)).logits.double()
    losses = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([0, 1]), reduction="none")
    assert log["objective/labels"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert log["loss"] == pytest.approx(log["objective/kl"] + losses.sum().item() / 4, rel=1e-3)


def test_a_single_point_is_a_number() -> None:
    """A plot with one dot in it looks broken, and says less than its number."""
    logs = {
        "student": [{"step": 9, "objective/kl": 0.4}, {"step": 9, "eval_accuracy": 0.831, "eval_loss": 0.5}],
        "baseline": [{"step": 9, "eval_accuracy": 0.819}],
        "student seed 43": [{"step": 9, "eval_accuracy": 0.84}],
    }
    alone = Calibration(0.1, (0, 40), (None, 0.9), (None, 0.8))
    one_group = replace(whole().for_whom[0], groups=whole().for_whom[0].groups[:1])
    report = whole(
        history=logs,
        calibration={"student": alone, "teacher": Calibration(0.0, (0, 0), (None, None), (None, None))},
        confusion=Confusion(("yes",), ((40,),)),
        for_whom=(one_group,),
        teacher=replace(whole().teacher, metrics={}, latency=None),
        student=replace(whole().student, metrics={"accuracy": 0.831}),
        baseline=None,
    )
    found = {plot.title: plot for plot in plots.plots(report)}
    assert not any(plot.svg for plot in found.values())
    told = {title: {(one.key, one.value) for one in plot.numbers} for title, plot in found.items()}
    assert told == {
        "Metrics": {("student", "83.1 %")},
        "Latency": {("student", "10.0 ms"), ("student", "160 ms")},
        "objective/kl": {("student", "0.4")},
        "eval accuracy": {("student", "83.1 %, 84.0 %"), ("baseline", "81.9 %")},
        "eval loss, student": {("student", "0.5")},
        "For whom did it get worse? By 'age'": {("teacher", "76.8 %"), ("student", "75.6 %")},
        "Student against teacher": {("student", "40")},
        "Calibration": {("student", "10.0 %")},
    }
    assert "One value, at step 9." in found["eval accuracy"].note


def test_without_a_point_there_is_no_plot() -> None:
    """Empty axes are a riddle."""
    nothing = Calibration(0.0, (0, 0), (None, None), (None, None))
    empty = replace(whole().for_whom[0], groups=())
    report = whole(history={}, calibration={"student": nothing}, confusion=Confusion((), ()), for_whom=(empty,))
    assert [plot.title for plot in plots.plots(report)] == ["Metrics", "Latency"]
