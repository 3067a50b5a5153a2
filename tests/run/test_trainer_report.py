"""The report of a `DistillationTrainer`: the numbers are those of the models, whoever trained them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from hf_distill import DistillationArguments, DistillationTrainer, UserError, evaluate_distillation
from hf_distill.report.report import Report
from hf_distill.tasks import QuestionAnswering

if TYPE_CHECKING:
    from conftest import MakeModel

TEXTS = ("a great film", "the plot is dull", "a very charming cast with a moving story", "boring", "fresh and funny")
LABELS = [1, 0, 1, 0, 1]
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def opened(path: Path, auto_class: str) -> Any:
    return getattr(transformers, auto_class).from_pretrained(path, dtype=torch.float32)


def trained(
    make_model: MakeModel, directory: Path, kind: str, auto_class: str, columns: dict[str, Any], **given: Any
) -> tuple[DistillationTrainer, Any]:
    """Return a trainer after its training, and the student as it was before."""
    own = NO_DROPOUT if kind.startswith("bert") else {}
    paths = make_model(kind, layers=2, seed=1, **own), make_model(kind, layers=1, **own)
    student = opened(paths[1], auto_class)
    start = copy.deepcopy(student)
    settings = {"max_steps": 3, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = given.pop("arguments", DistillationArguments)
    args = arguments(str(directory), **{"learning_rate": 1e-2, **settings, **given.pop("args", {})})
    data = Dataset.from_dict(columns)
    brought = {"train_dataset": data, "eval_dataset": data, **given}
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths[1])
    trainer = DistillationTrainer(student, args, teacher=str(paths[0]), processing_class=tokenizer, **brought)
    trainer.train()
    return trainer, start


def accuracy(model: Any, tokenizer: Any) -> tuple[float, np.ndarray[Any, Any]]:
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        classes = model(**batch).logits.argmax(-1).numpy()
    return float((classes == LABELS).mean()), classes


@pytest.mark.parametrize("tokenised", [False, True])
def test_the_report_of_a_trainer(make_model: MakeModel, tmp_path: Path, tokenised: bool) -> None:
    """A report that evaluates other rows, or a baseline from another start, praises or blames the wrong thing."""
    columns: dict[str, Any] = {"text": TEXTS, "label": LABELS, "example_group": list("abbab")}
    given = {}
    if tokenised:
        tokenizer = transformers.AutoTokenizer.from_pretrained(make_model("bert", layers=1, **NO_DROPOUT))
        rows = Dataset.from_dict(columns).map(lambda batch: tokenizer(batch["text"]), batched=True)
        given = {"train_dataset": rows, "eval_dataset": rows}
    trainer, start = trained(
        make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, args={"max_steps": 3}, **given
    )
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    before = {name: value.clone() for name, value in start.state_dict().items()}
    report = evaluate_distillation(trainer, baseline=start, latency=False)
    tokenizer = trainer.processing_class
    assert (report.task, report.metric) == ("text-classification", "accuracy")
    (own, classes), (theirs, taught) = accuracy(trainer.model, tokenizer), accuracy(trainer.teacher, tokenizer)
    assert report.student.metrics["accuracy"] == pytest.approx(own)
    assert report.teacher.metrics["accuracy"] == pytest.approx(theirs)
    assert report.agreement == pytest.approx((classes == taught).mean())
    assert report.eval_rows == 5
    assert [whom.by for whom in report.for_whom] == ["group", "class"]
    for group in report.for_whom[0].groups:
        rows_of_it = np.array(columns["example_group"]) == group.name
        assert group.rows == rows_of_it.sum()
        assert group.metrics["student"] == pytest.approx((classes == LABELS)[rows_of_it].mean())
    # The baseline is what Trainer itself makes of the start on labels alone.
    assert report.baseline is not None
    assert report.gain_error is not None
    assert len(report.resampled) == 100
    assert len(report.history["baseline"]) == len(report.history["student"])
    alone = opened(make_model("bert", layers=1, **NO_DROPOUT), "AutoModelForSequenceClassification")
    plain = transformers.Trainer(
        alone,
        transformers.TrainingArguments(
            str(tmp_path / "plain"), max_steps=3, learning_rate=1e-2, use_cpu=True, save_strategy="no", logging_steps=1,
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=trainer.train_dataset, data_collator=trainer.data_collator,
    )  # fmt: skip
    plain.train()
    assert label_losses(report) == pytest.approx(
        [log["loss"] for log in plain.state.log_history if "loss" in log], rel=1e-4
    )
    assert report.baseline.metrics["accuracy"] == pytest.approx(accuracy(alone, tokenizer)[0])
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items()), (
        "start it again from here"
    )
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    page = report.save(tmp_path / "report")
    assert page.is_file()
    assert Report.load(tmp_path / "report").student.metrics == report.student.metrics
    assert json.loads((tmp_path / "report" / "report.json").read_text())["gain"] == pytest.approx(
        own - report.baseline.metrics["accuracy"]
    )
    card = (tmp_path / "report" / "README.md").read_text()
    assert f'model="{tmp_path.name}"' in card, "the usage line loads the trained student"
    assert "not named" not in card.replace("**Data**: not named", "")


def label_losses(report: Report) -> list[float]:
    return [log["objective/labels"] for log in report.history["baseline"] if "objective/labels" in log]


def test_a_split_of_tokens_may_stand_beside_one_of_text(make_model: MakeModel, tmp_path: Path) -> None:
    """A baseline that trains on the eval split, the only one of text, looks better than it is."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model("bert", layers=1, **NO_DROPOUT))
    texts = {
        "train_dataset": Dataset.from_dict({"text": [f"{text} dull" for text in TEXTS * 4], "label": LABELS * 4}),
        "eval_dataset": Dataset.from_dict({"text": TEXTS, "label": LABELS}),
    }
    tokens = {
        name: split.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns="text")
        for name, split in texts.items()
    }
    found = []
    mixed = [{**tokens, name: split} for name, split in texts.items()]
    for held in (tokens, *mixed):
        trainer, start = trained(
            make_model, tmp_path, "bert", "AutoModelForSequenceClassification", {},
            args={"max_steps": -1, "num_train_epochs": 1}, **held,
        )  # fmt: skip
        original = copy.deepcopy(start)
        report = evaluate_distillation(trainer, baseline=start, latency=False)
        assert [report.settings[f"train_rows{which}"] for which in ("", "_with_label")] == [20, 20]
        assert report.eval_rows == 5
        found.append([*label_losses(report), *(model.metrics["accuracy"] for model in report.models.values())])
    trainer.train_dataset = texts["train_dataset"]  # tokenised with its batches
    again = evaluate_distillation(trainer, baseline=copy.deepcopy(original), latency=False)
    assert label_losses(again) == pytest.approx(label_losses(report), rel=1e-5)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@dataclass
class OwnArguments(DistillationArguments):
    """Those of a user's script: a field of his own, and another default."""

    flag: str = "x"
    learning_rate: float = 1e-2


@pytest.mark.parametrize(
    ("arguments", "args"),
    [
        (
            transformers.Seq2SeqTrainingArguments,
            {"generation_num_beams": 2, "report_to": "none", "learning_rate": 1e-2},
        ),
        (OwnArguments, {"flag": "y", "learning_rate": OwnArguments.learning_rate}),
    ],
)
def test_the_arguments_may_be_of_another_class(
    make_model: MakeModel, tmp_path: Path, arguments: Any, args: dict[str, Any]
) -> None:
    """Fields that only the user's class has fail after hours of training, and its defaults train another baseline."""
    columns: dict[str, Any] = {"text": TEXTS, "label": LABELS}
    found = []
    for given in ({}, {"arguments": arguments, "args": args}):
        trainer, start = trained(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, **given)
        found.append(label_losses(evaluate_distillation(trainer, baseline=start, latency=False)))
    assert found[1] == found[0]


SPANS = [{"text": [text.split()[-1]], "answer_start": [text.rindex(text.split()[-1])]} for text in TEXTS]


@pytest.mark.parametrize(
    ("kind", "auto_class", "columns", "given", "metric"),
    [
        ("llama-lm", "AutoModelForCausalLM", {"text": TEXTS}, {}, "perplexity"),
        ("t5", "AutoModelForSeq2SeqLM", {"text": TEXTS, "summary": TEXTS}, {}, "rouge2"),
        (
            "bert-qa", "AutoModelForQuestionAnswering",
            {"question": ["which"] * 5, "context": TEXTS, "answers": SPANS},
            {"task": QuestionAnswering(stride=8)}, "f1",
        ),
        (
            "bert-tokens", "AutoModelForTokenClassification",
            {"tokens": [t.split() for t in TEXTS], "tags": [["negative"] * len(t.split()) for t in TEXTS]}, {},
            "token_accuracy",
        ),
    ],
)  # fmt: skip
def test_every_kind_of_model_has_a_report(
    make_model: MakeModel, tmp_path: Path, kind: str, auto_class: str, columns: Any, given: Any, metric: str
) -> None:
    """Metrics of texts and spans need more than tokens, and what a task makes of the texts must reach the report."""
    trainer, start = trained(make_model, tmp_path, kind, auto_class, columns, **given)
    report = evaluate_distillation(trainer, baseline=start)
    assert report.metric == metric
    assert set(report.models) == {"teacher", "student", "baseline"}
    assert all(np.isfinite(model.metrics[metric]) for model in report.models.values())
    assert report.student.latency is not None
    report.save(tmp_path / "report")


def test_a_language_model_of_tokens_has_the_perplexity_of_its_evaluation(make_model: MakeModel, tmp_path: Path) -> None:
    """The loss that Trainer logs and the perplexity of the report are about the same tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model("llama-lm", layers=1))
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in TEXTS]})
    rows = rows.map(lambda row: {"labels": row["input_ids"]})
    trainer, _ = trained(
        make_model, tmp_path, "llama-lm", "AutoModelForCausalLM", {}, train_dataset=rows, eval_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    report = evaluate_distillation(trainer, latency=False)
    loss = trainer.evaluate()["eval_objective/labels"]
    assert report.student.metrics["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert report.baseline is None
    with pytest.raises(UserError, match="Tokenise it"):
        evaluate_distillation(trainer, eval_dataset=Dataset.from_dict({"text": TEXTS}))


def test_what_cannot_be_reported_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    """A baseline from the trained student would start where the student ends, and win."""
    columns: dict[str, Any] = {"text": TEXTS, "label": LABELS}
    trainer, start = trained(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns)
    with pytest.raises(UserError, match=r"before.*copy\.deepcopy"):
        evaluate_distillation(trainer, baseline=True)
    with pytest.raises(UserError, match="the trained student"):
        evaluate_distillation(trainer, baseline=trainer.model)
    with pytest.raises(TypeError, match="baseline: wanted a model"):
        evaluate_distillation(trainer, baseline="start")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="acuracy"):
        evaluate_distillation(trainer, metrics=["acuracy"])
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    with pytest.raises(UserError, match="one data set"):
        evaluate_distillation(trainer)
    trainer.brings_optimizer = True
    with pytest.raises(UserError, match="optimizer_cls_and_kwargs"):
        evaluate_distillation(trainer, baseline=start, eval_dataset=trainer.eval_dataset["a"])
