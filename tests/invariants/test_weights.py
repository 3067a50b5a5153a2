"""Weights of examples and groups: they mean what they say, however a step is split."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from invariants.cases import (
    KINDS,
    STEP,
    Record,
    largest_difference,
    make_models,
    make_rows,
    make_trainer,
    objectives,
    split,
    train,
)
from invariants.processes import as_two_processes
from invariants.test_batch_splits import FEATURES, ROUNDING, assert_same, figures
from invariants.worker import GROUPS, WEIGHED, grouped
from prepared import dataset, refused

from hf_distill.data.example_columns import group_numbers
from hf_distill.errors import UserError
from hf_distill.objectives import Contrastive, KLDivergence, Labels, Objective, Relational
from hf_distill.objectives.group_weights import STEP as ETA
from hf_distill.objectives.settled_groups import settle_group_weights
from hf_distill.training.terms import Terms
from hf_distill.training.weighing import FILE, Weighing


def weighed(rows: list[dict[str, Any]], weights: list[float]) -> list[dict[str, Any]]:
    return [{**row, "example_weight": float(weight)} for row, weight in zip(rows, weights, strict=True)]


def one_step(kind: str, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Record, dict[str, float]]:
    """Return the record of one step over all rows, and the figures of an evaluation on them before."""
    whole = {"train_sampling_strategy": "sequential", "max_steps": 1, "per_device_train_batch_size": len(rows)}
    trainer = make_trainer(kind, folder, rows=rows, **{**whole, **settings})
    evaluated = figures(trainer.evaluate(datasets.Dataset.from_list(rows)))
    return train(trainer), {name: value for name, value in evaluated.items() if "agreement" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_weight_2_is_the_row_twice_and_weight_0_is_no_row(kind: str, tmp_path: Path) -> None:
    """A sum that is weighted and a divisor that is not, or the other way round, train at another rate, and only for
    some rows; logits in chunks have their gradient computed apart. Equal weights must change nothing."""
    rows, weights = make_rows(kind, STEP), [1, 2, 0, 1, 0, 3, 1, 1]
    written = [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]
    found, evaluated = one_step(kind, tmp_path, weighed(rows, [7 * weight for weight in weights]))
    wanted, expected = one_step(kind, tmp_path, written)
    rounding = 1e-6 if kind.startswith(("causal-lm", "sequence-to-sequence-t5")) else ROUNDING  # norms in float32
    assert found.losses == pytest.approx(wanted.losses, rel=rounding)
    assert largest_difference(found, wanted) < rounding
    assert evaluated == pytest.approx(expected, rel=1e-9)
    assert found.tokens == [sum(map(int, one_step(kind, tmp_path, rows)[0].tokens))]  # what was read, not what counts


@pytest.mark.parametrize("factor", [1e-50, 1e60])
def test_equal_weights_change_nothing_however_small_or_large(factor: float, tmp_path: Path) -> None:
    """Importance weights may be tiny: 0 in float32, nothing would be learned, and the figures of an evaluation end."""
    rows = make_rows("classification", STEP)
    found, evaluated = one_step("classification", tmp_path, weighed(rows, [factor] * STEP), dtype=torch.float32)
    wanted, expected = one_step("classification", tmp_path, rows, dtype=torch.float32)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5)
    assert largest_difference(found, wanted) < 1e-5
    assert evaluated == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_of_a_weighted_step(kind: str, tmp_path: Path) -> None:
    """Divided by the weights of its micro-batch alone, a light micro-batch would count like a heavy one."""

    def run(batch_size: int) -> Record:
        return train(make_trainer(kind, tmp_path, rows=grouped(kind), num_train_epochs=1, **split(batch_size)))

    whole = run(8)
    for batch_size in (4, 1):
        assert_same(run(batch_size), whole)


@pytest.mark.parametrize("weights", ["inverse_frequency", "worst_group", {"a": 2.0, "c": 0.5}])
def test_splits_of_a_step_with_groups(weights: Any, tmp_path: Path) -> None:
    """A group that is not in every micro-batch would have its loss counted anew in each; layers have another unit."""
    terms: tuple[Objective, ...] = (
        KLDivergence(group_weights=weights),
        Labels(group_weights=weights),
        *FEATURES[:3],
    )

    def run(batch_size: int) -> Any:
        settings = {"rows": grouped("classification"), "terms": terms, "num_train_epochs": 1, **split(batch_size)}
        trainer = make_trainer("classification", tmp_path, **settings)
        return train(trainer), trainer.weighing.log_q

    whole, log_q = run(8)
    for batch_size in (4, 1):
        found, other = run(batch_size)
        assert_same(found, whole)
        torch.testing.assert_close(other, log_q, rtol=0, atol=ROUNDING)


def test_two_processes(tmp_path: Path) -> None:
    """Weights counted on each process, or raised by the losses of its own groups, would make two models of one."""
    found = as_two_processes("weighed", tmp_path)
    assert list(found) == list(WEIGHED)
    for kind, terms in WEIGHED.items():
        settings = {"rows": grouped(kind), "terms": terms, "num_train_epochs": 1, **split(8)}
        trainer = make_trainer(kind, tmp_path, **settings)
        record, log_q, metrics = found[kind]
        assert_same(record, train(trainer))
        torch.testing.assert_close(log_q, trainer.weighing.log_q, rtol=0, atol=ROUNDING)
        trainer.eval_dataset = datasets.Dataset.from_list(grouped(kind)[:13])
        assert figures(metrics) == pytest.approx(figures(trainer.evaluate()), rel=1e-5)


def losses_by_hand(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Return the label loss of each row before training, 0 without a label, one row at a time."""
    student, _ = make_models("classification")
    found = []
    for row in rows:
        logits = student.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0].detach().numpy()
        likely = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        found.append(-np.log(likely[row["labels"]]) if row["labels"] != -100 else 0.0)
    return np.array(found)


def test_weights_of_example_class_and_group_multiply(tmp_path: Path) -> None:
    """One of them could be forgotten, or counted twice: in the sum, or in what it is divided by."""
    rows = grouped("classification")[:STEP]
    losses, labels = losses_by_hand(rows), np.array([row["labels"] for row in rows])
    known = labels != -100
    classes = np.array([1.0, 3.0, 0.5])
    own = np.array([row["example_weight"] for row in rows])
    group = np.array([row["example_group"] for row in rows])
    counts = {name: int((group[known] == name).sum()) for name in GROUPS}
    of_group = np.array([known.sum() / (len(GROUPS) * counts[name]) for name in group])
    assert (of_group * known).sum() == pytest.approx(known.sum())  # the mean weight of a row is 1
    wanted = (own * of_group * classes[labels.clip(0)] * losses)[known].sum() / (own * of_group)[known].sum()
    terms = [Labels(class_weights=classes.tolist(), group_weights="inverse_frequency")]
    found, evaluated = one_step("classification", tmp_path, rows, terms=terms)
    assert found.losses == pytest.approx([wanted], rel=ROUNDING)
    assert evaluated["eval_loss"] == pytest.approx(wanted, rel=ROUNDING)


def test_the_worst_group_weighs_more_after_each_step(tmp_path: Path) -> None:
    """Raised in the wrong direction, by sums in place of means, or by the loss of a group that is not in the step."""
    rows = grouped("classification")
    losses, own = losses_by_hand(rows), np.array([row["example_weight"] for row in rows])
    group, known = np.array([row["example_group"] for row in rows]), np.array([row["labels"] != -100 for row in rows])
    settings = {"terms": [Labels(group_weights="worst_group")], "train_sampling_strategy": "sequential"}
    trainer = make_trainer(
        "classification", tmp_path, rows=rows, num_train_epochs=1, learning_rate=0.0, **settings, **split(4)
    )
    record = train(trainer)
    q = np.full(len(GROUPS), 1 / len(GROUPS))
    for step, loss in enumerate(record.losses):
        here = np.arange(len(rows)) // STEP == step
        means = np.zeros(len(GROUPS))
        for number, name in enumerate(GROUPS):
            of = here & known & (group == name)
            means[number] = (own * losses)[of].sum() / own[of].sum() if own[of].sum() else 0.0
        assert loss == pytest.approx((q * means).sum(), rel=ROUNDING)
        q = q * np.exp(ETA * means)
        q /= q.sum()
    np.testing.assert_allclose(trainer.weighing.log_q.exp().numpy()[0], q, rtol=1e-9)
    assert record.logs[-1]["group_weight/labels/a"] == pytest.approx(q[0])
    assert len({round(float(one), 6) for one in q}) == len(GROUPS)
    evaluated = trainer.evaluate(datasets.Dataset.from_list(rows))
    largest = max((own * losses)[known & (group == name)].sum() / own[known & (group == name)].sum() for name in GROUPS)
    assert evaluated["eval_loss"] == pytest.approx(largest, rel=ROUNDING)


def test_a_resumed_training_has_the_same_weights_of_groups(tmp_path: Path) -> None:
    """Started again at equal weights, the rest of the training would be another one, and nothing would tell."""
    settings: dict[str, Any] = {
        "rows": grouped("classification"),
        "terms": [KLDivergence(group_weights="worst_group"), Labels()],
        "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "dropout": 0.1, **split(4),
    }  # fmt: skip
    trainer = make_trainer("classification", tmp_path / "whole", **settings)
    whole = train(trainer)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "rest" / "checkpoint-2")
    again = make_trainer("classification", tmp_path / "rest", **settings)
    rest = train(again, resume_from_checkpoint=True)
    assert rest.losses == whole.losses[2:]
    assert torch.equal(again.weighing.log_q, trainer.weighing.log_q)
    assert all(torch.equal(value, whole.weights[name]) for name, value in rest.weights.items())
    (tmp_path / "rest" / "checkpoint-2" / FILE).unlink()
    with pytest.raises(UserError, match="weights of these groups"):
        make_trainer("classification", tmp_path / "rest", **settings)._load_from_checkpoint(
            str(tmp_path / "rest" / "checkpoint-2")
        )


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    """A typo in a group's name would weigh nothing; of a pair of rows, nobody could say what its weight is."""
    train_rows = dataset(example_group=list("aab"), labels=[0, 1, -100])
    key, line = refused(settle_group_weights, [Labels(group_weights={"bb": 2.0})], train_rows, "objectives")
    assert (key, "Did you mean" in line or "Known: a, b" in line) == ("objectives[0].group_weights", True)
    for wrong in ({"a": -1.0}, {"a": 0.0, "b": 0.0}):
        assert "wanted finite numbers" in refused(settle_group_weights, [Labels(group_weights=wrong)], train_rows)[1]
    plain = dataset(labels=[0])
    assert "no groups" in refused(settle_group_weights, [Labels(group_weights="worst_group")], plain)[1]
    for objective in (Relational(), Contrastive()):
        key, line = refused(settle_group_weights, [objective], dataset(example_weight=[1.0]), "objectives")
        assert (key, "with each other" in line) == ("objectives[0]", True)
    (settled,) = settle_group_weights([Labels(group_weights="inverse_frequency")], train_rows)
    assert settled.group_weights == {"a": 1.0, "b": 1.0}  # no label in b: nothing is learned from it
    with pytest.raises(UserError, match=r"row 1 \(counted from 0\) of train_dataset has the weight nan"):
        make_trainer("classification", tmp_path, rows=weighed(make_rows("classification", 2), [1, float("nan")]))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([True, False, True, None], None),
        ([2.0, 0.5, float("nan"), 2.0], None),
        ([datetime(2020, 1, 1), datetime(2021, 1, 1, 3), None, datetime(2020, 1, 1)], None),
        ([0, 1, 2, -1], datasets.ClassLabel(names=["1", "2", "0"])),
    ],
)
def test_the_group_of_a_row_is_the_one_that_was_counted(cells: list[Any], kind: Any) -> None:
    """Named in two ways, every row would be of an unknown group, and weigh 1, or as much as the last group."""
    rows = datasets.Dataset.from_dict({"example_group": cells}, kind and datasets.Features({"example_group": kind}))
    terms = Terms([Labels(group_weights="worst_group")], torch.nn.Linear(1, 1), None)
    weighing = Weighing(terms, rows, torch.device("cpu"))
    found = weighing.collating(lambda _: {})(list(rows))["example_group"]
    assert found.tolist() == group_numbers(rows, weighing.names).tolist()
    assert len({*found.tolist()}) == len(weighing.names)


def test_objectives_of_all_kinds_are_weighed() -> None:
    """The tests above would say nothing about a unit that none of their objectives has."""
    units = {objective.unit for kind in KINDS for objective in objectives(kind)} | {one.unit for one in FEATURES}
    assert units == {"row", "label", "example", "triple", "token"}  # pairs have no weight
