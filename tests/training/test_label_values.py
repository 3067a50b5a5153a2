"""Labels in Python that a head cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import BertConfig, BertForTokenClassification

from hf_distill.rows.examples import ExampleRows, check_batch
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.label_values import check_label_values

NAN = float("nan")
TWO = BertForTokenClassification(
    BertConfig(
        num_labels=2, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=8
    )
)
CLASSES, BINARY = ExampleRows(width=2), ExampleRows(kind="binary", width=2)


@pytest.mark.parametrize(
    ("labels", "layout", "says"),
    [
        ([0, 1, 2], CLASSES, "row 2 (counted from 0) has the label 2; wanted the number of a class, 0 to 1"),
        ([0, -1], CLASSES, "row 1 (counted from 0) has the label -1"),
        ([0.0, 0.5], CLASSES, "found decimals"),
        (["a"], CLASSES, "has the label 'a'; wanted numbers"),
        ([0, None], CLASSES, "row 1 (counted from 0) has the label None"),
        ([[0.2, 0.8], [0.2, 0.2]], CLASSES, "row 1 (counted from 0) has the label [0.2, 0.2]; wanted 2 probabilities"),
        ([[0.2, 0.3, 0.5]], CLASSES, "wanted 2 probabilities"),
        ([[0.0, 1.0], [0.0, 0.5]], BINARY, "row 1 (counted from 0) has the label [0.0, 0.5]; wanted one 0 or 1"),
        ([[0.0, 1.0, 1.0]], BINARY, "for each of 2 labels"),
        ([1, 0], BINARY, "wanted a list"),
        ([0.0, 0.5], ExampleRows(kind="binary", width=1), "has the label 0.5; wanted 0 or 1"),
        (
            [[0, 1], [-100, 2]],
            TokenRows(),
            "row 1 (counted from 0) has the label 2; wanted the number of a class, 0 to 1",
        ),
        ([[0, 12]], TokenRows(shift=True, classes=10), "wanted the number of a token, 0 to 9"),
    ],
)
def test_what_no_head_has(labels: Any, layout: Any, says: str) -> None:
    """On a GPU a label out of range ends the process without a line; a share of a class was cut to class 0."""
    with pytest.raises(ValueError, match="train_dataset: row") as caught:
        check_label_values(Dataset.from_dict({"labels": labels}), "train_dataset", layout, TWO)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "layout"),
    [
        ([0, 1, -100], CLASSES),
        ([True, False], CLASSES),
        ([[0.2, 0.8], [NAN, NAN]], CLASSES),
        ([[0.0, 1.0], [NAN, NAN]], BINARY),
        ([[0, 1]], BINARY),
        ([0, 1], ExampleRows(kind="binary", width=1)),
        ([0.5], ExampleRows(kind="binary", width=1, soft=True)),
        ([0.5, 1e9], ExampleRows(kind="values", width=1)),
        ([[0, -1, -100]], TokenRows()),
        ([[9, -100]], TokenRows(shift=True, classes=10)),
        ([[9, -100]], TokenRows(classes=10)),
    ],
)
def test_what_heads_have(labels: Any, layout: Any) -> None:
    """Every label that the layouts know must pass."""
    check_label_values(Dataset.from_dict({"label": labels}), "train_dataset", layout, TWO)
    check_label_values(labels, "train_dataset", layout, TWO)


def test_a_trainer_tells_before_the_first_step(make_model: Any, tmp_path: Path) -> None:
    """In the eval split as well, where it would be found after an epoch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import Labels

    directory = make_model("bert", layers=2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    good, bad = (Dataset.from_dict({**tokenizer(["a film", "a plot"]), "labels": [0, last]}) for last in (1, 2))
    for name, splits in (("train_dataset", (bad, good)), ("eval_dataset", (good, bad))):
        with pytest.raises(ValueError, match=f"{name}: row 1"):
            DistillationTrainer(
                model=AutoModelForSequenceClassification.from_pretrained(directory),
                objectives=[Labels()],
                args=DistillationArguments(output_dir=str(tmp_path), report_to=[]),
                train_dataset=splits[0],
                eval_dataset=splits[1],
                processing_class=tokenizer,
            )


@pytest.mark.parametrize("how", ["collator", "transform"])
def test_rows_that_change_on_their_way_are_the_users(how: str, make_model: Any, tmp_path: Path) -> None:
    """Names of classes, or stars from 1 to 5, which a collator or a transform counts from 0, are no mistake."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import Labels

    def batch(names: list[str]) -> dict[str, Any]:
        found = {"input_ids": [[5, 6]] * len(names), "attention_mask": [[1, 1]] * len(names)}
        return {**found, "labels": [int(name == "good") for name in names]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: torch.tensor(value) for key, value in batch([row["label"] for row in rows]).items()}

    data = Dataset.from_dict({"label": ["bad", "good"] * 4, "input_ids": [[9999] * 900] * 8})
    if how == "transform":
        data.set_transform(lambda rows: batch(rows["label"]))
    settings: dict[str, Any] = {"report_to": [], "max_steps": 1, "remove_unused_columns": False, "use_cpu": True}
    trainer = DistillationTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(make_model("bert", layers=2)),
        objectives=[Labels()],
        args=DistillationArguments(output_dir=str(tmp_path), save_strategy="no", **settings),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate if how == "collator" else None,
    )
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize(
    ("labels", "refused"),
    [([1, 0], False), ([[1], [0]], False), ([[0.25, 0.75], [NAN, NAN]], False), ([[1.0, 1.0]], True), ([[1, 1]], True)],
)
def test_labels_of_a_batch(labels: Any, refused: bool) -> None:
    """A collator's `(batch, 1)` weighed every class alike, and several labels counted as one that is certain twice."""
    import torch

    batch = {"input_ids": torch.ones(len(labels), 2), "labels": torch.tensor(labels)}
    if refused:
        with pytest.raises(ValueError, match="multi_label_classification"):
            check_batch(batch, CLASSES)
        return
    check_batch(batch, CLASSES)
    found = CLASSES.select(torch.zeros(len(labels), 2), None, batch).labels
    wanted = torch.tensor(labels)
    assert torch.equal(found, wanted.reshape(found.shape)) or found.isnan().any()
    assert found.ndim == (2 if wanted.is_floating_point() else 1)
    assert CLASSES.counts(batch)["label"].sum() == (1 if wanted.is_floating_point() else 2)
