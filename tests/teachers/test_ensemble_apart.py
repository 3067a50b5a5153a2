"""Ensembles whose teachers read tokens or inputs of their own: each is cached alone, and the mean is taken by row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_runs import count_calls
from runs import WriteRecipe, run, same, unfinish, weights

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.mixing import mix
from hf_distill.run.dry_run import check
from hf_distill.run.preparation import open_run
from hf_distill.teachers.row_choice import bag

NAMES = ("negative", "positive")
WORDS = {"positive": "wonderful", "negative": "awful and dull"}
HYPOTHESIS = "the film was {} ."


@pytest.fixture
def members(make_model: Any) -> dict[str, dict[str, Any]]:
    """Return three entries: of the student's tokens, of other tokens and class order, and of inputs of its own."""
    nli = make_model("gpt2", labels=("entailment", "not_entailment"), seed=5, initializer_range=0.7)
    other = make_model("roberta", labels=NAMES[::-1], seed=10, initializer_range=0.7)
    return {
        "ours": {"name": "pretrained", "model": str(make_model("bert", seed=1, initializer_range=0.7))},
        "other": {"name": "pretrained", "model": str(other)},
        "asked": {"name": "zero_shot", "model": str(nli), "hypothesis": HYPOTHESIS, "labels": WORDS},
    }


@pytest.fixture
def write(write_recipe: WriteRecipe, make_model: Any, members: Any, tmp_path: Path) -> Any:
    """Write a recipe with these teachers, or others; keyword arguments are settings of the ensemble, and sections."""

    def write(teachers: Any = None, sections: Any = None, *, cached: bool = True, **settings: Any) -> Path:
        every = members if teachers is None else teachers
        wrapped = {name: {"name": "cached", "teacher": one} if cached else one for name, one in every.items()}
        student = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=2))}
        teacher = {"name": "ensemble", "teachers": wrapped, **settings}
        return write_recipe(**{"teacher": teacher, "student": student, **(sections or {})})

    return write


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def texts_of(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["sentence"] for row in rows], np.array([NAMES.index(row["label"]) for row in rows])


def alone(entry: dict[str, Any], texts: list[str]) -> np.ndarray[Any, Any]:
    """Return a teacher's log-probabilities of `NAMES`, float64: each text by itself, without data set and trainer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    if entry["name"] == "zero_shot":
        ask = pipeline("zero-shot-classification", model=entry["model"], device="cpu")
        said = [ask(text, list(WORDS.values()), hypothesis_template=HYPOTHESIS) for text in texts]
        scores = [dict(zip(one["labels"], one["scores"], strict=True)) for one in said]
        return np.log(np.array([[one[WORDS[name]] for name in NAMES] for one in scores], np.float64))
    model = AutoModelForSequenceClassification.from_pretrained(entry["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(entry["model"])
    with torch.no_grad():
        logits = np.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].double().numpy() for text in texts])
    columns = [model.config.label2id[name] for name in NAMES]
    return log_softmax(logits[:, columns])


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def stored(path: Path) -> Any:
    """Return a run with its targets stored."""
    opened = open_run(load_recipe(path), restart=True)
    teacher = opened.load_teacher()
    opened.store_targets(teacher)
    return opened


def mean_of(logs: list[np.ndarray[Any, Any]], way: str, losses: list[float], temperature: float) -> Any:
    """Return the mean distribution by hand; of logits, those of log-probabilities have the same softmax."""
    shares = np.array([[2.0], [1.0], [1.0]]) * np.ones(len(logs[0]))
    if way == "confidence":
        shares = np.stack([np.exp((np.exp(one) * one).sum(-1)) for one in logs])
    if way == "validation":
        shares = np.exp(-np.array(losses))[:, None] * np.ones(len(logs[0]))
    shares /= shares.sum(0)
    if way == "logits":
        return np.exp(log_softmax(sum(w[:, None] * one for w, one in zip(shares, logs, strict=True)) / temperature))
    return sum(w[:, None] * np.exp(log_softmax(one / temperature)) for w, one in zip(shares, logs, strict=True))


WAYS: dict[str, dict[str, Any]] = {
    "weights": {"weights": [2, 1, 1]},
    "logits": {"weights": [2, 1, 1], "combine": "logits"},
    "confidence": {"weights": "confidence"},
    "validation": {"weights": "validation"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_is_that_of_each_teacher_by_itself(
    way: str, write: Any, members: Any, sentiment_csv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row beside another one's, classes in the order of another teacher, or tokens of another tokenizer: targets that
    look as right as any."""
    opened = stored(write(**WAYS[way]))
    fitter, source = opened.stored
    texts = {"train": texts_of(sentiment_csv.train), "eval": texts_of(sentiment_csv.validation)}
    labels = texts["train"][1]
    of_train = [alone(one, texts["train"][0]) for one in members.values()]
    losses = [-float(one[np.arange(len(labels)), labels].mean()) for one in of_train]
    data = fitter.prepared
    for split in ("train", "eval"):
        rows = getattr(data, split)
        # Which text a row has: by its tokens, since the eval split is sorted.
        tokens = [opened.pair.tokenizer(text)["input_ids"] for text in texts[split][0]]
        order = [tokens.index(row) for row in rows["input_ids"][:]]
        logs = [alone(one, texts[split][0])[order] for one in members.values()]
        batch = data.collator([{key: row[key] for key in row if key != "length"} for row in rows])
        targets = source.targets(batch, None)
        logits = [one["logits"].double() for one in targets.mixed]
        for temperature in (1.0, 2.0):
            rows_of_mean = mix(logits, targets.mean, (temperature,)).at(temperature) / temperature
            wanted = mean_of(logs, way, losses, temperature)
            np.testing.assert_allclose(rows_of_mean.softmax(-1).numpy(), wanted, atol=2e-5)


def test_a_run_finds_each_teacher_again(
    write: Any, members: Any, tmp_path: Path, sentiment_csv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand texts would be asked about again because of a recipe with one more teacher, and the report
    would have the scores of a teacher that read the tokens of another."""
    asked = count_calls(monkeypatch)
    texts, labels = texts_of(sentiment_csv.validation)
    every = len(labels) + len(texts_of(sentiment_csv.train)[0])
    out = tmp_path / "out"
    stored(write({"other": members["other"], "ours": members["ours"]}))
    assert sum(asked) == 2 * every
    asked.clear()
    path = write(sections={"report": {"seeds": 2, "latency": True, "baseline": True}})
    report = run(path, restart=True)
    assert sum(asked) == every  # only those of the zero-shot teacher
    logs = [alone(one, texts) for one in members.values()]
    scores = {name: float((one.argmax(-1) == labels).mean()) for name, one in zip(members, logs, strict=True)}
    teacher = report.settings["teacher"]
    assert teacher["members"] == pytest.approx(scores)
    assert teacher["combined"] == "mean of the probabilities"
    mean = sum(np.exp(one) for one in logs).argmax(-1)
    assert report.teacher.metrics["accuracy"] == pytest.approx((mean == labels).mean())
    assert len(report.seeds) == 2
    assert "asked:" in report.settings["teacher's answers"]
    before = weights(out)
    unfinish(out)
    run(path)
    assert sum(asked) == every
    assert same(before, weights(out))


def test_teachers_of_the_students_tokens_teach_as_if_they_ran_beside_it(
    write: Any, members: Any, make_model: Any, tmp_path: Path
) -> None:
    """What is written as another recipe with the same teachers would quietly be another teacher."""
    two = {"ours": members["ours"], "more": {"name": "pretrained", "model": str(make_model("bert", seed=3))}}
    found = []
    for cached in (True, False):
        run(write(two, cached=cached, weights=[3, 1]), restart=True)
        found.append(weights(tmp_path / "out"))
    for name, one in found[0].items():
        if name.endswith("key.bias"):  # has no gradient but noise
            continue
        np.testing.assert_allclose(one, found[1][name], atol=2e-5, err_msg=name)


def test_teachers_of_other_tokens_are_trained_on_them(
    write: Any, make_model: Any, tmp_path: Path, sentiment_csv: Any
) -> None:
    """Trained in the student's token numbers they would be good in the report and useless elsewhere; the held-out rows
    of one of them would be rows of the student's data."""
    from transformers import AutoTokenizer

    training = {"num_train_epochs": 1, "learning_rate": 1e-3}
    one = {"name": "finetuned", "model": str(make_model("roberta-bare", seed=4)), "training": training}
    places = [str(tmp_path / "teachers"), str(tmp_path / "again")]
    report = run(write({"one": {**one, "output_dir": places[0]}}, count=2, vary="bags", weights="validation"))
    made = sorted(path.parent for path in Path(places[0]).glob("*/config.json"))
    assert len(made) == 2
    assert all(type(AutoTokenizer.from_pretrained(one)).__name__ == "RobertaTokenizer" for one in made)
    texts, labels = texts_of(sentiment_csv.validation)
    scores = sorted((alone({"name": "", "model": str(one)}, texts).argmax(-1) == labels).mean() for one in made)
    assert sorted(report.settings["teacher"]["members"].values()) == pytest.approx(scores)
    assert set(report.settings["teacher"]["members"]) == {"teacher 1", "teacher 2"}


def test_numbers_are_averaged_as_numbers(write: Any, make_model: Any, tmp_path: Path) -> None:
    """A mean of softmaxes, or a column of classes, in the place of a mean of values is a number like any other."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["a great film", "dull", "the plot is moving and the cast is charming", "xyz was tedious !"]
    values = np.array([0.5, 1.5, 2.0, -1.0])
    data = tmp_path / "data.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, values, strict=True)])
    places = {kind: tmp_path / kind for kind in ("bert-bare", "roberta-bare")}
    teachers = {
        kind.partition("-")[0]: {
            "name": "finetuned",
            "model": str(make_model(kind, seed=4)),
            "training": {"max_steps": 3},
            "output_dir": str(place),
        }
        for kind, place in places.items()
    }
    sections = {"data": {"path": {"train": str(data), "validation": str(data)}}, "objectives": ["logits_mse"]}
    report = run(write(teachers, {**sections, "report": {"baseline": False, "latency": False}}, weights=[3, 1]))
    each = []
    for place in places.values():
        (saved,) = (found.parent for found in place.glob("*/config.json"))
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(saved),
            AutoTokenizer.from_pretrained(saved),
        )
        with torch.no_grad():
            each.append([float(model.eval()(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts])
    mean = (3 * np.array(each[0]) + np.array(each[1])) / 4
    assert report.teacher.metrics["mse"] == pytest.approx(((mean - values) ** 2).mean(), rel=1e-4)
    assert report.settings["teacher"]["combined"] == "mean of the values"


def test_a_bag_and_held_out_rows_have_no_row_in_common(write: Any) -> None:
    """A row drawn twice would be trained on and held out: the best step of a teacher that knows it by heart."""
    opened = open_run(load_recipe(write()), restart=True)
    for seed in range(5):
        fitter = opened.fitter.for_teacher(opened.prepared.for_members[1]).on_labelled(bag(seed))
        assert len(set(map(str, fitter.prepared.train["input_ids"]))) < len(fitter.prepared.train)  # some are twice
        parts = fitter.holding_out(0.25).prepared
        train, held = (set(map(str, part["input_ids"])) for part in (parts.train, parts.eval))
        assert train
        assert held
        assert not train & held


def test_what_check_says(write: Any, capsys: Any) -> None:
    """Nobody would see before a run which teacher reads what, and that each is stored."""
    text = check(load_recipe(write()))
    for words in (
        "roberta",
        "hypotheses  2",
        "student BertTokenizer",
        "GPT2Tokenizer",
        "teachers.asked: whole outputs",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cached": False}, "teachers.asked: wanted a model, pretrained or finetuned, or cached"),
        ({"route": "topic"}, "not cached one by one"),
        ({"weights": "size"}, "told by published teachers"),
        ({"count": 2}, "count: trains several teachers of one entry"),
    ],
)
def test_entries_that_do_not_fit(changes: Any, words: str, write: Any) -> None:
    """Each would be another teacher than the one that was meant."""
    with pytest.raises(UserError, match=words):
        load_recipe(write(**changes))


def test_teachers_that_do_not_fit(write: Any, members: Any, make_model: Any) -> None:
    """Live teachers of other tokens cannot share a batch; and other classes have no common mean."""
    live = {name: members[name] for name in ("ours", "other")}
    with pytest.raises(UserError, match="store the targets of each") as caught:
        check(load_recipe(write(live, cached=False)))
    assert "teacher.teachers.other" in str(caught.value)
    half = {"ours": {"name": "cached", "teacher": members["ours"]}, "other": members["other"]}
    with pytest.raises(UserError, match="all teachers cached"):
        load_recipe(write(half, cached=False))
    third = make_model("roberta", labels=("negative", "neutral", "positive"), seed=1)
    with pytest.raises(UserError, match="3 outputs"):
        check(load_recipe(write({**live, "third": {"name": "pretrained", "model": str(third)}})))
