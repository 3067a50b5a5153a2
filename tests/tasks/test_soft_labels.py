"""Soft labels, heads with one output, and class weights: from a label column to a loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labels import equal, head, mistake, read
from runs import run, weights

from hf_distill.errors import UserError
from hf_distill.objectives import DecoupledKL, Labels
from hf_distill.objectives.class_weights import resolve
from hf_distill.objectives.functional import label_loss
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.tokens import TokenRows

NAN = math.nan
SIGMOID = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}


def one_output(activation: str | None) -> Any:
    from transformers import BertConfig

    own = {"activation_fn": f"torch.nn.modules.{activation}"} if activation else None
    return BertConfig(num_labels=1, **({"sentence_transformers": own} if own else {}))


# ---- Soft labels -----------------------------------------------------------------------------------------------------


def test_lists_that_sum_to_one_are_distributions() -> None:
    """Annotators' shares, or another model's probabilities, were refused, or would be two labels that hold."""
    labels = [[0.2, 0.8], [1.0, 0.0], None, [0.33, 0.66]]
    found = read(labels)
    assert (found.kind, found.width, found.soft) == ("classes", 2, True)
    encoded = found.encode(labels)
    assert encoded[:2] == [[0.2, 0.8], [1.0, 0.0]]
    assert equal([encoded[2]], [[NAN, NAN]])
    assert sum(encoded[3]) == pytest.approx(1.0, abs=1e-15)
    # In the order of the head, by the names of the recipe.
    turned = read(labels, names=["no", "yes"], teacher=head("yes", "no"))
    assert turned.encode([[0.2, 0.8]]) == [[0.8, 0.2]]
    # Nothing but 0 and 1 stays one entry a class; a trained regression of several values stays that.
    assert read([[0.0, 1.0], [1.0, 0.0]]).kind == "binary"
    assert read([[0.2, 0.8]], teacher=head(width=2, problem="regression")).kind == "values"
    assert read([[0.2, 0.8]], problem="regression").kind == "values"


@pytest.mark.parametrize("bad", [[0.2, 0.7], [-0.1, 1.1], [0.9, 0.9]])
def test_a_row_that_is_no_distribution(bad: list[float]) -> None:
    """A typo in one row would be taught as a target that no softmax can reach."""
    for options in ({}, {"problem": "multi_label"}):
        key, line = mistake([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9], bad], **options)
        assert key == "columns.label"
        assert f"row 3 (counted from 0) of the train split has the label {bad}; wanted probabilities" in line


def test_cross_entropy_with_a_distribution() -> None:
    """Against torch in float64, and by hand: without label nothing, in value and gradient."""
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=chance, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 3, generator=chance, dtype=torch.float64).softmax(-1)
    given = target.clone()
    given[2] = NAN
    factors = [0.5, 2.0, 1.0]
    for smoothing in (0.0, 0.1):
        for own in (None, factors):
            values = label_loss(logits, given, smoothing, own)
            wanted = torch.nn.functional.cross_entropy(
                logits, target, weight=None if own is None else torch.tensor(own, dtype=torch.float64),
                label_smoothing=smoothing, reduction="none",
            )  # fmt: skip
            keep = torch.arange(5) != 2
            torch.testing.assert_close(values[keep], wanted[keep])
            assert values[2] == 0
            (gradient,) = torch.autograd.grad(values.sum(), logits)
            (expected,) = torch.autograd.grad(wanted[keep].sum(), logits)
            torch.testing.assert_close(gradient, expected)
    z = np.array([1.0, 2.0, 0.5])
    log_q = z - np.log(np.exp(z).sum())
    by_hand = -(np.array([0.2, 0.5, 0.3]) * log_q).sum()
    found = label_loss(torch.tensor(z)[None], torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64))
    assert found.item() == pytest.approx(by_hand, abs=1e-12)


def test_rows_of_distributions() -> None:
    """Metrics, and objectives that want one class, get the likeliest; counts leave out rows without a label."""
    layout = ExampleRows(width=2)
    labels = torch.tensor([[0.3, 0.7], [NAN, NAN], [0.9, 0.1]])
    rows = layout.select(torch.randn(3, 2), torch.randn(3, 2), {"labels": labels})
    assert rows.labels.shape == (3, 2)
    assert layout.labels({"labels": labels}).tolist() == [1, -100, 0]  # type: ignore[union-attr]
    assert layout.counts({"labels": labels})["label"].tolist() == [1, 0, 1]
    hard = layout.select(rows.student, rows.teacher, {"labels": torch.tensor([1, -100, 0])})
    objective = DecoupledKL()
    torch.testing.assert_close(objective.sums(rows), objective.sums(hard))


def test_a_run_on_soft_labels(write_recipe: Any, tmp_path: Path) -> None:
    """Accuracy against the likeliest class, and the label loss of the log computed again from the student."""
    path = tmp_path / "soft.jsonl"
    rows = [{"sentence": text, "label": [p, 1 - p]} for text, p in (("the film is great", 0.1), ("a dull plot", 0.8))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    report = run(
        write_recipe(
            data={"path": {"train": str(path), "validation": str(path)}, "columns": {"text": "sentence"}},
            training={"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"},
        )
    )
    assert 0 <= report.student.metrics["accuracy"] <= 1
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = report_directory(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    batch = AutoTokenizer.from_pretrained(out)([row["sentence"] for row in rows], return_tensors="pt", padding=True)
    guesses = model(**batch).logits.argmax(-1).tolist()
    assert report.student.metrics["accuracy"] == pytest.approx(np.mean(np.array(guesses) == [1, 0]))
    assert model.config.problem_type == "single_label_classification"


def report_directory(tmp_path: Path) -> Path:
    return next(tmp_path.rglob("report.json")).parent


# ---- Heads with one output -------------------------------------------------------------------------------------------


def test_a_sigmoid_head_says_no_or_yes(caplog: Any) -> None:
    """A cross-encoder with a sigmoid and labels 0 and 1: as a regression its unbounded score is drawn to 0 and 1."""
    for labels in ([0, 1, None], [0.0, 1.0], [True, False], [0, -100]):
        found = read(labels, teacher=one_output("activation.Sigmoid"))
        assert (found.kind, found.width, found.soft) == ("binary", 1, False)
    assert equal(read([0, 1, None], teacher=one_output("activation.Sigmoid")).encode([1, None]), [[1.0], [NAN]])
    # Nobody says: labels of nothing but 0 and 1 do.
    assert read([0, 1], teacher=one_output(None)).kind == "binary"
    assert read([0, 1, 2], teacher=one_output(None)).kind == "values"
    assert read(None, teacher=one_output("activation.Sigmoid")).kind == "binary"
    # Shares of yes.
    soft = read([0.0, 0.4, 1.0], teacher=one_output("activation.Sigmoid"))
    assert (soft.kind, soft.soft, soft.encode([0.4])) == ("binary", True, [[0.4]])
    key, line = mistake([0, 3], teacher=one_output("activation.Sigmoid"))
    assert (key, "wanted 0 to 1" in line, "problem: regression" in line) == ("columns.label", True, True)
    assert read([0, 3], teacher=one_output("activation.Sigmoid"), problem="regression").kind == "values"
    assert mistake([0, 1], teacher=one_output("activation.Sigmoid"), names=["yes", "no"])[0] == "labels"
    # Unbounded: told, with the way out.
    caplog.clear()
    assert read([0, 1], teacher=one_output("linear.Identity")).kind == "values"
    (record,) = caplog.records
    assert "problem: multi_label" in record.getMessage()
    assert read([0, 1], teacher=one_output("linear.Identity"), problem="multi_label").kind == "binary"
    caplog.clear()
    assert read([0, 1], teacher=one_output("linear.Identity"), problem="regression").kind == "values"
    assert not caplog.records


def test_the_loss_of_a_yes_or_no_is_binary_cross_entropy() -> None:
    """Against torch, with labels between 0 and 1 as well."""
    logits, labels = torch.randn(4, 1), torch.tensor([[1.0], [0.0], [NAN], [0.3]])
    soft = ExampleRows(kind="binary", width=1, soft=True)
    values = Labels().sums(soft.select(logits, None, {"labels": labels}))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")[:, 0]
    torch.testing.assert_close(values[[0, 1, 3]], wanted[[0, 1, 3]])
    assert values[2] == 0
    hard = ExampleRows(kind="binary", width=1)
    torch.testing.assert_close(
        Labels().sums(hard.select(logits[:2], None, {"labels": labels[:2]})), wanted[:2], check_dtype=False
    )


def test_a_cross_encoder_from_data_to_student(write_recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """The student is read as its teacher is: one output, a sigmoid behind it, judged as no or yes."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"text": "the film", "text_pair": word, "label": index % 2} for index, word in enumerate(["great", "dull"] * 8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(
        write_recipe(
            data={"path": {"train": str(path), "validation": str(path)}},
            teacher={"name": "pretrained", "model": str(make_model("bert", labels=("LABEL_0",), **SIGMOID))},
            student={"name": "from_config", "config": {"num_hidden_layers": 1}}
            if False
            else {"name": "copy_layers", "layers": 2},
            training={"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"},
        )
    )
    assert list(report.student.metrics)[:2] == ["accuracy", "f1"]
    config = json.loads((report_directory(tmp_path) / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["sentence_transformers"] == SIGMOID["sentence_transformers"]
    assert weights(report_directory(tmp_path))["classifier.weight"].shape[0] == 1


def test_metrics_of_a_yes_or_no() -> None:
    """scikit-learn takes a single column for two classes and averages F1 over both: that would be the accuracy."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    from hf_distill.metrics.score import score

    chance = np.random.default_rng(0)
    logits, labels = chance.normal(size=(50, 1)), (chance.random((50, 1)) > 0.7).astype(float)
    found = score(["accuracy", "f1", "auc", "mcc"], logits, labels, "binary")
    guesses = logits[:, 0] > 0
    assert found["accuracy"] == pytest.approx(accuracy_score(labels[:, 0], guesses))
    assert found["f1"] == pytest.approx(f1_score(labels[:, 0], guesses))
    assert found["auc"] == pytest.approx(roc_auc_score(labels[:, 0], logits[:, 0]))


# ---- Class weights ---------------------------------------------------------------------------------------------------


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    """`n / (k * n_c)`, by class and not by its rank."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [7, 20, 3])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = resolve("balanced", ["a", "b", "c"], np.bincount(labels))
    assert found == pytest.approx(wanted.tolist())
    # A class without labels has none to weigh, and does not count as one.
    assert resolve("balanced", ["a", "b", "c"], [3, 1, 0]) == pytest.approx([4 / 6, 2.0, 1.0])
    assert sum(w * n for w, n in zip(found, np.bincount(labels), strict=True)) == pytest.approx(len(labels))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"yess": 2.0}, "Did you mean 'yes'"),
        ([1.0, 2.0, 3.0], "3 weights for 2 classes [no, yes]"),
        ([1.0, -1.0], "finite numbers of 0 or more"),
        ([0.0, 0.0], "finite numbers of 0 or more"),
        ("balanced", "no labels in the train split"),
    ],
)
def test_weights_that_do_not_fit(given: Any, says: str) -> None:
    """A weight for a class that is not there, or too few of them, is told before anything is trained."""
    with pytest.raises(UserError) as caught:
        resolve(given, ["no", "yes"], None)
    assert says in str(caught.value)
    assert caught.value.key == "class_weights"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_and_gradient(smoothing: float) -> None:
    """Against torch, row by row; the sum is divided by the number of labels, so that no split of a batch changes it."""
    chance = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, generator=chance, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, -100, 2, 0])
    own = [0.2, 3.0, 1.0]
    values = label_loss(logits, labels, smoothing, own)
    wanted = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor(own, dtype=torch.float64), label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(values, wanted)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    (expected,) = torch.autograd.grad(wanted.sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_weights_in_a_trainer(make_model: Any, tmp_path: Path) -> None:
    """`balanced` counts the labels that are trained on, names are the student's; both reach the logged loss."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_distill import DistillationArguments, DistillationTrainer

    directory = make_model("bert", layers=2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts, labels = ["the film is great", "a dull plot", "bad", "awful cast"], [1, 0, 0, 0]
    data = Dataset.from_dict({**tokenizer(texts), "labels": labels})
    for given, numbers in (("balanced", [4 / 6, 2.0]), ({"positive": 5.0}, [1.0, 5.0])):
        model = AutoModelForSequenceClassification.from_pretrained(directory)
        trainer = DistillationTrainer(
            model=model,
            objectives=[Labels(class_weights=given)],
            args=DistillationArguments(output_dir=str(tmp_path), report_to=[], per_device_eval_batch_size=3),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        )
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        logits = model.eval()(**batch).logits.double()
        each = torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels), weight=torch.tensor(numbers, dtype=torch.float64), reduction="none"
        )
        assert trainer.evaluate()["eval_objective/labels"] == pytest.approx(each.mean().item(), rel=1e-5)


def test_weights_where_there_are_no_classes(make_model: Any) -> None:
    """Numbers and several labels have no classes that exclude each other: refused, not ignored."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from hf_distill.training.class_weights import settle_class_weights

    classifier = AutoModelForSequenceClassification.from_pretrained(make_model("bert", layers=2))
    language_model = AutoModelForCausalLM.from_pretrained(make_model("gpt2-lm", layers=1))
    for layout, model in (
        (ExampleRows(kind="values", width=1), classifier),
        (ExampleRows(kind="binary", width=3), classifier),
        (TokenRows(shift=True), language_model),
    ):
        with pytest.raises(UserError, match="one class of several"):
            settle_class_weights([Labels(class_weights=[1.0, 2.0])], layout, model, None)


def test_weights_of_tags(make_model: Any, tmp_path: Path) -> None:
    """Of words, whose loss is divided by their number: value and gradient against torch."""
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

    from hf_distill import DistillationArguments, DistillationTrainer

    directory = make_model("bert-tokens", labels=("O", "B-PER", "I-PER"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForTokenClassification.from_pretrained(directory)
    features = [
        {**tokenizer(text), "labels": tags} for text, tags in (("a b c", [-100, 0, 1, 2, -100]), ("a", [-100, 1, -100]))
    ]
    trainer = DistillationTrainer(
        model=model,
        objectives=[Labels(class_weights=[0.5, 3.0, 1.0])],
        args=DistillationArguments(output_dir=str(tmp_path), report_to=[]),
        train_dataset=Dataset.from_list(features),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([dict(one) for one in features])
    model.eval()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    found = model.classifier.weight.grad.clone()
    model.zero_grad()
    labels = batch.pop("labels")
    logits = model(**batch).logits[labels >= 0]
    weights_of = torch.tensor([0.5, 3.0, 1.0])
    wanted = torch.nn.functional.cross_entropy(logits, labels[labels >= 0], weight=weights_of, reduction="none").mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, model.classifier.weight.grad)


def test_weights_on_other_splits_of_a_batch(make_model: Any, tmp_path: Path) -> None:
    """A mean weighted within each micro-batch, as torch's, changes with gradient accumulation."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_distill import DistillationArguments, DistillationTrainer

    directory = make_model("bert", layers=2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["the film is great", "a dull plot", "bad", "awful cast"]
    data = Dataset.from_dict({**tokenizer(texts), "labels": [1, 0, 0, 0]})
    trained = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        trainer = DistillationTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                directory, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            ),
            objectives=[Labels(class_weights="balanced")],
            args=DistillationArguments(
                output_dir=str(tmp_path), report_to=[], per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                max_steps=1, save_strategy="no", learning_rate=0.1, optim="sgd", lr_scheduler_type="constant",
            ),
            train_dataset=data,
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        trained.append(trainer.model.classifier.weight.detach().clone())
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained[2], trained[0], rtol=1e-5, atol=1e-6)


def test_a_cross_encoder_in_python(make_model: Any, tmp_path: Path) -> None:
    """Two models are enough: the sigmoid in their configuration makes it a yes or no there as well."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_distill import DistillationArguments, DistillationTrainer

    directory = make_model("bert", labels=("LABEL_0",), **SIGMOID)
    teacher, student = (AutoModelForSequenceClassification.from_pretrained(directory) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    data = Dataset.from_dict({**tokenizer(["a great film", "a dull film"]), "labels": [1, 0]})
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=DistillationArguments(output_dir=str(tmp_path), report_to=[]),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    assert [one.name for one in trainer.objectives] == ["kl", "labels"]
    logits = student.eval()(**tokenizer(["a great film", "a dull film"], return_tensors="pt", padding=True)).logits
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([1.0, 0.0]))
    assert trainer.evaluate()["eval_objective/labels"] == pytest.approx(wanted.item(), rel=1e-5)
