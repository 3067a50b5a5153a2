"""What a user of `Trainer` brings: data sets of text, a teacher by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from hf_distill import DistillationArguments, DistillationTrainer, UserError
from hf_distill.objectives import Attention, KLDivergence, Labels
from hf_distill.tasks import TASKS, QuestionAnswering, TextGeneration
from hf_distill.teachers import (
    CachedTeacher,
    EmaTeacher,
    FinetunedTeacher,
    GivenTeacher,
    PretrainedTeacher,
    PublishedTeacher,
)
from hf_distill.teachers.ema import Ema

if TYPE_CHECKING:
    from conftest import MakeModel

TEXTS = ("a great film", "the plot is dull", "a very charming cast with a moving story", "boring", "fresh and funny")


def arguments(directory: Path, **settings: Any) -> DistillationArguments:
    return DistillationArguments(
        str(directory), max_steps=2, logging_steps=1, disable_tqdm=True, use_cpu=True, save_strategy="no", **settings
    )


def opened(path: Path, auto_class: str) -> Any:
    return getattr(transformers, auto_class).from_pretrained(path, dtype=torch.float32)


def losses(trainer: DistillationTrainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def text_trainer(
    make_model: MakeModel, directory: Path, kind: str, auto_class: str, columns: dict[str, Sequence[Any]], **given: Any
) -> DistillationTrainer:
    """Return a trainer on data sets of text, for a tiny teacher and student of a kind."""
    paths = make_model(kind, layers=2, seed=1), make_model(kind, layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths[1])
    data = Dataset.from_dict(dict(columns))
    settings = {"train_dataset": data, "eval_dataset": data, "processing_class": tokenizer, **given}
    settings.setdefault("teacher", opened(paths[0], auto_class))
    return DistillationTrainer(opened(paths[1], auto_class), arguments(directory), **settings)


WORDS = [text.split() for text in TEXTS]
NEGATIVE = [["negative"] * len(words) for words in WORDS]
SPANS = [{"text": [text.split()[-1]], "answer_start": [text.rindex(text.split()[-1])]} for text in TEXTS]


@pytest.mark.parametrize(
    ("kind", "auto_class", "columns"),
    [
        ("bert", "AutoModelForSequenceClassification", {"text": TEXTS, "label": [1, 0, 1, 0, 1], "id": range(5)}),
        (
            "bert",
            "AutoModelForSequenceClassification",
            {"text": TEXTS, "labels": ["positive", "negative"] * 2 + [None]},
        ),
        ("bert-tokens", "AutoModelForTokenClassification", {"tokens": WORDS, "tags": NEGATIVE}),
        ("bert-qa", "AutoModelForQuestionAnswering", {"question": ["which"] * 5, "context": TEXTS, "answers": SPANS}),
        ("bert-mlm", "AutoModelForMaskedLM", {"text": TEXTS}),
        ("llama-lm", "AutoModelForCausalLM", {"text": TEXTS}),
        ("llama-lm", "AutoModelForCausalLM", {"prompt": TEXTS, "completion": [" it is"] * 5}),
        ("t5", "AutoModelForSeq2SeqLM", {"text": TEXTS, "summary": TEXTS}),
        ("t5", "AutoModelForSeq2SeqLM", {"source": TEXTS, "target": TEXTS}),
    ],
)
def test_texts_are_tokenised_as_the_task_does_it(
    make_model: MakeModel, tmp_path: Path, kind: str, auto_class: str, columns: dict[str, Any]
) -> None:
    """A data set of text loses all its columns, which the model does not take, and fails in `Trainer`'s words."""
    given = {"task": QuestionAnswering(stride=8)} if kind == "bert-qa" else {}
    trainer = text_trainer(make_model, tmp_path, kind, auto_class, columns, **given)
    assert losses(trainer)[0] > 0
    figures = trainer.evaluate()
    assert figures["eval_objective/kl"] > 0
    assert np.isfinite(figures["eval_objective/labels"])


def test_texts_train_as_tokens_do(make_model: MakeModel, tmp_path: Path) -> None:
    """Tokens of our own making must be those that the user's `map` would have made, and predictions in his order."""
    labels = [1, 0, 1, 0, 1]
    data = Dataset.from_dict({"text": TEXTS, "label": labels})
    kind, auto_class = "bert", "AutoModelForSequenceClassification"
    trainer = text_trainer(make_model, tmp_path, kind, auto_class, {"text": TEXTS, "label": labels})
    tokenizer = trainer.processing_class
    tokens = data.map(lambda rows: tokenizer(rows["text"]), batched=True).rename_column("label", "labels")
    found_losses = losses(trainer)
    by_hand = text_trainer(make_model, tmp_path, kind, auto_class, {}, train_dataset=tokens, eval_dataset=tokens)
    assert by_hand.texts is None
    assert found_losses == losses(by_hand)
    for split in (data, Dataset.from_dict(data[1:])):
        found = trainer.predict(split)
        wanted = by_hand.predict(split.map(lambda rows: tokenizer(rows["text"]), batched=True))
        np.testing.assert_allclose(found.predictions, wanted.predictions, atol=1e-6)
        assert found.label_ids.tolist() == list(split["label"])


@pytest.mark.parametrize(
    ("kind", "auto_class", "columns"),
    [
        ("bert", "AutoModelForSequenceClassification", {"text": TEXTS, "label": [1, 0, 1, 0, 1]}),
        ("bert-tokens", "AutoModelForTokenClassification", {"tokens": WORDS, "tags": NEGATIVE}),
        ("bert-qa", "AutoModelForQuestionAnswering", {"question": ["which"] * 5, "context": TEXTS, "answers": SPANS}),
        ("llama-lm", "AutoModelForCausalLM", {"text": TEXTS}),
    ],
)
def test_each_split_is_tokenised_once(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, auto_class: str, columns: Any
) -> None:
    """Data in memory has no cache: to tokenise train again for every eval split takes as long as the training."""
    counted: list[int] = []
    tokenised = Dataset.map

    def count(self: Dataset, *args: Any, **settings: Any) -> Dataset:
        counted.append(len(self) * str(settings.get("desc")).startswith("Tokenising"))
        return tokenised(self, *args, **settings)

    monkeypatch.setattr(Dataset, "map", count)
    data = Dataset.from_dict(columns)
    train = Dataset.from_dict({name: list(values) * 4 for name, values in columns.items()})
    given = {"task": QuestionAnswering(stride=8)} if kind == "bert-qa" else {}
    trainer = text_trainer(
        make_model, tmp_path, kind, auto_class, {}, train_dataset=train, eval_dataset={"a": data, "b": data}, **given
    )
    assert sum(counted) == 20 + 5
    counted.clear()
    trainer.evaluate(data)
    assert sum(counted) == 0
    unlabelled = data.select([3, 1, 2]).remove_columns([name for name in ("label", "tags") if name in columns])
    assert len(trainer.predict(unlabelled).predictions) == 3
    assert sum(counted) == 3


def test_several_eval_splits_of_text_and_compute_metrics(make_model: MakeModel, tmp_path: Path) -> None:
    """A dict of eval splits is `Trainer`'s own form, and metrics must get the labels that belong to the logits."""
    data = Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0, 1]})
    seen: list[list[int]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.label_ids.tolist())
        return {"rows": float(len(prediction.predictions))}

    trainer = text_trainer(
        make_model, tmp_path, "bert", "AutoModelForSequenceClassification", {"text": TEXTS, "label": [1, 0, 1, 0, 1]},
        eval_dataset={"all": data, "some": data.select([4, 1])}, compute_metrics=metrics,
    )  # fmt: skip
    figures = trainer.evaluate()
    assert (figures["eval_all_rows"], figures["eval_some_rows"]) == (5, 2)
    assert seen == [[1, 0, 1, 0, 1], [1, 0]]


def test_the_task_may_have_settings(make_model: MakeModel, tmp_path: Path) -> None:
    """Texts that are joined into blocks, which only a setting of the task says, would be padded without a word."""
    task = TextGeneration(packing=True)
    trainer = text_trainer(make_model, tmp_path, "llama-lm", "AutoModelForCausalLM", {"text": TEXTS}, task=task)
    assert len(trainer.train_dataset) == 1  # type: ignore[arg-type]
    assert losses(trainer)[0] > 0


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        ({"sentence": TEXTS, "label": [1] * 5}, {}, r"train_dataset has .* sentence, label.*: text, text_pair"),
        ({"text": TEXTS, "label": [1] * 5}, {"processing_class": None}, "Pass the tokenizer as processing_class"),
        ({"text": [*TEXTS[1:], None], "label": [1] * 5}, {}, "row 4"),
        ({"text": TEXTS, "label": [1, 2, 0, 1, 7]}, {}, "0 to 1"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_refused_in_one_line(
    make_model: MakeModel, tmp_path: Path, columns: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    """`Trainer` says that no column matches the forward pass, and not which ones would do."""
    with pytest.raises(UserError, match=said) as raised:
        text_trainer(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, **given)
    assert len(str(raised.value).splitlines()) == 1


def test_text_beside_a_collator_that_pads_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    """The usual script brings DataCollatorWithPadding: in the first batch the tokenizer asked for `input_ids`."""
    collator = transformers.DataCollatorWithPadding(
        transformers.AutoTokenizer.from_pretrained(make_model("bert", layers=1))
    )
    columns: dict[str, Any] = {"text": TEXTS, "label": [1, 0, 1, 0, 1]}
    with pytest.raises(UserError, match=r"train_dataset holds text .*data_collator"):
        text_trainer(
            make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, data_collator=collator
        )


def test_every_task_is_found_by_a_models_class() -> None:
    """A task that no model is known to be for would leave its data sets of text to fail in `Trainer`."""
    from hf_distill.models.outline import is_of

    classes = "BertForMaskedLM BertForSequenceClassification BertForTokenClassification BertForQuestionAnswering "
    names = (classes + "LlamaForCausalLM T5ForConditionalGeneration BertModel").split()
    assert all(any(is_of(name, task.auto_class) for name in names) for task in TASKS.values())


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "path", "entry"])
def test_a_teacher_by_name_teaches_as_the_model_does(make_model: MakeModel, tmp_path: Path, form: str) -> None:
    """Loading draws random numbers: with others, dropout differs, and so does the student."""
    path = make_model("bert", layers=2, seed=1)
    named: Any = {"id": str(path), "path": path, "entry": PretrainedTeacher(model=str(path))}[form]
    data = {"text": TEXTS, "label": [1, 0, 1, 0, 1]}
    found, wanted = (
        losses(text_trainer(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", data, **given))
        for given in ({"teacher": named}, {})
    )
    assert found == wanted


def test_a_named_teacher_keeps_its_settings(make_model: MakeModel, tmp_path: Path) -> None:
    """A teacher too large for float32 is named with a precision, which must reach the loading."""
    own = PretrainedTeacher(model=str(make_model("llama-lm", layers=2, seed=1)), dtype="bfloat16")
    trainer = text_trainer(make_model, tmp_path, "llama-lm", "AutoModelForCausalLM", {"text": TEXTS}, teacher=own)
    assert trainer.teacher is not None
    assert {one.dtype for one in trainer.teacher.parameters()} == {torch.bfloat16}


def test_a_teacher_that_cannot_be_loaded_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    """A teacher without a trained head teaches noise; one that a run would train first has no run here."""
    bare = make_model("bert-bare", layers=2)
    wrong: list[tuple[Any, str]] = [
        (str(bare), "has no trained head"),
        (tmp_path / "nowhere", "nowhere"),
        (FinetunedTeacher(model=str(bare)), "FinetunedTeacher is trained by a run"),
        (GivenTeacher(columns={"logits": "x"}, labels=["a", "b"]), "GivenTeacher reads its targets from columns"),
        (PublishedTeacher(path=str(bare)), "PublishedTeacher finds published targets by the texts"),
    ]
    for teacher, said in wrong:
        with pytest.raises(UserError, match=said):
            text_trainer(
                make_model, tmp_path, "bert", "AutoModelForSequenceClassification", {"text": TEXTS}, teacher=teacher,
                objectives=[KLDivergence(), Labels()],
            )  # fmt: skip


# --- a cached teacher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["model", "path"])
@pytest.mark.parametrize("kind", ["bert", "llama-lm"])
def test_a_cached_teacher_in_one_call_teaches_as_the_model_does(
    make_model: MakeModel, tmp_path: Path, kind: str, given: str
) -> None:
    """Targets of other rows, or in another order, train on noise without a word."""
    auto_class = {"bert": "AutoModelForSequenceClassification", "llama-lm": "AutoModelForCausalLM"}[kind]
    columns: dict[str, Any] = {"text": TEXTS, **({"label": [1, 0, 1, 0, 1]} if kind == "bert" else {})}
    path = make_model(kind, layers=2, seed=1)
    live = text_trainer(make_model, tmp_path, kind, auto_class, columns)
    wanted = [*losses(live), live.evaluate()["eval_loss"]]
    own: Any = {"model": opened(path, auto_class), "path": path}[given]
    cached = CachedTeacher(teacher=own, path=str(tmp_path / "targets"), top=1000, precision="float32")
    for _ in range(2):  # the second time it is found
        trainer = text_trainer(make_model, tmp_path, kind, auto_class, columns, teacher=cached)
        assert type(trainer.source).__name__ == "Replay"
        assert [*losses(trainer), trainer.evaluate()["eval_loss"]] == pytest.approx(wanted, rel=1e-5)


def tokens_of(make_model: MakeModel, kind: str = "bert", **columns: Any) -> tuple[Any, Dataset]:
    """Return a tokenizer and the texts as its tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model(kind, layers=1))
    ids = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    rows = [{**one, **{name: column[at] for name, column in columns.items()}} for at, one in enumerate(ids)]
    return tokenizer, Dataset.from_list(rows)


def test_what_a_cache_cannot_serve_is_refused_before_it_is_filled(make_model: MakeModel, tmp_path: Path) -> None:
    """Hours of a large teacher's time, and then the refusal that `--check` gives at once."""
    cached = CachedTeacher(teacher=make_model("bert", layers=2, seed=1), path=str(tmp_path / "targets"))
    with pytest.raises(UserError, match="cached teacher") as raised:
        text_trainer(
            make_model, tmp_path, "bert", "AutoModelForSequenceClassification", {"text": TEXTS, "label": [1] * 5},
            teacher=cached, objectives=[Labels(), Attention()],
        )  # fmt: skip
    assert raised.value.key == "objectives[1]"
    assert not (tmp_path / "targets").exists()


@pytest.mark.parametrize(
    ("frozen", "collator", "said"),
    [
        (False, "masks", "masks other tokens"),
        (True, "masks", "the same examples"),
        (True, "pads", ""),
    ],
)
def test_masks_that_are_drawn_again_are_not_cached(
    make_model: MakeModel, tmp_path: Path, frozen: bool, collator: str, said: str
) -> None:
    """Stored under one draw of masks and trained under another, targets belong to other tokens."""
    tokenizer, data = tokens_of(make_model, "bert-mlm")
    masks = transformers.DataCollatorForLanguageModeling(tokenizer)
    chosen: Any = masks
    if collator == "pads":  # masked by the user, once
        torch.manual_seed(0)
        data = data.map(lambda row: {key: value[0].tolist() for key, value in masks([row]).items()})
        chosen = transformers.DataCollatorForTokenClassification(tokenizer)
    kind, auto_class = "bert-mlm", "AutoModelForMaskedLM"
    given = {"train_dataset": data, "eval_dataset": data, "data_collator": chosen}
    teacher = opened(make_model(kind, layers=2, seed=1), auto_class)
    path = str(tmp_path / "targets")
    cached = CachedTeacher(teacher=teacher, path=path, frozen_masks=frozen, top=10_000, precision="float32")
    if not said:
        wanted = losses(text_trainer(make_model, tmp_path, kind, auto_class, {}, **given))
        found = losses(text_trainer(make_model, tmp_path, kind, auto_class, {}, teacher=cached, **given))
        assert found == pytest.approx(wanted, rel=1e-5)
        return
    with pytest.raises(UserError, match=said):
        text_trainer(make_model, tmp_path, kind, auto_class, {}, teacher=cached, **given)
    assert not (tmp_path / "targets").exists()


def test_a_users_collator_gets_his_columns_from_a_cache_too(make_model: MakeModel, tmp_path: Path) -> None:
    """A column that only the collator reads must decide what is stored, and be there in the training."""
    tokenizer, data = tokens_of(make_model, labels=[1, 0, 1, 0, 1], first=[5, 6, 7, 8, 9])
    same = Dataset.from_list([{**row, "input_ids": data[0]["input_ids"]} for row in data])

    def collate(rows: list[dict[str, Any]]) -> Any:
        return tokenizer.pad(
            [{**row, "input_ids": [row.pop("first"), *row["input_ids"]]} for row in rows], return_tensors="pt"
        )

    found = []
    path = make_model("bert", layers=2, seed=1)
    for teacher in (path, CachedTeacher(teacher=path, path=str(tmp_path / "targets"))):
        trainer = DistillationTrainer(
            opened(make_model("bert", layers=1), "AutoModelForSequenceClassification"),
            arguments(tmp_path, remove_unused_columns=False),
            teacher=teacher,
            train_dataset=same,
            eval_dataset={"all": data, "some": data.select([3, 1])},
            data_collator=collate,
        )
        found += [[*losses(trainer), *(value for key, value in trainer.evaluate().items() if key.endswith("_loss"))]]
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_cached_teacher_knows_only_the_rows_of_its_trainer(make_model: MakeModel, tmp_path: Path) -> None:
    """Rows without stored targets are told as such, and not by names of columns that nobody wrote."""
    cached = CachedTeacher(teacher=make_model("bert", layers=2, seed=1), path=str(tmp_path / "targets"))
    columns = {"text": TEXTS, "label": [1, 0, 1, 0, 1]}
    trainer = text_trainer(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, teacher=cached)
    other = Dataset.from_dict(columns).select([2])
    for ask in (trainer.evaluate, trainer.predict):
        with pytest.raises(UserError, match="its own eval_dataset alone") as raised:
            ask(other)
        assert len(str(raised.value).splitlines()) == 1


def test_the_entry_of_a_moving_average_teaches_as_its_source_does(make_model: MakeModel, tmp_path: Path) -> None:
    """An entry that needs nothing but the student was refused as one that reads a run's data."""
    columns = {"text": TEXTS, "label": [1, 0, 1, 0, 1]}
    found, wanted = (
        losses(text_trainer(make_model, tmp_path, "bert", "AutoModelForSequenceClassification", columns, teacher=one))
        for one in (EmaTeacher(decay=0.9), Ema(0.9))
    )
    assert found == wanted


@pytest.mark.parametrize("form", ["transform", "own tokens"])
def test_rows_that_the_teacher_reads_otherwise_are_not_cached(make_model: MakeModel, tmp_path: Path, form: str) -> None:
    """What is stored would be the teacher's of the columns as they lie, and not of what it reads in the training."""
    tokenizer, data = tokens_of(make_model, labels=[1, 0, 1, 0, 1])
    if form == "transform":
        data = data.with_transform(lambda rows: rows)
    else:
        data = data.add_column("teacher_input_ids", data["input_ids"])
    cached = CachedTeacher(teacher=make_model("bert", layers=2, seed=1), path=str(tmp_path / "targets"))
    with pytest.raises(UserError, match=rf"^teacher: .*{form.split()[-1]}"):
        text_trainer(
            make_model, tmp_path, "bert", "AutoModelForSequenceClassification", {}, teacher=cached,
            train_dataset=data, eval_dataset=None, processing_class=tokenizer,
        )  # fmt: skip
    assert not (tmp_path / "targets").exists()
