"""`max_tokens_per_batch`: the same steps, losses and gradients, in micro-batches of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch
from forked import two_processes
from invariants.cases import KINDS, Collator, NotingTrainer, make_rows, make_trainer, split, train
from invariants.test_batch_splits import FLOAT32, assert_same
from invariants.worker import RESUMED, Stop

from hf_distill import DistillationArguments
from hf_distill.objectives import SimilarityPreserving
from hf_distill.training.token_batches import TokenBatches, tokens

LIMIT = 40


class Noting(Collator):
    """Notes how large the batches are."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        self.made.append(tuple(batch["input_ids"].shape))
        return batch


def rows_of(lengths: list[int]) -> list[dict[str, Any]]:
    return [{"input_ids": [0] * length, "row": row} for row, length in enumerate(lengths)]


@pytest.mark.parametrize("kind", KINDS)
def test_same_steps_as_fixed_micro_batches(kind: str, tmp_path: Path) -> None:
    """Token batches that changed the step would train with another loss than the user set; ones that ignored the limit
    would run out of memory as before.
    """
    limit = 120 if kind == "sentence-similarity" else LIMIT
    settings: dict[str, Any] = {"num_train_epochs": 1, "padding_free": False, **split(4)}
    whole = make_trainer(kind, tmp_path, **settings)
    wanted, evaluated = train(whole), whole.predict(whole.eval_dataset)
    Noting.made.clear()
    trainer = make_trainer(kind, tmp_path, collator=Noting(), max_tokens_per_batch=limit, **settings)
    assert_same(train(trainer), wanted)
    assert len(Noting.made) > 6
    one_row = [shape for shape in Noting.made if shape[0] == 1]
    assert all(torch.Size(shape).numel() <= limit for shape in Noting.made if shape not in one_row)
    found = trainer.predict(trainer.eval_dataset)
    names = [name for name in evaluated.metrics if name in ("test_loss", "test_agreement") or "objective" in name]
    wanted_figures = {name: evaluated.metrics[name] for name in names}
    assert {name: found.metrics[name] for name in names} == pytest.approx(wanted_figures, rel=FLOAT32)
    assert len(found.predictions) == 13
    if kind in ("classification", "regression"):
        assert found.predictions == pytest.approx(evaluated.predictions, rel=1e-9)


def test_two_processes(tmp_path: Path) -> None:
    """Processes whose texts differ in length would wait for each other without end, or exchange half of a gradient."""

    def work() -> Any:
        settings = {"num_train_epochs": 1, "per_device_eval_batch_size": 4, **split(2, processes=2)}
        trainer = make_trainer("classification", tmp_path, max_tokens_per_batch=20, **settings)
        return train(trainer), trainer.evaluate()

    (record, metrics), (other, _) = two_processes(work, tmp_path / "results")
    alone = make_trainer("classification", tmp_path, num_train_epochs=1, **split(8))
    assert_same(record, train(alone))
    assert metrics["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=FLOAT32)
    assert all(torch.equal(one, other.weights[name]) for name, one in record.weights.items())


def test_resumed(tmp_path: Path) -> None:
    """A resumed training that cut its steps otherwise would draw other dropout, and end with other weights."""

    def make(directory: Path) -> NotingTrainer:
        settings = {**RESUMED, "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
        return make_trainer("classification", directory, max_tokens_per_batch=20, **settings)

    straight = train(make(tmp_path / "whole"))
    first = make(tmp_path / "halves")
    first.add_callback(Stop(4))
    first.train()
    rest = train(make(tmp_path / "halves"), resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    assert all(torch.equal(one, rest.weights[name]) for name, one in straight.weights.items())


def test_as_few_as_fit(caplog: pytest.LogCaptureFixture) -> None:
    """A micro-batch over the limit runs out of memory; a row that is left out, or twice there, changes the loss."""
    lengths = [3, 9, 1, 10, 4, 4, 2, 7]
    parts = TokenBatches(20).split(rows_of(lengths))
    sizes = [[len(row["input_ids"]) for row in part] for part in parts]
    assert sizes == [[10, 9], [7, 4], [4, 3, 2, 1]]
    assert sorted(row["row"] for part in parts for row in part) == [*range(8)]
    kept = TokenBatches(20).split(rows_of(lengths), ordered=True)
    assert [row["row"] for part in kept for row in part] == [*range(8)]
    assert [[len(row["input_ids"]) for row in part] for part in kept] == [[3, 9], [1, 10], [4, 4, 2], [7]]
    unpadded = TokenBatches(20, padded=False).split(rows_of(lengths))
    assert [sum(len(row["input_ids"]) for row in part) for part in unpadded] == [19, 20, 1]
    assert not caplog.records
    batches = TokenBatches(8)
    assert [len(part) for part in batches.split(rows_of([9, 2, 12, 2]))] == [1, 1, 2]
    batches.split(rows_of([30]))
    assert [record.levelname for record in caplog.records] == ["WARNING"], "told once"


def test_length_of_an_example() -> None:
    """What is counted must be what is computed: all texts, both models, the decoder; not a row of labels."""
    assert tokens({"input_ids": [1, 2, 3], "labels": [0.0] * 9}) == 3
    assert tokens({"input_ids": [1, 2, 3], "labels": [4, 5]}, decoder=True) == 5
    assert tokens({"input_ids": [[1, 2, 3], [1]]}) == 6
    assert tokens({"input_ids": [1], "teacher_input_ids": [1, 2]}) == 2


def test_refused(tmp_path: Path) -> None:
    """Micro-batches by length would silently change which examples an objective compares."""
    with pytest.raises(ValueError, match="max_tokens_per_batch"):
        make_trainer("classification", tmp_path, terms=[SimilarityPreserving()], max_tokens_per_batch=9)
    for settings in ({"max_tokens_per_batch": 0}, {"train_sampling_strategy": "batch_rebalance"}):
        with pytest.raises(ValueError, match="max_tokens_per_batch"):
            DistillationArguments(str(tmp_path), **{"max_tokens_per_batch": 9, **settings})  # type: ignore[arg-type]


def test_rows_of_any_format(tmp_path: Path) -> None:
    """Tensors have a length too: a data set in torch's format must be split as lists are."""
    rows = datasets.Dataset.from_list(make_rows("classification")).with_format("torch")
    trainer = make_trainer("classification", tmp_path, num_train_epochs=1, max_tokens_per_batch=LIMIT, **split(8))
    trainer.train_dataset = rows
    assert_same(train(trainer), train(make_trainer("classification", tmp_path, num_train_epochs=1, **split(8))))
