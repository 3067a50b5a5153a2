"""Text classification: from raw columns to batches, with real tokenizers and models."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import batch, dataset, refused
from runs import run

from hf_distill.data import load_splits
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.tasks import Prepared, Setup, TextClassification
from hf_distill.tasks.evaluator import Predictions

TEXTS = ["a great film", "dull", "the plot is moving and the cast is charming"]
NAN = math.nan


def prepare(
    model: Path,
    train: Any,
    eval: Any = None,
    *,
    task: TextClassification | None = None,
    names: list[str] | None = None,
    **setup: Any,
) -> Prepared:
    tokenizer = open_tokenizer(str(model))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = {"tokenizer": tokenizer, "max_length": 64, "label_names": names, **setup}
    data = {"train": train, "eval": train if eval is None else eval}
    return (task or TextClassification()).prepare(data, Setup(**given))


mistake = partial(refused, prepare)


# ---- Inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "llama", "gpt2"])
def test_a_batch_is_what_the_tokenizer_and_the_model_expect(kind: str, make_model: Any) -> None:
    """A column lost or renamed on the way (`token_type_ids`, the pad mask) changes logits and raises nothing."""
    path = make_model(kind)
    prepared = prepare(
        path, dataset(text=TEXTS, label=["positive", "negative", "positive"]), teacher=open_config(str(path))
    )
    model, new = load_model(str(path), prepared.head, own_head=True)
    assert new == []
    inputs = batch(prepared)
    assert inputs.pop("labels").tolist() == [1, 0, 1]
    with torch.no_grad():
        logits = model(**inputs).logits
        alone = [model(**open_tokenizer(str(path))(text, return_tensors="pt")).logits[0] for text in TEXTS]
    assert torch.allclose(logits, torch.stack(alone), atol=1e-5)


def test_pairs_are_one_input(make_model: Any) -> None:
    """The second text must stand in the second segment; concatenated by hand, a BERT reads it as one."""
    path = make_model("bert")
    prepared = prepare(path, dataset(text=["great", "dull"], text_pair=["film", "plot"], label=[0, 1]))
    expected = open_tokenizer(str(path))(["great", "dull"], ["film", "plot"])
    assert prepared.train["input_ids"][:] == expected["input_ids"]
    assert prepared.train["token_type_ids"][:] == [[0, 0, 0, 1, 1]] * 2


def test_long_texts_are_cut_and_eval_is_sorted_by_length(make_model: Any) -> None:
    """`length` drives sampling and latency: it counts tokens after truncation."""
    path = make_model("bert")
    texts = ["film " * 50, "dull", "a great film"]
    prepared = prepare(path, dataset(text=texts, label=[0, 1, 0]), max_length=8)
    assert prepared.train["length"][:] == [8, 3, 5]
    assert prepared.eval["length"][:] == [3, 5, 8]
    assert [len(ids) for ids in prepared.eval["input_ids"]] == [3, 5, 8]
    assert prepared.eval["labels"][:] == [1, 0, 0]
    assert prepare(path, dataset(text=texts, label=[0, 1, 0]), max_length=None).train["length"][0] == 52


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "task", "expected", "problem_type"),
    [
        (["b", None, "a"], {}, [1, -100, 0], "single_label_classification"),
        ([0.5, None, 1.5], {}, [0.5, NAN, 1.5], "regression"),
        ([["b"], None, []], {}, [[1.0], [NAN], [0.0]], "multi_label_classification"),
        ([[0, 1], None, [1, 1]], {}, [[0, 1], [NAN, NAN], [1, 1]], "multi_label_classification"),
        ([[0.5, 1.0], None, [2, 3]], {"problem": "regression"}, [[0.5, 1], [NAN, NAN], [2, 3]], "regression"),
    ],
)
def test_labels_reach_the_batch(
    labels: list[Any], task: dict[str, Any], expected: list[Any], problem_type: str, make_model: Any
) -> None:
    """A missing label must survive arrow and the collator as -100 or NaN: as 0 it would be learned."""
    prepared = prepare(make_model("bert"), dataset(text=TEXTS, label=labels), task=TextClassification(**task))
    found = batch(prepared)["labels"]
    assert found.dtype == (torch.int64 if problem_type.startswith("single") else torch.float32)
    assert torch.equal(found.double().nan_to_num(7), torch.tensor(expected).double().nan_to_num(7))
    assert prepared.head.settings["problem_type"] == problem_type
    counts = prepared.layout.counts(batch(prepared))
    width = len(expected[0]) if isinstance(expected[0], list) else 1
    assert counts["label"].tolist() == [width, 0, width]


def test_the_teacher_s_columns_end_at_the_student_s(make_model: Any) -> None:
    """The same weights with the classes in another order are the same model, if permuted once."""
    import transformers

    teacher_path = make_model("bert", labels=("positive", "neutral", "negative"), seed=3)
    config = open_config(str(teacher_path))
    student_config = open_config(str(make_model("bert", labels=("negative", "positive", "neutral"))))
    data = dataset(text=TEXTS, label=["neutral", "negative", "positive"])
    prepared = prepare(teacher_path, data, teacher=config, student=student_config)
    teacher, _ = load_model(str(teacher_path), prepared.head, own_head=True)
    student = transformers.AutoModelForSequenceClassification.from_pretrained(str(teacher_path))
    order = [2, 0, 1]  # where the teacher keeps the student's classes
    student.classifier.weight.data = teacher.classifier.weight.data[order]
    student.classifier.bias.data = teacher.classifier.bias.data[order]
    inputs = batch(prepared)
    labels = inputs.pop("labels")
    assert labels.tolist() == [2, 0, 1]
    with torch.no_grad():
        rows = prepared.layout.select(student(**inputs).logits, teacher(**inputs).logits, {**inputs, "labels": labels})
    assert rows.teacher is not None
    assert torch.allclose(rows.student, rows.teacher)
    assert prepared.head.settings["id2label"] == {0: "negative", 1: "positive", 2: "neutral"}


def test_unlabelled_training_and_labelled_evaluation(make_model: Any) -> None:
    """Each split is used for what it has: no labels, no labels objective; labels in eval, a report with metrics."""
    path = make_model("bert")
    teacher = open_config(str(path))
    bare, full = dataset(text=TEXTS), dataset(text=TEXTS, label=[0, 1, 0])
    prepared = prepare(path, bare, full, teacher=teacher)
    assert (prepared.labelled, prepared.evaluator.names) == (False, ("accuracy", "f1", "mcc"))
    assert "labels" not in prepared.train.column_names
    prepared = prepare(path, full, bare, teacher=teacher)
    assert (prepared.labelled, prepared.evaluator.names) == (True, ())
    empty = dataset(text=TEXTS, label=[None, None, None])
    prepared = prepare(path, full, empty, teacher=teacher)
    assert (prepared.labelled, prepared.evaluator.names) == (True, ())
    assert batch(prepared, "eval")["labels"].tolist() == [-100] * 3


def test_metrics_are_checked_before_anything_is_tokenised(make_model: Any) -> None:
    """An hour of tokenising before "unknown metric" is an hour lost."""
    data = dataset(text=TEXTS, label=[0, 1, 0])
    assert "Did you mean 'accuracy'" in mistake(make_model("bert"), data, metrics=["acuracy"])[1]
    prepared = prepare(make_model("bert"), data, metrics=["mcc", "accuracy"])
    assert prepared.evaluator.names == ("mcc", "accuracy")
    import numpy as np

    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert prepared.evaluator.evaluate(Predictions(logits, np.array([0, 1, 0])))["accuracy"] == pytest.approx(2 / 3)


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        (
            {"text": ["a", None, None]},
            "columns.text",
            "2 of 3 texts of the train split are missing (None), the first in row 1",
        ),
        ({"text": [None, None, None]}, "columns.text", "the train split has no text in any row"),
        ({"text": [1, 2, 3]}, "columns.text", "holds whole numbers in the train split, first"),
        ({"text": [["a"], ["b"], ["c"]]}, "columns.text", "holds lists of text"),
        ({"text": TEXTS, "text_pair": ["x", "y", None]}, "columns.text_pair", "1 of 3 texts"),
        ({"text": TEXTS, "label": [0, 1, 7], "names": ["a", "b"]}, "columns.label", "has the label 7; wanted 0 to 1"),
    ],
)
def test_columns_that_hold_something_else(columns: dict[str, Any], key: str, says: str, make_model: Any) -> None:
    """None becomes the text "None", a number a word: the tokenizer would take some of them without a word."""
    names = columns.pop("names", None)
    path = make_model("bert")
    found, line = mistake(path, dataset(**columns), names=names, teacher=open_config(str(path)))
    assert found == key
    assert says in line
    columns["names"] = names


def test_a_pair_in_one_split_only(make_model: Any) -> None:
    """A model trained on pairs and judged on single texts looks bad for a reason nobody sees."""
    pair = dataset(text=TEXTS, text_pair=TEXTS, label=[0, 1, 0])
    key, line = mistake(make_model("bert"), pair, dataset(text=TEXTS, label=[0, 1, 0]))
    assert key == "columns.text_pair"
    assert "only the train split has a second text" in line


def test_a_text_without_a_token(make_model: Any) -> None:
    """GPT-2 adds no tokens of its own: an empty text is an empty input, and its logits those of a padding token."""
    data = dataset(text=["a great film", ""], label=[0, 1])
    key, line = mistake(make_model("gpt2"), data)
    assert key == "columns.text"
    assert line.startswith("row 1 (counted from 0) of the train split is empty")
    assert prepare(make_model("bert"), data).train["length"][:] == [5, 2]


@pytest.mark.parametrize(("length", "pair"), [(2, False), (3, True)])
def test_no_room_for_text(length: int, pair: bool, make_model: Any) -> None:
    """Truncated to its special tokens every text is the same."""
    columns = {"text": TEXTS, "label": [0, 1, 0], **({"text_pair": TEXTS} if pair else {})}
    key, line = mistake(make_model("bert"), dataset(**columns), max_length=length)
    assert key == "max_length"
    assert line == (f"{length} tokens leave no room for text: the tokenizer adds {length} of its own. Wanted more.")
    prepare(make_model("bert"), dataset(**columns), max_length=length + 2)


def test_objectives_that_mean_nothing(make_model: Any) -> None:
    """A softmax over one value is constant: `kl` would be zero and teach nothing, without a word."""
    from hf_distill.objectives import KLDivergence, Labels, LogitsMSE

    path = make_model("bert", labels=("score",))
    task, teacher = TextClassification(), open_config(str(path))
    unlabelled = prepare(path, dataset(text=TEXTS), teacher=teacher)
    for objectives, key, says in (
        ((LogitsMSE(), KLDivergence()), "objectives[1]", "'kl' compares distributions over classes"),
        ((LogitsMSE(), Labels()), "objectives[1]", "'labels' needs labels, but the train split has none"),
    ):
        with pytest.raises(UserError) as caught:
            task.check(objectives, unlabelled)
        assert caught.value.key == key
        assert says in caught.value.mistakes[0]
    task.check((LogitsMSE(), Labels()), prepare(path, dataset(text=TEXTS, label=[0.5, 1.5, 2.0]), teacher=teacher))
    task.check((KLDivergence(), Labels()), prepare(make_model("bert"), dataset(text=TEXTS, label=[0, 1, 0])))


# ---- Cache -----------------------------------------------------------------------------------------------------------


def from_csv(path: Path, directory: Path, max_length: int = 32, names: list[str] | None = None) -> Prepared:
    data = Data(path=str(path), splits={"train": "train[:3]", "eval": "train[3:]"})
    return prepare(directory, *load_splits(data, TextClassification.roles).values(), max_length=max_length, names=names)


def test_a_rerun_finds_the_tokens_in_the_cache(make_model: Any, tmp_path: Path) -> None:
    """A tokenizer changes when it is used; if that changed its hash, every run would tokenise everything again.

    Other processes: `test_tokenising.py`.
    """
    rows = [f"{word} film {row},{name}" for row, (word, name) in enumerate(zip("abcde", "nnppn", strict=True))]
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    model = make_model("bert")

    def files(prepared: Prepared) -> list[str]:
        return [file["filename"] for split in (prepared.train, prepared.eval) for file in split.cache_files]

    first = files(from_csv(path, model))
    stamps = [os.stat(file).st_mtime_ns for file in first]
    assert first == files(from_csv(path, model))
    assert stamps == [os.stat(file).st_mtime_ns for file in first]
    # What changes tokens or labels is another entry.
    for changed in ({"max_length": 16}, {"names": ["p", "n"]}):
        assert not set(first) & set(files(from_csv(path, model, **changed)))
    assert not set(first) & set(files(from_csv(path, make_model("bert", vocab=["film"]))))


def bart_classifier(kind: str = "bart") -> tuple[Any, Any]:
    """Return an encoder-decoder classifier and a tokenizer that ends texts with `</s>`."""
    import tokenizers
    import torch
    import transformers

    words = ["<s>", "<pad>", "</s>", "<unk>", "good", "bad", "film", "a", "the", "plot"]
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=64, **special)
    shapes: dict[str, dict[str, Any]] = {
        "bart": {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "mt5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 2, "d_kv": 8, "d_ff": 64, "num_heads": 4},
    }
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=10, **shapes[kind], **ids, **names)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval(), tokenizer


ROWS = [{"text": "a good film", "labels": 1}, {"text": "the plot", "labels": 0}, {"text": "bad", "labels": 0}]


@pytest.mark.parametrize("kind", ["bart", "mt5"])
def test_an_encoder_decoder_classifier_in_python(kind: str, tmp_path: Path) -> None:
    """The usual zero-shot teachers are BARTs: a recipe took them, and two models alone were not enough."""
    import torch
    from datasets import Dataset
    from invariants.cases import arguments

    from hf_distill import DistillationTrainer
    from hf_distill.objectives import KLDivergence

    (student, tokenizer), (teacher, _) = bart_classifier(kind), bart_classifier(kind)
    for weight in student.parameters():
        weight.data += 0.1 * torch.ones_like(weight)
    data = Dataset.from_list([{**tokenizer(row["text"]), "labels": row["labels"]} for row in ROWS])
    data = data.remove_columns([name for name in data.column_names if name == "token_type_ids"])
    given: dict[str, Any] = {"teacher": teacher, "objectives": [KLDivergence()], "processing_class": tokenizer}
    trainer = DistillationTrainer(student, arguments(tmp_path), eval_dataset=data, **given)
    with torch.no_grad():
        t, s = (
            torch.cat([model(input_ids=torch.tensor([ids])).logits.double() for ids in data["input_ids"]])
            for model in (teacher, student)
        )
    wanted = torch.nn.functional.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True)
    assert trainer.evaluate()["eval_objective/kl"] == pytest.approx(wanted.item(), rel=1e-4)
    odd = Dataset.from_list([*data, {**tokenizer("a </s> film"), "labels": 0}])
    with pytest.raises(UserError, match=r"row 3 .* of the train split contains the end-of-text token"):
        DistillationTrainer(student, arguments(tmp_path), train_dataset=odd, **given)


def test_an_end_of_text_inside_a_text(tmp_path: Path, write_recipe: Any) -> None:
    """Transformers refuses the batch with this row, somewhere in the training, and does not say which row it is."""
    model, tokenizer = bart_classifier()
    model.save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    names = ("negative", "positive")
    rows = [{"text": row["text"], "label": names[row["labels"]]} for row in ROWS] * 4
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "good </s> film", "label": "positive"}]))
    teacher = {"name": "pretrained", "model": str(tmp_path / "bart")}
    data = {"path": {"train": str(bad), "validation": str(good)}, "columns": {"text": "text"}}
    path = write_recipe(data=data, teacher=teacher, student={"name": "copy_layers", "layers": 1})
    with pytest.raises(UserError, match=r"row 12 .*'?</s>") as caught:
        run(path)
    assert "train split" in str(caught.value)
