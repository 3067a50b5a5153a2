"""Ensembles: the mean of softened distributions, in every loss at its own temperature, and a run with one."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from invariants.cases import Collator, arguments, largest_difference, make_model, make_rows, make_trainer, split, train
from runs import WriteRecipe, run, same, weights
from torch import Tensor

from hf_distill import DistillationArguments, DistillationTrainer, evaluate_distillation, load_recipe
from hf_distill.errors import UserError
from hf_distill.models.heads import CHUNK_BYTES
from hf_distill.models.projection import Projector
from hf_distill.objectives import Hidden, KLDivergence, Labels, LogitsMSE, ReverseKL
from hf_distill.run.dry_run import check
from hf_distill.teachers import CachedTeacher, EnsembleTeacher, FinetunedTeacher, GivenTeacher, PretrainedTeacher
from hf_distill.teachers.ema import Ema
from hf_distill.teachers.ensemble.averaging import ROUTE, Ensemble
from hf_distill.teachers.row_choice import bag, held_out, not_held_out, together
from hf_distill.training.chunked import rows as chunked

WEIGHTS = (0.5, 0.2, 0.3)
TERMS = (KLDivergence(temperature=2.0), ReverseKL(temperature=5.0, temperature_squared=False), Labels(weight=0.3))
KINDS = (
    *("classification", "multi-label", "token-classification", "question-answering"),
    *("masked-lm", "causal-lm", "sequence-to-sequence"),
)


def models(kind: str) -> list[Any]:
    return [
        make_model(kind, layers, seed=seed, dtype=torch.float64).eval() for layers, seed in ((2, 2), (1, 3), (1, 4))
    ]


# How the three models are averaged, and the kinds of rows where it may differ.
WAYS: dict[str, dict[str, Any]] = {
    "probabilities": {"weights": [5, 2, 3]},
    "logits": {"weights": [5, 2, 3], "combine": "logits"},
    "confidence": {"weights": "confidence"},
    "confident logits": {"weights": "confidence", "combine": "logits"},
    "route": {"routed": True},
}
CASES = [
    *((kind, "probabilities") for kind in KINDS),
    *((kind, way) for kind in ("multi-label", "question-answering", "causal-lm") for way in list(WAYS)[1:]),
]


def trainer(kind: str, path: Path, ensemble: Ensemble | None = None, **settings: Any) -> Any:
    made = make_trainer(kind, path, **{"terms": TERMS, **settings})
    made.teacher = ensemble or Ensemble(models(kind), WEIGHTS)
    made._follow_models()
    return made


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_by_hand(teachers: list[Any], way: str, example: Any, temperature: float) -> Any:
    """Return the mean distribution of every row, from the formulas of the docs."""
    weights = np.array([[WEIGHTS[k]] * len(rows) for k, rows in enumerate(teachers)])
    if way.startswith("confiden"):
        logs = [log_softmax(rows) for rows in teachers]
        weights = np.stack([np.exp((np.exp(one) * one).sum(-1)) for one in logs])
        weights /= weights.sum(0)
    if way == "route":
        weights = np.stack([example % 3 == k for k in range(3)]).astype(float)
    if way.endswith("logits"):
        return np.exp(
            log_softmax(sum(w[:, None] * rows for w, rows in zip(weights, teachers, strict=True)) / temperature)
        )
    shares = zip(weights, teachers, strict=True)
    return sum(w[:, None] * np.exp(log_softmax(rows / temperature)) for w, rows in shares)


def by_hand(kind: str, made: Any, batch: dict[str, Tensor], members: list[Any], way: str) -> list[float]:
    """Return the sums of the three terms: the rows from the layout, the mean and the losses in NumPy."""
    layout = made.layout
    with torch.no_grad():
        taken = {name: value for name, value in batch.items() if name in made.takes[0]}
        outputs = [layout.logits(model(**taken)) for model in (made.model.eval(), *members)]
        rows = [layout.select(outputs[0], logits, batch) for logits in outputs[1:]]
    student, teachers = rows[0].student.numpy(), [one.teacher.numpy() for one in rows]

    def both(temperature: float) -> tuple[Any, Any]:
        mean = mean_by_hand(teachers, way, rows[0].example.numpy(), temperature)
        return mean, log_softmax(student / temperature)

    p, log_q = both(2.0)
    forward = 4 * (p * (np.log(p, where=p > 0, out=np.zeros_like(p)) - log_q)).sum()
    p, log_q = both(5.0)
    q = np.exp(log_q)
    reverse = (q * (log_q - np.log(p, where=p > 0, out=np.zeros_like(p)))).sum()
    labels = rows[0].labels.numpy()
    known = labels >= 0
    own = -log_softmax(student)[known, labels[known]].sum()
    p, _ = both(1.0)
    agreement = (p.argmax(-1) == student.argmax(-1)).sum()
    return [forward, reverse, own, agreement]


def routed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch whose examples have the teachers 0, 1, 2, 0, ... in turn."""
    return {**batch, ROUTE: torch.arange(len(batch["input_ids"])) % 3}


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_each_loss_compares_with_the_mean_at_its_own_temperature(
    kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean of logits, or one softened after it was averaged, is another teacher at every temperature but one, and no
    curve shows it."""
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 7 * 40 * 8)  # several chunks, and blocks, of a batch
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 3 * 40 * 4)
    members = models(kind)
    made = trainer(kind, tmp_path, Ensemble(members, **WAYS[way]))
    batch = routed(Collator()(make_rows(kind, 6)))
    assert (made._heads is not None) == kind.startswith(("masked", "causal", "sequence"))
    made.model.eval()
    sums, (agreement, _), _ = made._forward(made.model, batch, made._heads)
    found = [*sums.sum(0).tolist(), float(agreement.sum())]
    assert found == pytest.approx(by_hand(kind, made, batch, members, way), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "way"), [case for case in CASES if case[0] not in ("masked-lm", "sequence-to-sequence")]
)
def test_a_cached_mean_is_the_live_one(kind: str, way: str, tmp_path: Path) -> None:
    """What was merged at one temperature would be used at another, or a vocabulary's mean would be of the likeliest
    tokens of one teacher: the cache would teach something else than the teachers beside the student."""
    sparse = kind.startswith(("masked", "causal", "sequence"))
    terms = [KLDivergence(temperature=2.0), Labels(weight=0.3)] if sparse else TERMS
    rows = [{**row, **({ROUTE: at % 3} if way == "route" else {})} for at, row in enumerate(make_rows(kind))]
    members = models(kind)

    def one(teacher: Any, name: str) -> Any:
        torch.manual_seed(0)
        settings: Any = {"per_device_train_batch_size": 8, "max_steps": 2, "report_to": "none", "disable_tqdm": True}
        args = DistillationArguments(str(tmp_path / name), save_strategy="no", learning_rate=0.05, **settings)
        data = datasets.Dataset.from_list(rows)
        made = DistillationTrainer(
            make_model(kind, 1, seed=1, dtype=torch.float64),
            args,
            teacher=teacher,
            objectives=terms,
            train_dataset=data,
            eval_dataset=data,
            data_collator=Routed(),
        )
        made.train()
        return made.evaluate()

    ensemble = Ensemble(members, **WAYS[way])
    live = one(ensemble, "live")
    stored = one(CachedTeacher(teacher=ensemble, path=str(tmp_path / "cache"), top=40, precision="float32"), "cached")
    names = [name for name in live if name.startswith(("eval_loss", "eval_objective", "eval_agreement"))]
    assert len(names) == len(terms) + 2
    assert [stored[name] for name in names] == pytest.approx([live[name] for name in names], rel=1e-9)


class Routed(Collator):
    """Pads, and hands on which teacher teaches an example."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        route = {ROUTE: torch.tensor([row[ROUTE] for row in rows])} if ROUTE in rows[0] else {}
        return {**super().__call__(rows), **route}


def test_values_are_averaged(tmp_path: Path) -> None:
    """A softmax over one value is 1 whatever it is: the loss would be that of no teacher."""
    members = models("regression")
    made = trainer("regression", tmp_path, Ensemble(members, WEIGHTS), terms=[LogitsMSE()])
    batch = Collator()(make_rows("regression", 6))
    made.model.eval()
    with torch.no_grad():
        taken = {name: value for name, value in batch.items() if name in made.takes[0]}
        wanted = sum(weight * one(**taken).logits for weight, one in zip(WEIGHTS, members, strict=True))
        error = (made.model(**taken).logits - wanted).square().sum()
    sums, _, _ = made._forward(made.model, batch, None)
    assert float(sums.sum()) == pytest.approx(float(error), rel=1e-12)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_splits_and_padding_change_nothing(kind: str, tmp_path: Path) -> None:
    """Each teacher has its own rows and heads; a mean over a micro-batch, or over padding, would go unnoticed."""
    records = [train(trainer(kind, tmp_path / str(size), max_steps=3, **split(size))) for size in (8, 4)]
    assert largest_difference(*records) < 1e-9
    made = trainer(kind, tmp_path)
    rows = make_rows(kind, 4)
    made.model.eval()
    whole, _, _ = made._forward(made.model, Collator()(rows), made._heads)
    alone = [made._forward(made.model, Collator()([row]), made._heads)[0] for row in rows]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_one_teacher_s_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the logits of all teachers side by side an ensemble of eight would not fit where one does."""
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 8 * 40 * 8)
    made = trainer("causal-lm", tmp_path)
    alive: list[weakref.ref[Tensor]] = []
    most = [0, 0]
    real = Projector.raw

    def raw(self: Projector, part: slice) -> Tensor:
        logits = real(self, part)
        alive.append(weakref.ref(logits))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        most[1] = max(most[1], len(logits))
        return logits

    monkeypatch.setattr(Projector, "raw", raw)
    batch = Collator()(make_rows("causal-lm", 8))
    made.compute_loss(made.model, batch).backward()
    assert most == [2, 8]  # the student's, and one teacher's
    assert len(alive) > 8


def test_an_ensemble_predicts_what_it_teaches(tmp_path: Path) -> None:
    """The report would have the metrics of another teacher than the one that students learned from."""
    for kind in ("classification", "multi-label", "question-answering", "causal-lm", "regression"):
        members = models(kind)
        ensemble = Ensemble(members, WEIGHTS)
        made = trainer(kind, tmp_path / kind, ensemble, terms=[LogitsMSE() if kind == "regression" else KLDivergence()])
        batch = Collator()(make_rows(kind, 5))
        taught = made._compare(made.model.eval(), batch).rows.teacher
        predictor = ensemble.predicting(made.layout)
        given = {name: value for name, value in batch.items() if name in predictor.takes}
        with torch.no_grad():
            logits = made.layout.logits(predictor(**given))
        found = made.layout.select(logits, None, batch).student
        if kind == "regression":
            torch.testing.assert_close(found, taught)
        else:
            torch.testing.assert_close(found.softmax(-1), taught.at(1.0).softmax(-1), rtol=1e-9, atol=1e-12)


def test_labels_of_every_teacher_are_in_the_student_s_order(make_model: Any) -> None:
    """Two teachers with the same labels in another order would vote for different classes in the same column."""
    paths = [make_model("bert", labels=order, seed=3) for order in (("negative", "positive"), ("positive", "negative"))]
    one, other = (transformers.AutoModelForSequenceClassification.from_pretrained(path) for path in paths)
    ensemble = Ensemble([one, other])
    ids = torch.tensor([[2, 7, 8, 3]])
    first, second = ensemble(input_ids=ids)
    torch.testing.assert_close(first["logits"], one(ids).logits)
    torch.testing.assert_close(second["logits"], other(ids).logits.flip(-1))
    third = transformers.AutoModelForSequenceClassification.from_pretrained(make_model("bert", labels=("a", "b")))
    with pytest.raises(UserError, match="label names differ"):
        Ensemble([one, third])


@pytest.fixture
def members(make_model: Any) -> list[dict[str, Any]]:
    other = str(make_model("bert", layers=2, seed=2, labels=("positive", "negative")))
    return [
        {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))},
        {"name": "pretrained", "model": other},
    ]


def test_a_run_with_an_ensemble(write_recipe: WriteRecipe, members: Any, make_model: Any, tmp_path: Path) -> None:
    """Of several fine-tuned teachers one would take the place of another, or be trained again by every run; and the
    report's teacher would be one of them."""
    tuned = [
        {"name": "finetuned", "model": str(make_model("bert", seed=seed)), "training": {"max_steps": 2}}
        for seed in (5, 6)
    ]
    path = write_recipe(
        teacher={"name": "ensemble", "teachers": [members[0], *tuned], "weights": [2, 1, 1]},
        report={"latency": True, "baseline": False},
    )
    recipe = load_recipe(path)
    assert "teachers" in check(recipe)
    report = run(path)
    assert len(list((tmp_path / "out" / "_teacher").glob("*/model.safetensors"))) == 2
    assert {"teacher 2", "teacher 3"} <= set(report.history)
    assert report.teacher.parameters > 3 * report.student.parameters
    assert report.teacher.latency is not None
    assert set(report.teacher.metrics) == set(report.student.metrics)
    assert 0 <= report.agreement <= 1
    again = run(path)
    assert again.teacher.metrics == report.teacher.metrics
    assert again.student.metrics == report.student.metrics
    assert len(list((tmp_path / "out" / "_teacher").glob("*/model.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"objectives": [{"name": "hidden"}]}, "objectives[0]", "an ensemble does not give"),
        ({"task": "sentence-similarity"}, "teacher.name", "no common mean"),
        (
            {"objectives": [{"name": "kl", "temperature": {"start": 4.0, "end": 1.0}}], "cached": {}},
            "teacher.teacher.combine",
            "at every",
        ),
        ({"objectives": [{"name": "hidden"}], "cached": {}}, "teacher.layers", "an ensemble gives none"),
        ({"cached": {"layers": [1]}}, "teacher.layers", "an ensemble gives none"),
    ],
)
def test_what_an_ensemble_cannot_do(
    change: dict[str, Any], key: str, words: str, write_recipe: WriteRecipe, members: Any
) -> None:
    """Hidden states of several models, or a mean of vectors, would be those of one of them without a word."""
    teacher: dict[str, Any] = {"name": "ensemble", "teachers": members}
    sections = {"teacher": teacher, **change}
    if (cached := sections.pop("cached", None)) is not None:
        sections["teacher"] = {"name": "cached", "teacher": teacher, **cached}
    recipe = load_recipe(write_recipe(**sections))
    with pytest.raises(UserError, match=words) as caught:
        check(recipe)
    assert key in str(caught.value)


def test_the_trainer_refuses_the_same(tmp_path: Path) -> None:
    """The first batch would fail somewhere in a layer."""
    ensemble = Ensemble(models("classification"))
    student = make_model("classification", 1, seed=1, dtype=torch.float64)
    with pytest.raises(UserError, match="an ensemble does not give"):
        DistillationTrainer(student, arguments(tmp_path), teacher=ensemble, objectives=[Hidden()])
    made = trainer("classification", tmp_path, Ensemble(models("classification"), routed=True))
    with pytest.raises(UserError, match="no column cached_route"):
        made.compute_loss(made.model, Collator()(make_rows("classification", 4)))


def test_members_with_other_labels_are_refused(write_recipe: WriteRecipe, members: Any, make_model: Any) -> None:
    """The second teacher's `joy` would count as the first one's `positive`."""
    members[1] = {"name": "pretrained", "model": str(make_model("bert", labels=("joy", "fear")))}
    recipe = load_recipe(write_recipe(teacher={"name": "ensemble", "teachers": members}))
    with pytest.raises(UserError, match="label names differ") as caught:
        check(recipe)
    assert "teacher.teachers[1].model" in str(caught.value)


ONE, TUNED = PretrainedTeacher(model="a"), FinetunedTeacher(model="b")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teachers": [ONE]}, "there is one entry"),
        ({"teachers": [TUNED], "count": 1}, "two teachers or more"),
        ({"teachers": [ONE], "count": 5}, "all would be the same"),
        ({"teachers": [TUNED, TUNED], "count": 5}, "of one entry"),
        ({"teachers": [ONE, ONE], "weights": [1.0]}, "found 1$"),
        ({"teachers": [ONE, ONE], "weights": [1.0, -1.0]}, "above 0.*found -1$"),
        ({"teachers": [ONE, ONE], "weights": [0.0, 0.0]}, "above 0"),
        ({"teachers": [ONE, ONE], "route": "topic"}, "by the names"),
        ({"teachers": {"a": ONE, "b": ONE}, "route": "topic", "weights": "confidence"}, "no mean"),
        ({"teachers": [ONE, ONE], "weights": "size"}, "published teachers alone"),
        ({"teachers": [TUNED, ONE]}, "List that one first"),
        ({"teachers": [ONE, CachedTeacher(teacher=ONE)]}, "all teachers cached"),
        ({"teachers": [ONE, GivenTeacher(columns={"logits": ["a", "b"]})]}, "found given"),
        ({"teachers": [ONE, EnsembleTeacher(teachers=[ONE, ONE])]}, "found ensemble"),
    ],
)
def test_no_members(fields: dict[str, Any], words: str) -> None:
    """What is no model has no head and no temperature; a weight of 0 is a teacher that runs for nothing."""
    with pytest.raises(UserError, match=words):
        EnsembleTeacher(**fields)


def test_rows_of_several_teachers() -> None:
    """ "A part of the rows" does not say whether five teachers learned from shards, from bags, or from all."""

    def rows(**settings: Any) -> str:
        return EnsembleTeacher(teachers=[TUNED], count=3, **settings).rows_in_words("8 with a label")

    assert rows() == "each of 3 teachers on the 8 with a label"
    assert rows(vary="bags") == "each of 3 teachers on as many rows, drawn with replacement from the 8 with a label"
    assert "without the tenth" in rows(weights="validation")


TEACHER_5 = {"name": "finetuned", "training": {"max_steps": 2}}


@pytest.mark.parametrize("vary", ["seeds", "bags"])
def test_several_of_one_entry(vary: str, write_recipe: WriteRecipe, tiny_bert: Path, tmp_path: Path) -> None:
    """Five teachers with the same seed and rows are one teacher that costs five times as much; a run that is resumed
    would train them again; and the report would not say whether any of them is better alone."""
    one = {**TEACHER_5, "model": str(tiny_bert)}
    teacher: dict[str, Any] = {"name": "ensemble", "teachers": [one], "count": 3, "vary": vary, "weights": "validation"}
    path = write_recipe(teacher={"name": "cached", "teacher": teacher}, report={"latency": False, "baseline": False})
    assert "3 of bert" in check(load_recipe(path))
    report = run(path)
    folders = sorted((tmp_path / "out" / "_teacher").glob("*/model.safetensors"))
    first, second, third = map(weights, (folder.parent for folder in folders))
    assert not same(first, second)
    assert not same(second, third)
    assert {"teacher 1", "teacher 2", "teacher 3"} <= set(report.history)
    trained_on = report.settings.get("rows_trained_on", {}).get("teacher", "each of 3 teachers")
    assert "each of 3 teachers" in trained_on
    facts = report.settings["teacher"]
    assert list(facts["members"]) == ["teacher 1", "teacher 2", "teacher 3"]
    assert len({*facts["members"].values()}) == 1 or "the best alone is teacher" in report.verdict()[0]
    again = run(path)
    assert again.settings["teacher"] == facts
    assert again.student.metrics == report.student.metrics
    assert [one.stat().st_mtime for one in folders] == [
        one.stat().st_mtime for one in sorted((tmp_path / "out" / "_teacher").glob("*/model.safetensors"))
    ]


def test_bags_and_rows_held_out() -> None:
    """Weights by rows that a teacher was trained on are those of the teacher that learned them by heart."""
    rows = together([not_held_out, bag(3)])(100)
    assert len(rows) == 90 > len(set(rows)) > 40
    assert not set(rows) & set(held_out(100))
    assert rows == together([not_held_out, bag(3)])(100) != together([not_held_out, bag(4)])(100)
    with pytest.raises(UserError, match="held out"):
        held_out(19)


def test_confidence_of_numbers(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Numbers have no entropy: the report would say that they were weighted by it, and they were not."""
    file = tmp_path / "values.csv"
    file.write_text("text,label\n" + "".join(f"film number {at},{at / 10}\n" for at in range(20)))
    tuned = {**TEACHER_5, "model": str(make_model("bert-bare", layers=1))}
    recipe = write_recipe(
        teacher={"name": "ensemble", "teachers": [tuned], "count": 2, "weights": "confidence"},
        data={"path": str(file), "splits": {"train": "train", "eval": 0.5}},
        objectives=[{"name": "logits_mse"}],
        student={"name": "pretrained", "model": tuned["model"]},
    )
    with pytest.raises(UserError, match="numbers") as caught:
        check(load_recipe(recipe))
    assert "teacher.weights" in str(caught.value)


def test_weights_of_questions(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Metrics of questions are of all windows of the eval split: on other rows there are none, and no loss of them."""
    file = tmp_path / "questions.jsonl"
    rows = [
        {"question": "the film", "context": f"a {word} film", "answers": {"text": [word], "answer_start": [2]}}
        for word in ("great", "dull", "boring", "fresh", "funny") * 6
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    tuned = {**TEACHER_5, "model": str(make_model("bert-bare", layers=1))}
    report = run(
        write_recipe(
            task={"name": "question-answering", "stride": 4},
            teacher={"name": "ensemble", "teachers": [tuned], "count": 2, "weights": "validation"},
            data={"path": str(file), "splits": {"train": "train[:25]", "eval": "train[25:]"}},
            student={"name": "pretrained", "model": tuned["model"]},
            report={"latency": False, "baseline": False},
        )
    )
    assert "teacher 1 0." in report.settings["teacher"]["weights"]


def test_weights_by_validation(tmp_path: Path) -> None:
    """A teacher that is wrong would count as much as one that is right."""
    for kind, wanted in (("classification", np.exp([-0.5, -1.0, -2.0])), ("regression", 1 / np.array([0.5, 1.0, 2.0]))):
        ensemble = Ensemble(models(kind), "validation")
        with pytest.raises(UserError, match="only a run"):
            ensemble.begin(ensemble)
        losses = iter((0.5, 1.0, 2.0))
        ensemble.settle(
            make_trainer(kind, tmp_path / kind, terms=[Labels()]).layout, lambda _, found=losses: next(found)
        )
        assert ensemble.weights == pytest.approx(wanted / wanted.sum())
        assert ensemble.facts()["combined"] == f"mean of the {'values' if kind == 'regression' else 'probabilities'}"
        ensemble.begin(ensemble)


@pytest.mark.parametrize("read", ["the same tokens", "own tokens", "a part of the vocabulary"])
def test_a_route(read: str, write_recipe: WriteRecipe, members: Any, make_model: Any, tmp_path: Path) -> None:
    """A row would be taught by a teacher that knows nothing of it, in training or in the report alone; of two equal
    texts with two teachers, a cache would hold one; and beside tokens of the teacher's own, no row would have one."""
    texts = {"medical": "a great film", "legal": "the plot is dull"}
    lines = [f"{text},{label},{name}" for name, text in texts.items() for label in ("negative", "positive")] * 4
    lines += ["a great film,positive,legal"] * 4
    if read == "own tokens":
        others = [str(make_model("roberta", layers=1, seed=seed)) for seed in (4, 5)]
        members = [{"name": "pretrained", "model": path} for path in others]
    student: dict[str, Any] = {"name": "pretrained", "model": str(make_model("bert", layers=1, seed=9))}
    if read == "a part of the vocabulary":
        student = {"name": "prune_vocabulary", "student": student}
    file = tmp_path / "routed.csv"
    file.write_text("\n".join(["text,label,topic", *lines]) + "\n")
    teacher = {"name": "ensemble", "teachers": dict(zip(texts, members, strict=True)), "route": "topic"}
    data = {"path": str(file), "splits": {"train": "train", "eval": "train"}}
    reports = {}
    for name, entry in (("live", teacher), ("cached", {"name": "cached", "teacher": teacher})):
        path = write_recipe(teacher=entry, data=data, student=student, report={"latency": False, "baseline": False})
        reports[name] = run(path, f"training.output_dir={tmp_path / name}", "training.optim=sgd")
    for name, value in weights(tmp_path / "live").items():
        torch.testing.assert_close(weights(tmp_path / "cached")[name], value)
    assert reports["live"].student.metrics == pytest.approx(reports["cached"].student.metrics)
    assert reports["live"].teacher.metrics == pytest.approx(reports["cached"].teacher.metrics)
    file.write_text(file.read_text().replace("legal", "Legal", 1))
    with pytest.raises(UserError, match="row 2 of the train split, counted from 0, names 'Legal'") as caught:
        check(load_recipe(path))
    assert "route" in str(caught.value)


@pytest.mark.parametrize("kind", ["ensemble", "ema"])
def test_a_report_from_python(kind: str, make_model: Any, tmp_path: Path) -> None:
    """The report's teacher would be one of the members, or an average that began anew when it was evaluated."""
    texts, labels = ["a great film", "the plot is dull", "boring", "fresh and funny"], [1, 0, 0, 1]
    opened = transformers.AutoModelForSequenceClassification.from_pretrained
    paths = [make_model("bert", layers=2, seed=seed) for seed in (1, 2)]
    student, *teachers = map(opened, [make_model("bert", layers=1), *paths])
    teacher: Any = Ensemble(teachers, [3, 1]) if kind == "ensemble" else Ema(0.5)
    data = datasets.Dataset.from_dict({"text": texts, "label": labels})
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths[0])
    args = DistillationArguments(str(tmp_path), max_steps=3, learning_rate=1e-2, disable_tqdm=True, save_strategy="no")
    made = DistillationTrainer(
        student, args, teacher=teacher, processing_class=tokenizer, train_dataset=data, eval_dataset=data
    )
    made.train()
    models = teachers if kind == "ensemble" else [made.teacher]
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(made.args.device)
    with torch.no_grad():
        shares = [one(**batch).logits.softmax(-1) for one in models]
    mean = shares[0] if kind == "ema" else 0.75 * shares[0] + 0.25 * shares[1]
    report = evaluate_distillation(made, latency=True)
    assert report.settings.get("teacher", {}).get("weights") == (
        "teacher 1 0.750, teacher 2 0.250" if kind == "ensemble" else None
    )
    right = mean.argmax(-1).cpu() == torch.tensor(labels)
    assert report.teacher.metrics["accuracy"] == pytest.approx(float(right.float().mean()))
    assert report.teacher.parameters == sum(one.num_parameters() for one in models)
    assert report.teacher.latency is not None
