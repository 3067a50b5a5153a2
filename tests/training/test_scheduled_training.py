"""What a training makes of schedules: the logged losses, to the digit. In recipes: `test_schedule.py`."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariants.cases import make_rows, make_trainer, split, train

from hf_distill import parallel
from hf_distill.objectives import KLDivergence, Labels, LogitsMSE, Schedule
from hf_distill.objectives.schedule import number

STEPS = 8


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Schedule(start=4.0, end=1.0), [4.0, 3.7, 2.5, 1.3, 1.0]),
        (Schedule(start=4.0, end=1.0, over=0.5), [4.0, 3.4, 1.0, 1.0, 1.0]),
        (Schedule(start=4.0, end=1.0, over=20), [4.0, 2.5, 1.0, 1.0, 1.0]),
        (Schedule(start=0.0, end=2.0, shape="cosine"), [0.0, 0.04894, 1.0, 1.95106, 2.0]),
        (Schedule(start=0.0, end=1.0, over=0.5, shape="constant"), [0.0, 0.0, 1.0, 1.0, 1.0]),
        (Schedule(start=1.0, end=0.0, over=200), [1.0, 0.95, 0.75, 0.55, 0.5]),
    ],
)
def test_values(schedule: Schedule, wanted: list[float]) -> None:
    """After 0, 10, 50, 90 and 100 of 100 steps, worked out by hand; `over` is a share up to 1, and steps above it."""
    assert [schedule.at(step, 100) for step in (0, 10, 50, 90, 100)] == pytest.approx(wanted, abs=1e-5)


def test_one_is_the_whole_training() -> None:
    """`over: 1` read as one step would drop the start value after the first of ten thousand steps."""
    assert Schedule(start=0.0, end=1.0, over=1).at(1, 10_000) == pytest.approx(1e-4)
    assert Schedule(start=0.0, end=1.0).at(0, 0) == 1.0  # outside of a training


def test_objective_at() -> None:
    """Values replaced in place would make the next step start from the last one's."""
    objective = KLDivergence(weight=Schedule(start=0.0, end=2.0), temperature=Schedule(start=4.0, end=2.0, over=500))
    assert objective.at(50, 100) == KLDivergence(weight=1.0, temperature=3.8)
    assert objective.at_end() == KLDivergence(weight=2.0, temperature=2.0)
    assert isinstance(objective.weight, Schedule)
    plain = KLDivergence(weight=0.5)
    assert plain.at(1, 2) is plain
    assert plain.at_end() is plain
    with pytest.raises(TypeError, match=r"call objective\.at"):
        number(objective.weight)


@pytest.mark.parametrize("field", ["start", "end"])
def test_what_no_weight_can_be(field: str) -> None:
    """A negative weight pushes the student away from its teacher, a temperature of 0 is a division by it."""
    with pytest.raises(ValueError, match=r"at least 0|0 or more"):
        KLDivergence(weight=Schedule(**{"start": 1.0, "end": 1.0, field: -0.1}))
    with pytest.raises(ValueError, match="above 0"):
        KLDivergence(temperature=Schedule(**{"start": 1.0, "end": 1.0, field: 0.0}))
    KLDivergence(weight=Schedule(**{"start": 1.0, "end": 1.0, field: 0.0}))


def kl(student: Any, teacher: Any, temperature: float) -> float:
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True) for x in (teacher, student))
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean())


def scheduled(directory: Path, **settings: Any) -> Any:
    """Return a trainer whose student does not move: what changes is the objective alone."""
    terms = [
        KLDivergence(weight=Schedule(start=0.0, end=1.0, over=4), temperature=Schedule(start=8.0, end=2.0)),
        LogitsMSE(weight=Schedule(start=0.5, end=0.1, over=0.5, shape="cosine")),
        Labels(weight=Schedule(start=1.0, end=0.0, over=0.25, shape="constant")),
    ]
    rows = make_rows("classification", 8)
    defaults = {"rows": rows, "terms": terms, "learning_rate": 0.0, "max_steps": STEPS, **split(2)}
    return make_trainer("classification", directory, **{**defaults, **settings})


def expected(trainer: Any) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return the logs of every step, and an evaluation of the training data, from the formulas."""
    rows = make_rows("classification", 8)
    with torch.no_grad():
        ids = [torch.tensor([row["input_ids"]]) for row in rows]
        s, t = (
            np.concatenate([m.eval()(input_ids=one).logits for one in ids]) for m in (trainer.model, trainer.teacher)
        )
    mse = float(((s - t) ** 2).mean())
    labelled = [(logits, row["labels"]) for logits, row in zip(s, rows, strict=True) if row["labels"] >= 0]
    labels = float(np.mean([math.log(np.exp(logits).sum()) - logits[label] for logits, label in labelled]))

    def values(temperature: float, *weights: float) -> dict[str, float]:
        each = (kl(s, t, temperature), mse, labels)
        names = ("objective/kl", "objective/logits_mse", "objective/labels")
        return {"loss": float(np.dot(weights, each)), **dict(zip(names, each, strict=True))}

    logs = []
    for step in range(STEPS):
        cosine = 0.5 + (0.1 - 0.5) * (1 - math.cos(math.pi * min(step / 4, 1))) / 2
        logs.append(values(8 - 6 * step / 8, min(step / 4, 1), cosine, float(step < 2)))
    return logs, values(2.0, 1.0, 0.1, 0.0)


def test_training_follows_and_evaluation_takes_the_end(tmp_path: Path) -> None:
    """A schedule that counts micro-batches runs four times too fast; one that evaluation follows makes the best
    checkpoint that with the smallest weights."""
    trainer = scheduled(tmp_path, eval_strategy="steps", eval_steps=3)
    trainer.eval_dataset = trainer.train_dataset
    wanted, end = expected(trainer)
    before = trainer.evaluate()
    record = train(trainer)
    assert len(record.logs) == STEPS
    for found, values in zip(record.logs, wanted, strict=True):
        assert {name: found[name] for name in values} == pytest.approx(values, rel=1e-5)
    evaluations = [before, *(log for log in trainer.state.log_history if "eval_loss" in log), trainer.evaluate()]
    assert len(evaluations) == 5  # before, after steps 3, 6 and 8, and after
    for found in evaluations:
        assert {name: found[f"eval_{name}"] for name in end} == pytest.approx(end, rel=1e-9)


def test_evaluation_takes_the_end_of_a_schedule_that_is_longer_than_the_training(tmp_path: Path) -> None:
    """Taken at "the last step", a warm-up over 1000 steps would have hardly begun: evaluations of two trainings of
    different lengths could not be compared."""
    terms = [KLDivergence(temperature=Schedule(start=8.0, end=2.0, over=1000)), Labels()]
    long = make_trainer("classification", tmp_path, terms=terms, max_steps=1)
    plain = make_trainer("classification", tmp_path, terms=[KLDivergence(temperature=2.0), Labels()], max_steps=1)
    name = "eval_objective/kl"
    assert long.evaluate()[name] == plain.evaluate()[name]
    assert long.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_a_schedule_that_does_not_get_to_its_end_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`over: 1000` of a training of 8 steps keeps a temperature at 8 that was to go to 2, and judges it at 2."""
    terms = [
        KLDivergence(temperature=Schedule(start=8.0, end=2.0, over=1000)),
        Labels(weight=Schedule(start=1.0, end=0.0, over=STEPS + 1, shape="constant")),
        LogitsMSE(weight=Schedule(start=1.0, end=0.0, over=STEPS)),
    ]
    train(scheduled(tmp_path / "first", terms=terms))
    told = [record.message for record in caplog.records if "over" in record.message]
    assert told == [
        "kl: temperature is to go from 8 to 2 over 1,000 steps, and the training has 8: it ends at 7.952, and "
        "evaluations take 2. Set over to at most 8, or to a share of the training (1 is all).",
        "labels: weight is to be 1, then 0 after 9 steps, and the training has 8: it ends at 1, and evaluations "
        "take 0. Set over to at most 8, or to a share of the training (1 is all).",
    ]
    caplog.clear()
    train(scheduled(tmp_path / "short enough"))
    monkeypatch.setattr(parallel, "is_first", lambda: False)
    train(scheduled(tmp_path / "another process", terms=terms))
    assert not [record for record in caplog.records if "over" in record.message]


def test_resumed_schedule_goes_on(tmp_path: Path) -> None:
    """A warm-up that begins again after a crash is another training."""
    settings: dict[str, Any] = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1}
    whole = train(scheduled(tmp_path / "whole", **settings))
    assert len(set(whole.losses)) == STEPS
    for step in (1, 5):
        shutil.copytree(tmp_path / f"whole/checkpoint-{step}", tmp_path / f"{step}/checkpoint-{step}")
        rest = train(scheduled(tmp_path / str(step), **settings), resume_from_checkpoint=True)
        assert rest.losses == whole.losses[step:]
        assert all(torch.equal(rest.weights[name], value) for name, value in whole.weights.items())
