"""What `hf-distill doctor` finds in models, tokenizers, labels and data."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import WriteRecipe

from hf_distill import load_recipe
from hf_distill.run.doctor.examination import examine, findings
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.opened import Opened
from hf_distill.run.doctor.table import CHECKS
from hf_distill.tasks import TASKS

Look = Callable[..., list[Finding]]
# Checks of models, tokenizers, labels and data.
OURS = tuple(CHECKS)[: list(CHECKS).index("targets") + 1]


@pytest.fixture
def look(write_recipe: WriteRecipe, tmp_path: Path) -> Look:
    """Function that returns what some checks find; keyword arguments replace sections of a small recipe."""

    def found(*checks: str, **sections: Any) -> list[Finding]:
        opened = Opened(load_recipe(write_recipe(**sections)), tmp_path / "scratch")
        return [one for check in checks for one in findings(check, CHECKS[check], opened)]

    return found


def rows_of(path: Path, rows: Sequence[tuple[str, Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), *rows])
    return str(path)


def data(train: str, evaluated: str, **others: Any) -> dict[str, Any]:
    return {"path": {"train": train, "validation": evaluated}, "columns": {"text": "sentence"}, **others}


def read(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["sentence"], row["label"]) for row in csv.DictReader(file)]


def texts(found: Sequence[Finding], status: str) -> str:
    return "\n".join(f"{one.found} {one.advice}" for one in found if one.status == status)


def test_a_sound_recipe_has_no_findings(look: Look) -> None:
    """A doctor that warns of what is right is not read where it matters."""
    found = look(*OURS[:-2])
    assert {one.status for one in found} == {"ok"}
    assert all(one.check in CHECKS for one in found)


def test_eval_rows_that_are_learned_from(look: Look, tmp_path: Path, sentiment_csv: Any) -> None:
    """With eval rows in train, or in what the teacher labels, the report's scores are those of memory."""
    train, evaluated = read(sentiment_csv.train), read(sentiment_csv.validation)
    copied = [(f" {text.upper()}  ", label) for text, label in evaluated[3:5]]
    path = rows_of(tmp_path / "train.csv", [*train, evaluated[7], *copied])
    transfer = tmp_path / "more.csv"
    rows_of(transfer, [(text, "") for text, _ in evaluated[:20]])
    section = data(path, str(sentiment_csv.validation), transfer={"path": str(transfer)})
    found = look("overlap", data=section)
    said = texts(found, "warning")
    assert f"3 of {len(evaluated)} eval rows" in said
    assert "(2 with other case or spaces)" in said
    assert f"3 (row {len(train) + 1} of train)" in said
    assert "20 of 32 eval rows (62.5%) are also in data.transfer" in texts(found, "mistake")


def test_rows_that_cannot_be_compared() -> None:
    """Single texts and pairs are never equal: the check would say that no eval row is learned from."""
    from datasets import Dataset

    splits = {
        "train": Dataset.from_dict({"text": ["a"]}),
        "eval": Dataset.from_dict({"text": ["a"], "text_pair": [""]}),
    }
    held: Any = SimpleNamespace(splits=splits, recipe=SimpleNamespace(task=SimpleNamespace(label_role="label")))
    found = findings("overlap", CHECKS["overlap"], held)
    assert [one.status for one in found] == ["skipped", "ok"]
    assert "text, text_pair; text" in found[0].found


def test_a_text_with_two_labels(look: Look, tmp_path: Path, sentiment_csv: Any) -> None:
    """The same text as positive and as negative teaches nothing, and is never seen in a loss."""
    train = read(sentiment_csv.train)
    flipped = [(text, "positive" if label == "negative" else "negative") for text, label in train[:2]]
    section = data(rows_of(tmp_path / "train.csv", [*train, *flipped, train[5]]), str(sentiment_csv.validation))
    said = texts(look("overlap", data=section), "warning")
    assert "2 texts occur more than once in train, with different labels" in said


def test_texts_that_are_cut_or_empty(look: Look, tmp_path: Path, sentiment_csv: Any) -> None:
    """Truncated texts train and score without a word; the advised length must be the one that keeps 99 %."""
    train = read(sentiment_csv.train)
    long = [("the film is " * count, "positive") for count in (5, 6, 7, 15)]
    section = data(rows_of(tmp_path / "train.csv", [*train, *long, (" ", "negative")]), str(sentiment_csv.validation))
    found = look("length", data={**section, "max_length": 12})
    said = texts(found, "warning")
    lengths = np.array([len(text.split()) + 2 for text, _ in [*train, *long, (" ", "")]])
    cut = next(line for line in said.splitlines() if "of train (69 rows)" in line)
    assert f"{(lengths > 12).mean():.1%} of train (69 rows) are longer than 12 tokens" in cut
    enough = int(np.quantile(lengths, 0.99, method="higher"))
    assert enough == 47
    assert f"data.max_length: {enough}" in cut
    assert "1 of 69 rows of train have an empty text, first row 68" in said
    assert "both models say the same" in said
    assert not [one for one in look("length", data=section) if "longer" in one.found and one.status == "warning"]


def test_classes_that_a_split_lacks(look: Look, tmp_path: Path, sentiment_csv: Any) -> None:
    """An eval split of one class gives a constant guesser 100 %."""
    one = [row for row in read(sentiment_csv.validation) if row[1] == "positive"]
    section = data(str(sentiment_csv.train), rows_of(tmp_path / "eval.csv", one))
    found = look("labels", data=section)
    assert "all labels of the eval split are 'positive'" in texts(found, "mistake")
    train = read(sentiment_csv.train)
    few = [row for row in train if row[1] == "positive"] * 25
    uneven = [(f"{text} {at}", label) for at, (text, label) in enumerate([*few, *train[:60:2]])]
    found = look("labels", data=data(rows_of(tmp_path / "uneven.csv", uneven), str(sentiment_csv.validation)))
    assert "'positive' has 27 times as many train rows as 'negative'" in texts(found, "warning")


def test_sorted_rows(look: Look, tmp_path: Path, sentiment_csv: Any) -> None:
    """Trained in the order of a sorted file, every batch has one class."""
    ordered = sorted(read(sentiment_csv.train), key=lambda row: row[1])
    section = data(rows_of(tmp_path / "train.csv", ordered), str(sentiment_csv.validation))
    assert "sorted by label, and shuffled" in texts(look("order", data=section), "ok")
    found = look("order", data=section, training={"train_sampling_strategy": "sequential"})
    assert "sorted by label" in texts(found, "warning")
    assert "in no order" in texts(look("order", training={"train_sampling_strategy": "sequential"}), "ok")


def test_numbers_that_are_all_the_same(look: Look, tmp_path: Path, make_model: Any) -> None:
    """A regression on a constant column, or with a value of infinity, trains to the end and reports nothing."""
    teacher = {"name": "pretrained", "model": str(make_model("bert", labels=("score",)))}
    good = [(f"the film {at}", at / 10) for at in range(30)]
    constant = [(text, 1.5) for text, _ in good]
    section = data(rows_of(tmp_path / "train.csv", good), rows_of(tmp_path / "eval.csv", constant))
    found = look("numbers", data=section, teacher=teacher, objectives=[{"name": "logits_mse"}])
    assert "labels of train from 0 to 2.9, mean 1.45" in texts(found, "ok")
    assert "all 30 labels of eval are 1.5" in texts(found, "warning")


@pytest.fixture(scope="module")
def good_teacher(make_model: Any, sentiment_csv: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a classifier that is right about nearly all sentences."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    made = make_model("bert", layers=2)
    tokenizer, model = AutoTokenizer.from_pretrained(made), AutoModelForSequenceClassification.from_pretrained(made)
    rows = read(sentiment_csv.train)
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([int(label == "positive") for _, label in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    directory = tmp_path_factory.mktemp("good")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def twice(sentiment_csv: Any, tmp_path: Path) -> dict[str, Any]:
    """Return the data with enough eval rows to judge a teacher."""
    rows = [(f"{text} {ending}", label) for text, label in read(sentiment_csv.validation) for ending in (".", "!")]
    return data(str(sentiment_csv.train), rows_of(tmp_path / "eval.csv", rows))


def test_the_teacher_is_compared_with_a_guess(
    look: Look, good_teacher: Path, make_model: Any, tmp_path: Path, sentiment_csv: Any
) -> None:
    """A teacher that knows nothing gives targets like any other, and the student keeps 100 % of its accuracy."""
    section = twice(sentiment_csv, tmp_path)
    found = look("teacher", data=section, teacher={"name": "pretrained", "model": str(good_teacher)})
    assert [one.status for one in found] == ["ok"]
    assert "on 64 eval rows" in found[0].found
    found = look("teacher", data=section, teacher={"name": "pretrained", "model": str(make_model("bert", seed=5))})
    assert [one.status for one in found] == ["mistake"]
    assert "no better than" in found[0].found


def test_labels_in_another_order_are_named(look: Look, good_teacher: Path, tmp_path: Path, sentiment_csv: Any) -> None:
    """A teacher whose id2label is swapped teaches the opposite; its accuracy alone reads as a bad teacher."""
    swapped = tmp_path / "swapped"
    shutil.copytree(good_teacher, swapped)
    config = json.loads((swapped / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (swapped / "config.json").write_text(json.dumps(config))
    teacher = {"name": "pretrained", "model": str(swapped)}
    found = look(
        "teacher", data=twice(sentiment_csv, tmp_path), teacher=teacher, student={"name": "copy_layers", "layers": 1}
    )
    assert [one.status for one in found] == ["mistake"]
    assert "would be if its classes were [negative, positive]" in found[0].found
    assert "they are read as [positive, negative]" in found[0].found


def test_targets_repeat_and_say_something(look: Look, good_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher in training mode gives noise; one that is sure of everything gives labels at its price."""
    teacher = {"name": "pretrained", "model": str(good_teacher)}
    found = look("targets", teacher=teacher, objectives=[{"name": "kl", "temperature": 0.1}])
    assert "equal bit for bit" in texts(found, "ok")
    assert "in 100% of 64 targets" in texts(found, "warning")
    assert "its top class is the label in" in texts(found, "ok")
    monkeypatch.setattr("hf_distill.models.target_model.LiveModel.train", lambda self, mode=True: self._held[0].train())
    found = look("targets", teacher=teacher, objectives=[{"name": "kl", "temperature": 20.0}])
    assert "two passes of the teacher over the same rows differ" in texts(found, "mistake")


SENTENCES = [
    f"{text} {at}"
    for at in range(4)
    for text in ("the film is great .", "a dull story !", "the cast was moving and clever", "very bad scene of a plot")
]
TAGS = {"O": 0, "B-PER": 1, "I-PER": 2}


def of_task(task: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Return the kind of model, rows, and further sections of a small recipe of a task."""
    lm = {"objectives": [{"name": "kl", "weight": 0.5}, {"name": "labels", "weight": 0.5}]}
    if task == "text-generation":
        return "llama-lm", [{"text": text} for text in SENTENCES], lm
    if task == "fill-mask":
        return "bert-mlm", [{"text": text} for text in SENTENCES], lm
    if task in ("summarization", "translation"):
        names = ("text", "summary") if task == "summarization" else ("source", "target")
        rows = [dict(zip(names, (f"{text} very", text), strict=True)) for text in SENTENCES]
        return "t5", rows, lm
    if task == "token-classification":
        tagged = [(text.split(), ["B-PER", *["I-PER"] * (at % 2), "O"]) for at, text in enumerate(SENTENCES)]
        rows = [{"tokens": words, "tags": (tags + ["O"] * len(words))[: len(words)]} for words, tags in tagged]
        return "bert-tokens", rows, {}
    if task == "question-answering":
        rows = [
            {
                "question": "what is great ?",
                "context": f"{text} {at}",
                "answers": {"text": [text[:5]], "answer_start": [0]},
            }
            for at, text in enumerate(SENTENCES)
        ]
        return "bert-qa", rows, {"task": {"name": task, "stride": 8}}
    if task == "sentence-similarity":
        rows = [
            {"text": f"{one} {at}", "text_pair": SENTENCES[at - 3], "label": at % 5} for at, one in enumerate(SENTENCES)
        ]
        settings = {"task": {"name": task, "score_range": [0, 4]}, "objectives": [{"name": "sentence_embedding"}]}
        return "bert-bare", rows, settings
    return "bert", [{"text": text, "label": ("negative", "positive")[at % 2]} for at, text in enumerate(SENTENCES)], {}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_is_looked_at(task: str, look: Look, make_model: Any, tmp_path: Path) -> None:
    """A check that knows one task alone stops at another, and its user sees a mistake that is none."""
    kind, rows, sections = of_task(task)
    settings = {"labels": list(TAGS)} if kind == "bert-tokens" else {}
    path = {}
    for split, part in (("train", rows[:10]), ("validation", rows[10:])):
        path[split] = str(tmp_path / f"{split}.jsonl")
        Path(path[split]).write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
    names: dict[str, Any] = {"data": {"path": path}, "task": task, **sections}
    names["teacher"] = {"name": "pretrained", "model": str(make_model(kind, **settings))}
    found = look(*OURS, **names)
    assert "stopped by" not in texts(found, "mistake")
    assert "mistake" not in {one.status for one in found if one.check != "teacher"}
    checks = {one.check for one in found}
    assert {"tokenizer", "special", "length", "overlap", "teacher", "targets"} <= checks
    assert "equal bit for bit" in texts(found, "ok")
    assert ("learned" in checks) == (kind in ("llama-lm", "t5", "bert-tokens", "bert-qa"))
    assert not [one for one in found if one.status == "skipped"]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tokens_that_a_model_was_not_trained_on(look: Look, make_model: Any, tmp_path: Path) -> None:
    """Two begin tokens, or half a text of unknown ones, cost accuracy and leave no trace in a loss."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    model = make_model("llama-lm")
    rows = [{"text": f"<s>the film {at} 北京" if at % 2 else f"the film {at}"} for at in range(20)]
    section = {
        "path": {"train": jsonl(tmp_path / "train.jsonl", rows), "validation": jsonl(tmp_path / "eval.jsonl", rows)}
    }
    begins = tmp_path / "begins"
    shutil.copytree(model, begins)
    tokenizer = AutoTokenizer.from_pretrained(begins)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(begins)
    lm = {"task": "text-generation", "objectives": [{"name": "kl"}]}
    found = look("special", data=section, teacher={"name": "pretrained", "model": str(begins)}, **lm)
    said = texts(found, "warning")
    assert "10 of 20 texts begin with <s> twice" in said
    masked = {"task": "fill-mask", "teacher": {"name": "pretrained", "model": str(make_model("bert-mlm"))}}
    said = texts(look("special", data=section, **masked), "warning")
    assert "of the tokens of train are unknown ([UNK]), in 20 rows" in said


def test_tokenizers_that_split_differently(look: Look, make_model: Any, tmp_path: Path) -> None:
    """A student that sees case beside a teacher that does not, or a tokenizer that the recipe names by mistake."""
    from transformers import BertTokenizer

    other = {"name": "pretrained", "model": str(make_model("roberta", layers=2))}
    found = look("tokenizer", student=other)
    assert "of the student's tokens are the teacher's too" in texts(found, "ok")
    assert "the teacher's tokenizer ignores case" in texts(found, "warning")
    cased = tmp_path / "cased"
    own = BertTokenizer.from_pretrained(make_model("bert"))
    BertTokenizer(vocab=own.get_vocab(), do_lower_case=False, model_max_length=64).save_pretrained(cased)
    said = texts(look("tokenizer", tokenizer=str(cased)), "warning")
    assert "the teacher reads tokens that its own tokenizer would not make" in said


def test_texts_whose_end_is_never_learned(look: Look, make_model: Any, tmp_path: Path) -> None:
    """Cut at max_length, no example has an end, and the student writes on until it is stopped."""
    rows = [{"text": f"{' the film is great' * 5} {at}"} for at in range(20)]
    path = {"train": jsonl(tmp_path / "train.jsonl", rows), "validation": jsonl(tmp_path / "eval.jsonl", rows)}
    teacher = {"name": "pretrained", "model": str(make_model("llama-lm"))}
    lm = {"task": "text-generation", "objectives": [{"name": "kl"}], "teacher": teacher}
    assert "is learned in 20 of 20 rows" in texts(look("learned", data={"path": path}, **lm), "ok")
    found = look("learned", data={"path": path, "max_length": 8}, **lm)
    assert "is learned in 0 of 20 rows" in texts(found, "warning")


def test_what_the_run_warns_of_is_in_the_table(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Warnings above the table scroll away, and a script that reads the document never sees them."""
    kind, rows, _ = of_task("token-classification")
    for row in rows[::3]:
        row["tags"][:3] = ["O", "I-PER", "O"]  # inside of what has not begun
    path = {
        "train": jsonl(tmp_path / "train.jsonl", rows[:10]),
        "validation": jsonl(tmp_path / "eval.jsonl", rows[10:]),
    }
    teacher = {"name": "pretrained", "model": str(make_model(kind, labels=list(TAGS)))}
    recipe = load_recipe(write_recipe(task="token-classification", data={"path": path}, teacher=teacher))
    said = [one.found for one in examine(recipe) if one.check == "run" and one.status == "warning"]
    assert any("the beginning of a span" in text for text in said)
