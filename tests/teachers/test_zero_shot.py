"""The zero-shot teacher: the scores of Transformers' pipeline, as logits of the task's classes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_runs import count_calls
from runs import WriteRecipe, run
from transformers import pipeline

from hf_distill import load_recipe
from hf_distill.data import load_splits
from hf_distill.errors import UserError
from hf_distill.recipe.recipe import Recipe
from hf_distill.run.dry_run import check
from hf_distill.run.pairing import open_pair
from hf_distill.run.preparation import prepare
from hf_distill.teachers.zero_shot.teacher import places

NLI = {
    "bert": ("contradiction", "neutral", "entailment"),
    "roberta": ("entailment", "neutral", "contradiction"),
    "gpt2": ("entailment", "not_entailment"),
}
HYPOTHESIS = "the film was {} ."
WORDS = {"positive": "wonderful", "negative": "awful and dull"}


@pytest.fixture
def asked(write_recipe: WriteRecipe, make_model: Any) -> Any:
    """Write a recipe with a zero-shot teacher; settings of the teacher, and sections."""

    def write(kind: str = "bert", sections: Any = None, *, cached: Any = None, **settings: Any) -> Path:
        model = str(make_model(kind, labels=NLI[kind], seed=5, initializer_range=0.7))
        teacher = {"name": "zero_shot", "model": model, "hypothesis": HYPOTHESIS, "labels": WORDS, **settings}
        if cached:
            teacher = {"name": "cached", "teacher": teacher, "path": str(cached)}
        student = {"name": "pretrained", "model": str(make_model("distilbert-bare", layers=2, seed=2))}
        return write_recipe(**{"teacher": teacher, "student": student, **(sections or {})})

    return write


def prepared_of(recipe: Recipe) -> Any:
    pair = open_pair(recipe)
    return prepare(recipe, pair, load_splits(recipe.data, recipe.task.roles, recipe.teacher.reads))[0]


def scores(model: str, texts: list[str], words: list[str], *, several: bool) -> np.ndarray[Any, Any]:
    """Return the pipeline's scores, `(texts, words)`."""
    classify = pipeline("zero-shot-classification", model=model, device="cpu")
    found = [classify(one, words, hypothesis_template=HYPOTHESIS, multi_label=several) for one in texts]
    return np.array([[dict(zip(one["labels"], one["scores"], strict=True))[word] for word in words] for one in found])


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("kind", [*NLI])
def test_its_probabilities_are_the_pipelines_scores(
    kind: str, several: bool, asked: Any, tmp_path: Path, sentiment_csv: Any
) -> None:
    """Entailment looked for in the wrong column, padding read, or a hypothesis cut: scores that only look right."""
    chance = np.random.default_rng(0)
    words = ["great", "dull", "film", "the", "plot", "qx"]
    texts = [" ".join(chance.choice(words, size)) for size in (1, 3, 12, 40, 90)] * 2  # the last is cut
    labels = (
        [["positive", "negative"][: number % 3] for number in range(10)] if several else ["positive", "negative"] * 5
    )
    path = tmp_path / "data.json"
    path.write_text("\n".join(json.dumps({"text": a, "label": b}) for a, b in zip(texts, labels, strict=True)))
    data = {"data": {"path": {"train": str(path), "validation": str(path)}}}
    recipe = load_recipe(asked(kind, data, batch_size=3))
    prepared = prepared_of(recipe).for_teacher
    model = recipe.teacher.load(prepared.head, None).model
    split = prepared.train
    batch = prepared.collator([{key: row[key] for key in row} for row in split])
    with torch.no_grad():
        logits = model(**{key: batch[key] for key in batch if key in ("input_ids", "attention_mask", "token_type_ids")})
    found = logits["logits"].sigmoid() if several else logits["logits"].softmax(-1)
    wanted = scores(recipe.teacher.source, texts, list(WORDS.values()), several=several)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert wanted.std(0).min() > 0.01  # else any answer would do
    assert split["length"][:] == [max(map(len, row)) for row in split["input_ids"]]  # a cache sorts by it
    assert list(model.config.id2label.values()) == [*WORDS]


def test_a_run_without_a_label(asked: Any, tmp_path: Path, sentiment_csv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for: no labels to train on. Its classes must be those of the eval split, live and from a cache."""
    train = tmp_path / "texts.csv"
    rows = list(csv.DictReader(sentiment_csv.train.open()))
    with train.open("w", newline="") as file:
        csv.writer(file).writerows([("sentence",), *((row["sentence"],) for row in rows)])
    validation = list(csv.DictReader(sentiment_csv.validation.open()))
    sections = {
        "data": {
            "path": {"train": str(train), "validation": str(sentiment_csv.validation)},
            "columns": {"text": "sentence"},
        },
        "objectives": [{"name": "kl", "temperature": 2.0}],
        "training": {"logging_steps": 1},
        "report": {"baseline": False, "latency": False},
    }
    path = asked("roberta", sections)
    live = run(path)
    wanted = scores(
        load_recipe(path).teacher.source, [row["sentence"] for row in validation], [*WORDS.values()], several=False
    )
    right = [[*WORDS][best] == row["label"] for best, row in zip(wanted.argmax(-1), validation, strict=True)]
    assert live.teacher.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert live.settings["teacher"]["hypotheses"].startswith("positive: the film was wonderful .")
    assert "the film was awful and dull" in (tmp_path / "out" / "README.md").read_text()
    seen = count_calls(monkeypatch)
    stored = run(asked("roberta", sections, cached=tmp_path / "cache"), restart=True)
    assert sum(seen) == len({row["sentence"] for row in (*rows, *validation)})
    losses = [[entry["loss"] for entry in one.history["student"] if "loss" in entry] for one in (live, stored)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert stored.teacher.metrics == live.teacher.metrics
    assert stored.settings["teacher"] == live.settings["teacher"]


def test_the_words_may_be_the_names_of_the_labels(asked: Any) -> None:
    """Without `labels` the classes are those of the data, in its order: the logits must be in the same one."""
    recipe = load_recipe(asked(labels=None))
    prepared = prepared_of(recipe)
    assert prepared.layout.teacher_columns is None
    first = prepared.for_teacher.train[0]["input_ids"]
    tokenizer = open_pair(recipe).teacher_tokenizer
    said = [tokenizer.decode(ids).rpartition("was ")[2] for ids in first]
    assert [text.partition(".")[0].strip() for text in said] == [*prepared.label_names]
    assert "(the names of the labels)" in check(recipe)


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"hypothesis": "It is about sport."}, "hypothesis", "wanted {} once"),
        ({"hypothesis": "{} or {}"}, "hypothesis", "wanted {} once"),
        ({"labels": {"positive": "good"}}, "labels", "wanted two or more"),
        ({"labels": {"positive": "good", "negative": "Good "}}, "labels", "have the same words"),
        ({"labels": {"positive": "good", "negative": " "}}, "labels", "no words for 'negative'"),
        ({"labels": {"positive": "good", "bad": "bad"}}, "label", "the label 'negative'; wanted one of"),
        ({"hypothesis": "the film " * 70 + "{}"}, "teacher.hypothesis", "leaves no room for a text"),
    ],
)
def test_bad_settings(settings: Any, key: str, words: str, asked: Any) -> None:
    """Each would give the same answer for every text, or another label's."""
    with pytest.raises(UserError) as caught:
        check(load_recipe(asked(**settings)))
    (line,) = caught.value.mistakes
    assert key in line
    assert words in line


def test_bad_models(make_model: Any, asked: Any, tmp_path: Path) -> None:
    """A sentiment classifier, or a head that was never trained, gives numbers too."""
    for model, words in {
        make_model("bert"): "its classes are [negative, positive]",
        make_model("bert-bare"): "without a trained classifier",
        make_model("gpt2-lm"): "without a trained classifier",
    }.items():
        with pytest.raises(UserError, match=r"teacher\.model") as caught:
            check(load_recipe(asked(model=str(model))))
        assert words in caught.value.mistakes[0]
    path = Path(shutil.copytree(make_model("bert-bare"), tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    named = {"architectures": ["BertForSequenceClassification"], "id2label": {0: "entailment", 1: "not_entailment"}}
    (path / "config.json").write_text(
        json.dumps({**config, **named, "label2id": {"entailment": 0, "not_entailment": 1}})
    )
    with pytest.raises(UserError, match="has no trained head"):
        run(asked(model=str(path)))


def test_other_data(asked: Any, tmp_path: Path) -> None:
    """Pairs have no hypothesis of their own, numbers no words, and classes that are numbered may be in any order."""
    pairs = [{"text": "a", "text_pair": "b", "label": label} for label in WORDS]
    numbers = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    values = [{"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}]
    path = tmp_path / "data.json"
    data: dict[str, Any] = {"path": {"train": str(path), "validation": str(path)}}
    for rows, labels, words in (
        (pairs, WORDS, "pairs of texts"),
        (values, None, "numbers to predict (regression)"),
        (numbers, None, "the 2 classes of the data have none"),
        ([{**row, "label": str(row["label"])} for row in numbers], WORDS, "data.labels: the labels are numbers"),
        (
            numbers,
            WORDS,
            "data.labels: the labels are numbers, and the teacher's classes have names [positive, negative]",
        ),
    ):
        path.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(UserError) as caught:
            check(load_recipe(asked(sections={"data": data}, labels=labels)))
        (line,) = caught.value.mistakes
        assert words in line
    for names in (["negative", "positive"], {"0": "negative", "1": "positive"}):
        prepared = prepared_of(load_recipe(asked(sections={"data": {**data, "labels": names}})))
        assert (prepared.label_names, [*prepared.train["labels"]]) == (tuple(WORDS), [1, 0])


def test_the_places_of_entailment_and_contradiction() -> None:
    """The pipeline takes the first column for contradiction, which is `neutral` in some models."""
    from transformers import PretrainedConfig

    for names, wanted in {
        ("contradiction", "neutral", "entailment"): (2, 0),
        ("ENTAILMENT", "NEUTRAL", "CONTRADICTION"): (0, 2),
        ("neutral", "contradiction", "entailment"): (2, 1),
        ("entailment", "not_entailment"): (0, 1),
        ("not_entailment", "entailment"): (1, 0),
    }.items():
        assert places(PretrainedConfig(id2label=dict(enumerate(names)))) == wanted
