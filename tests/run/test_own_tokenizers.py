"""Classifiers whose teacher has a tokenizer of its own: every answer is one to the model's own tokens."""

from __future__ import annotations

import csv
import inspect
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import WriteRecipe, run, same, unfinish, weights

from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.data.two_tokenizers import teacher_view
from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.tasks import Prepared, Setup, TextClassification

TEXTS = ["a great film", "dull", "the plot is moving and the cast is charming", "xyz was tedious !"]
NAMES = ("negative", "positive")


def tokenizer_of(path: Path, side: str = "right") -> Any:
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = side
    return tokenizer


def alone(path: Path, *texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return a saved model's logits, each text by itself: no padding, no data set, no trainer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        rows = [model(**tokenizer(*row, return_tensors="pt")).logits[0] for row in zip(*texts, strict=True)]
    return torch.stack(rows).numpy()


def prepare(teacher: Path, student: Path, *, side: str = "right", **columns: Any) -> Prepared:
    from datasets import Dataset

    data = Dataset.from_dict(columns)
    return TextClassification().prepare(
        {"train": data, "eval": data},
        Setup(
            tokenizer=tokenizer_of(student, side),
            teacher_tokenizer=tokenizer_of(teacher, side),
            teacher=open_config(str(teacher)),
            student=open_config(str(student)),
            max_length=64,
        ),
    )


def batch(prepared: Prepared, split: str = "train") -> dict[str, torch.Tensor]:
    rows = [dict(row) for row in getattr(prepared, split)]
    return dict(prepared.collator([{key: row[key] for key in row if not key.endswith("length")} for row in rows]))


# ---- The data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "side"),
    [
        ("roberta", "bert", "right"),
        ("bert", "roberta", "right"),
        ("gpt2", "distilbert", "right"),
        ("llama", "bert", "right"),
        ("llama", "gpt2", "right"),
        # A tokenizer may pad on the left; rotary positions do not mind, tables of them would.
        ("llama", "llama", "left"),
    ],
)
@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
def test_both_models_answer_as_they_do_alone(
    teacher: str, student: str, side: str, pair: bool, make_model: Any
) -> None:
    """With the other one's padding token RoBERTa counts its positions wrongly, and a decoder misses the last token."""
    paths = [make_model(teacher, seed=1), make_model(student, labels=NAMES[::-1], vocab=["film", "great"], seed=2)]
    texts = [TEXTS, [*TEXTS[1:], TEXTS[0]]] if pair else [TEXTS]
    columns = dict(zip(("text", "text_pair"), texts, strict=False))
    prepared = prepare(*paths, side=side, **columns, label=["positive", "negative", "positive", "negative"])
    assert prepared.for_teacher is not None
    inputs = batch(prepared)
    assert inputs["labels"].tolist() == [0, 1, 0, 1]
    heads = (prepared.for_teacher.head, prepared.head)
    for path, head, prefix in zip(paths, heads, ("teacher_", ""), strict=True):
        model, new = load_model(str(path), head, own_head=True)
        assert not new
        own = {
            key.removeprefix("teacher_"): value
            for key, value in inputs.items()
            if key.startswith("teacher_") == bool(prefix) and key != "labels"
        }
        assert {"input_ids", "attention_mask"} <= own.keys()
        with torch.no_grad():
            logits = model(**own).logits.numpy()
        np.testing.assert_allclose(logits, alone(path, *texts), atol=1e-5)
        # There was something to pad, on the side that the tokenizer pads on.
        edge = own["attention_mask"][:, 0 if side == "left" else -1]
        assert 0 in edge
        assert own["attention_mask"][:, -1 if side == "left" else 0].all()
    assert prepared.layout.teacher_columns == (1, 0)


def test_the_teacher_s_view_is_row_by_row_the_same_data(make_model: Any) -> None:
    """Sorted by its own length the teacher's answers would stand beside another text's, in the report alone."""
    from datasets import Dataset

    teacher, student = make_model("roberta"), make_model("bert")
    prepared = prepare(teacher, student, text=TEXTS, label=[0, 1, 1, 0])
    theirs = prepared.for_teacher
    assert theirs is not None
    order = [
        TEXTS.index(text) for text in sorted(TEXTS, key=lambda text: len(tokenizer_of(student)(text)["input_ids"]))
    ]
    for view, rows in ((theirs.train, range(4)), (theirs.eval, order)):
        expected = tokenizer_of(teacher)([TEXTS[row] for row in rows])
        assert view["input_ids"][:] == expected["input_ids"]
        assert view["attention_mask"][:] == expected["attention_mask"]
        assert view["length"][:] == [len(ids) for ids in expected["input_ids"]]
        assert view["labels"][:] == [[0, 1, 1, 0][row] for row in rows]
        assert set(view.column_names) == {"input_ids", "attention_mask", "length", "labels"}
    # A fine-tuned teacher is found by its own tokens, whatever the student reads.
    alike = TextClassification().prepare(
        {name: Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1, 0]}) for name in ("train", "eval")},
        Setup(tokenizer=tokenizer_of(teacher), max_length=64),
    )
    assert dataset_fingerprint(theirs.train) == dataset_fingerprint(alike.train)
    assert theirs.head.settings["pad_token_id"] == 1
    assert prepared.head.settings["pad_token_id"] == 0
    assert dataset_fingerprint(teacher_view(prepared.eval)) == dataset_fingerprint(theirs.eval)


def test_no_room_in_one_of_the_two(make_model: Any) -> None:
    """What fits the student's special tokens may leave nothing of the text to the teacher."""
    from datasets import Dataset

    data = Dataset.from_dict({"text": TEXTS, "text_pair": TEXTS, "label": [0, 1, 1, 0]})
    bert, roberta = (tokenizer_of(make_model(kind)) for kind in ("bert", "roberta"))
    with pytest.raises(UserError, match="4 tokens leave no room for text: the tokenizer adds 4 of its own"):
        TextClassification().prepare(
            {"train": data, "eval": data}, Setup(tokenizer=bert, teacher_tokenizer=roberta, max_length=4)
        )


# ---- The trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_training_compares_the_teacher_s_own_answers(workers: int, make_model: Any, tmp_path: Path) -> None:
    """A teacher fed the student's token numbers answers just as readily, to gibberish."""
    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import KLDivergence, Labels, Objective

    class Noting(KLDivergence):
        name = "kl"

        def rows(self, student: Any, teacher: Any, labels: Any) -> Any:
            noted.append((student.detach().numpy(), teacher.detach().numpy()))
            return super().rows(student, teacher, labels)

    paths = make_model("roberta", seed=1), make_model("bert", seed=2, hidden_dropout_prob=0.0)
    prepared = prepare(*paths, text=TEXTS, label=[0, 1, 1, 0])
    assert prepared.for_teacher is not None
    noted: list[tuple[Any, Any]] = []
    objectives: tuple[Objective, ...] = (Noting(weight=0.5, temperature=2.0), Labels(weight=0.5))
    trainer = DistillationTrainer(
        load_model(str(paths[1]), prepared.head)[0],
        DistillationArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=1,
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=workers,
        ),
        teacher=load_model(str(paths[0]), prepared.for_teacher.head, own_head=True)[0],
        objectives=objectives,
        layout=prepared.layout,
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        data_collator=prepared.collator,
    )
    for model in (trainer.model, trainer.teacher):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    trainer.train()
    teacher, student = (alone(path, TEXTS) for path in paths)
    (seen,) = noted
    # Which row is which: the order of an epoch is random.
    order = [int(np.abs(teacher - row).sum(-1).argmin()) for row in seen[1]]
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(seen[1], teacher[order], atol=1e-5)
    np.testing.assert_allclose(seen[0], student[order], atol=1e-5)


def test_hidden_states_of_other_tokens_are_not_compared(make_model: Any, tmp_path: Path) -> None:
    """Padded to one length two models' tokens line up by shape, and the loss pulls a word towards another."""
    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import KLDivergence

    class ByToken(KLDivergence):
        name = "by_token"
        by_token = True

    prepared = prepare(make_model("roberta"), make_model("bert"), text=TEXTS, label=[0, 1, 1, 0])
    models = [load_model(str(make_model(kind)), prepared.head)[0] for kind in ("bert", "roberta")]
    settings = {
        "args": DistillationArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True),
        "teacher": models[1],
        "objectives": [ByToken()],
        "layout": prepared.layout,
        "data_collator": prepared.collator,
    }
    with pytest.raises(UserError, match="'by_token' compares the models token by token") as caught:
        DistillationTrainer(models[0], train_dataset=prepared.train, **settings)
    assert caught.value.key == "objectives[0]"
    # Of rows that change on their way nothing is known before the first batch.
    trainer = DistillationTrainer(models[0], train_dataset=list(prepared.train), **settings)
    with pytest.raises(UserError, match="'by_token' compares the models token by token"):
        trainer.train()


def test_a_step_does_not_depend_on_its_split(make_model: Any, tmp_path: Path) -> None:
    """The teacher's tokens have a padding of their own; it must count for nothing however a step is cut."""
    from invariants.cases import NotingTrainer, arguments, largest_difference, split, train

    from hf_distill.objectives import KLDivergence, Labels, LogitsMSE

    chance = random.Random(0)
    words = ["great", "film", "xyz", "dull", "the"]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 12))) for _ in range(16)]
    paths = make_model("roberta", seed=1), make_model("bert", seed=2)
    prepared = prepare(*paths, text=texts, label=["positive", "negative", None, "positive"] * 4)
    assert prepared.for_teacher is not None
    records = []
    for size in (8, 4, 1):
        student, teacher = (
            load_model(str(path), head)[0].double()
            for path, head in ((paths[1], prepared.head), (paths[0], prepared.for_teacher.head))
        )
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = NotingTrainer(
            student,
            arguments(tmp_path, num_train_epochs=1, **split(size)),
            teacher=teacher,
            objectives=[KLDivergence(temperature=2.0), Labels(), LogitsMSE()],
            layout=prepared.layout,
            train_dataset=prepared.train,
            data_collator=prepared.collator,
        )
        records.append(train(trainer))
    assert len(records[0].losses) == 2
    for other in records[1:]:
        assert other.losses == pytest.approx(records[0].losses, rel=1e-12)
        assert largest_difference(records[0], other) < 1e-9


# ---- Whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def roberta_to_bert(write_recipe: WriteRecipe, make_model: Any) -> WriteRecipe:
    """Write a recipe of a RoBERTa that teaches a BERT; keyword arguments replace whole sections."""
    models = {
        "teacher": {"name": "pretrained", "model": str(make_model("roberta", seed=10))},
        "student": {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=2))},
    }
    return lambda **sections: write_recipe(**{**models, **sections})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(logits: np.ndarray[Any, Any], rows: Sequence[Mapping[str, str]]) -> float:
    names = [NAMES[guess] for guess in logits.argmax(-1)]
    return float(np.mean([name == row["label"] for name, row in zip(names, rows, strict=True)]))


def test_a_run_from_roberta_to_bert(
    roberta_to_bert: WriteRecipe, tmp_path: Path, make_model: Any, sentiment_csv: Any
) -> None:
    """Each figure of the report is of a model that read its own tokens, and the student is saved with its own."""
    from transformers import AutoTokenizer

    report = run(roberta_to_bert(report={"baseline": True, "latency": False}))
    rows = rows_of(sentiment_csv.validation)
    texts = [row["sentence"] for row in rows]
    out = tmp_path / "out"
    assert type(AutoTokenizer.from_pretrained(out)).__name__ == "BertTokenizer"
    teacher, student = alone(make_model("roberta", seed=10), texts), alone(out, texts)
    assert report.teacher.metrics["accuracy"] == pytest.approx(accuracy(teacher, rows))
    assert report.student.metrics["accuracy"] == pytest.approx(accuracy(student, rows))
    assert report.agreement == pytest.approx((teacher.argmax(-1) == student.argmax(-1)).mean())
    # The teacher's own confidence, through the report's calibration: a wrong input would change every digit.
    top = torch.tensor(teacher).double().softmax(-1).max(-1).values
    bins = report.calibration["teacher"]
    counted = sum(count for count in bins.counts if count)
    assert counted == len(rows)
    mean = sum(count * value for count, value in zip(bins.counts, bins.confidence, strict=True) if count) / counted
    assert mean == pytest.approx(float(top.mean()), abs=1e-5)
    assert report.baseline is not None
    assert report.settings["tokenizers"] == {"student": "BertTokenizer", "teacher": "RobertaTokenizer"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "- **Tokenizers**: two, BertTokenizer (student) and RobertaTokenizer (teacher)" in card
    assert "RobertaTokenizer" in (out / "report.html").read_text(encoding="utf-8")


def test_a_teacher_is_fine_tuned_on_its_own_tokens(
    roberta_to_bert: WriteRecipe, tmp_path: Path, make_model: Any, sentiment_csv: Any
) -> None:
    """It would learn the task in the student's token numbers, be good at it in the report, and useless elsewhere."""
    from transformers import AutoTokenizer

    teachers = tmp_path / "teachers"
    source = make_model("roberta", seed=1)
    tuned = {"num_train_epochs": 2, "learning_rate": 2e-3}
    teacher = {"name": "finetuned", "model": str(source), "training": tuned, "output_dir": str(teachers)}
    report = run(roberta_to_bert(teacher=teacher))
    (place,) = teachers.iterdir()
    assert type(AutoTokenizer.from_pretrained(place)).__name__ == "RobertaTokenizer"
    assert json.loads((place / "config.json").read_text())["pad_token_id"] == 1
    rows = rows_of(sentiment_csv.validation)
    logits = alone(place, [row["sentence"] for row in rows])
    assert report.teacher.metrics["accuracy"] == pytest.approx(accuracy(logits, rows))
    evaluated = [entry for entry in report.history["teacher"] if "eval_loss" in entry][-1]
    truth = torch.tensor([NAMES.index(row["label"]) for row in rows])
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), truth)
    assert evaluated["eval_loss"] == pytest.approx(float(loss), rel=1e-4)
    # Another student finds it again, whatever tokens that one reads.
    again = roberta_to_bert(
        teacher=teacher,
        student={"name": "pretrained", "model": str(make_model("distilbert", layers=1))},
        training={"output_dir": str(tmp_path / "other")},
    )
    run(again)
    assert list(teachers.iterdir()) == [place]


def test_a_run_goes_on_where_it_stopped(
    roberta_to_bert: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume that lost the teacher's tokens would end with other weights."""
    steps = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}
    path = roberta_to_bert(training={**steps, "train_sampling_strategy": "group_by_length"})
    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.run.fit.remove_checkpoints", lambda *_, **__: None)
        run(path)
    out = tmp_path / "out"
    whole = weights(out)
    # The state right after a kill: the fit unfinished, a checkpoint in the middle of the epoch.
    unfinish(out)
    (out / "model.safetensors").unlink()
    for late in set(out.glob("checkpoint-*")) - {out / "checkpoint-3"}:
        shutil.rmtree(late)
    assert (out / "checkpoint-3" / "trainer_state.json").exists()
    run(path)
    assert same(weights(out), whole)
    assert json.loads((out / "_fit.json").read_text())["finished"]


def test_both_tokenizers_are_told_before_a_run(roberta_to_bert: WriteRecipe, make_model: Any) -> None:
    """Whoever meant one family of models sees it here, and not in the report."""
    from hf_distill import load_recipe
    from hf_distill.run.dry_run import check

    sizes = [len(open_tokenizer(str(make_model(kind)))) for kind in ("bert", "roberta")]
    assert (
        f"tokenizer   student BertTokenizer, {sizes[0]} tokens; teacher RobertaTokenizer, {sizes[1]} tokens; "
        "inputs of at most 64 tokens"
    ) in check(load_recipe(roberta_to_bert())).splitlines()
    with pytest.raises(UserError) as caught:
        check(load_recipe(roberta_to_bert(tokenizer=str(make_model("roberta")))))
    assert "Leave out `tokenizer`: each model then uses its own." in str(caught.value)


@pytest.mark.usefixtures("brief_latency")
def test_models_are_timed_on_their_own_tokens(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the student's shorter input a teacher looks faster than it is, or fails on a number beyond its vocabulary."""
    from hf_distill.report.report import Report
    from hf_distill.report.results import ModelResult
    from hf_distill.report.text import speed_note
    from hf_distill.run import evaluation

    paths = make_model("roberta", vocab=["film"], seed=1), make_model("bert", seed=2)
    prepared = prepare(*paths, text=TEXTS, label=[0, 1, 1, 0])
    assert prepared.for_teacher is not None
    models = {
        "teacher": load_model(str(paths[0]), prepared.for_teacher.head)[0],
        "student": load_model(str(paths[1]), prepared.head)[0],
        "baseline": load_model(str(paths[1]), prepared.head)[0],
    }
    seen: dict[str, set[tuple[Any, ...]]] = {name: set() for name in models}
    for name, model in models.items():
        forward = model.forward

        def noting(name: str = name, forward: Any = forward, **inputs: Any) -> Any:
            seen[name].add(tuple(tuple(row) for row in inputs["input_ids"].tolist()))
            return forward(**inputs)

        noting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        monkeypatch.setattr(model, "forward", noting)
    found = evaluation.latencies(prepared, models, 2)
    texts = sorted(TEXTS, key=lambda text: len(tokenizer_of(paths[1])(text)["input_ids"]))
    for name, path in (("teacher", paths[0]), ("student", paths[1]), ("baseline", paths[1])):
        expected = {
            tuple(tuple(row) for row in tokenizer_of(path)(rows, padding=True)["input_ids"])
            for rows in (texts[2:3], texts[1:3])
        }
        assert seen[name] == expected
        assert found[name].single.sequence_length == len(tokenizer_of(path)(texts[2])["input_ids"])
    assert found["teacher"].single.sequence_length != found["student"].single.sequence_length
    report = Report(
        task="text-classification",
        metric="accuracy",
        greater_is_better=True,
        settings={"tokenizers": {}},
        **{name: ModelResult.of(models[name], {"accuracy": 0.5}, found[name]) for name in ("teacher", "student")},
    )
    lengths = [getattr(found["teacher"], size).sequence_length for size in ("single", "batch")]
    assert speed_note(report).endswith(
        f"The teacher read the same texts in its own tokens ({lengths[0]} and {lengths[1]} tokens)."
    )
    assert "its own tokens" not in speed_note(replace(report, settings={}))
