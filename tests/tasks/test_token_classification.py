"""Token classification: from words and tags to batches, metrics and a run, with real tokenizers and models."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import batch, dataset, refused
from runs import run

from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.tasks import Prepared, Setup, TokenClassification
from hf_distill.tasks.evaluator import Predictions

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = ("anna", "smith", "went", "to", "new", "york", "with", "bob", "and", "saw", "paris", ".")
# "qx" is spelled out as q ##x, "xyz" as x ##y ##z.
SENTENCES = [["anna", "qx", "went", "to", "xyz"], ["bob", "saw", "new", "york", "."], ["paris"]]
TAGS = [["B-PER", "I-PER", "O", "O", "B-LOC"], ["B-PER", "O", "B-LOC", "I-LOC", "O"], ["B-LOC"]]


def prepare(model: Path, train: Any, eval: Any = None, *, names: list[str] | None = None, **settings: Any) -> Prepared:
    task = {key: settings.pop(key) for key in {"label_all_subwords", "tag_scheme"} & settings.keys()}
    setup = {"tokenizer": open_tokenizer(str(model)), "max_length": 64, "label_names": names, **settings}
    data = {"train": train, "eval": train if eval is None else eval}
    return TokenClassification(**task).prepare(data, Setup(**setup))


mistake = partial(refused, prepare)


@pytest.fixture(scope="module")
def bert(make_model: Any) -> Path:
    path: Path = make_model("bert-tokens", labels=NAMES, vocab=WORDS)
    return path


# ---- Alignment -------------------------------------------------------------------------------------------------------


def test_the_first_sub_word_carries_the_tag(bert: Path) -> None:
    """Tags shifted by one special token, or given to every piece of a word, train without an error."""
    prepared = prepare(bert, dataset(tokens=SENTENCES, tags=TAGS), teacher=open_config(str(bert)))
    tokens = open_tokenizer(str(bert)).convert_ids_to_tokens(prepared.train["input_ids"][0])
    assert tokens == ["[CLS]", "anna", "q", "##x", "went", "to", "x", "##y", "##z", "[SEP]"]
    assert prepared.train["labels"][:] == [
        [-100, 1, 2, -100, 0, 0, 3, -100, -100, -100],
        [-100, 1, 0, 3, 4, 0, -100],
        [-100, 3, -100],
    ]
    assert prepared.train["length"][:] == [10, 7, 3]
    assert prepared.eval["length"][:] == [3, 7, 10]
    assert set(prepared.train.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels", "length"}
    assert batch(prepared)["labels"].tolist() == [
        [-100, 1, 2, -100, 0, 0, 3, -100, -100, -100],
        [-100, 1, 0, 3, 4, 0, -100, -100, -100, -100],
        [-100, 3, *[-100] * 8],
    ]
    assert prepared.head.settings["id2label"] == dict(enumerate(NAMES))


def test_all_sub_words_may_carry_it_in_training(bert: Path) -> None:
    """B-PER on the pieces of one name would be several names; and evaluation must stay comparable between recipes."""
    data = dataset(tokens=SENTENCES[:1], tags=TAGS[:1])
    prepared = prepare(bert, data, teacher=open_config(str(bert)), label_all_subwords=True)
    assert prepared.train["labels"][:] == [[-100, 1, 2, 2, 0, 0, 3, 4, 4, -100]]
    assert prepared.eval["labels"][:] == [[-100, 1, 2, -100, 0, 0, 3, -100, -100, -100]]
    bare = prepare(bert, data.remove_columns("tags"), teacher=open_config(str(bert)), label_all_subwords=True)
    assert bare.train["labels"][:] == [[IGNORED, *[UNLABELLED] * 8, IGNORED]]


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "llama", "bert"])
def test_words_are_tokenised_as_in_running_text(kind: str, make_model: Any) -> None:
    """A byte-level tokenizer given bare words takes the token of a sentence's start for every one of them, silently:
    the model then reads what it has hardly ever seen, and what it will not see in use."""
    path = make_model(kind, vocab=WORDS)
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prepared = prepare(path, dataset(tokens=SENTENCES, tags=TAGS), tokenizer=tokenizer)
    assert prepared.train["input_ids"][:] == [tokenizer(" ".join(words))["input_ids"] for words in SENTENCES]
    order = {name: at for at, name in enumerate(prepared.label_names or ())}
    for labels, tags in zip(prepared.train["labels"][:], TAGS, strict=True):
        assert [label for label in labels if label != IGNORED] == [order[tag] for tag in tags]
    model, new = load_model(str(path), prepared.head)
    assert new
    assert model(**{key: value for key, value in batch(prepared).items() if key != "labels"}).logits.shape[-1] == 5


def test_a_tokenizer_with_its_own_prefix_space_gets_no_second_one(make_model: Any) -> None:
    """Two spaces before every word would be another tokenisation again."""
    from transformers import AutoTokenizer

    path = make_model("roberta", vocab=WORDS)
    tokenizer = AutoTokenizer.from_pretrained(str(path), add_prefix_space=True)
    prepared = prepare(path, dataset(tokens=SENTENCES, tags=TAGS), tokenizer=tokenizer)
    expected = tokenizer(SENTENCES, is_split_into_words=True)["input_ids"]
    assert prepared.train["input_ids"][:] == expected
    assert tokenizer.convert_ids_to_tokens(expected[1])[1:-1] == ["Ġbob", "Ġsaw", "Ġnew", "Ġyork", "Ġ."]


def test_a_tokenizer_that_cannot_align_is_refused(bert: Path) -> None:
    """Without word_ids the only alignment is a guess."""

    class Slow:
        is_fast = False

    key, line = mistake(bert, dataset(tokens=SENTENCES, tags=TAGS), tokenizer=Slow())
    assert key == "columns.tokens"
    assert "not a fast tokenizer" in line


def test_cut_words_are_counted_and_said_once(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Entities beyond max_length silently leave the metric, which then looks better than it is."""
    with caplog.at_level(logging.WARNING):
        data = dataset(tokens=SENTENCES, tags=TAGS)
        prepared = prepare(bert, data, dataset(tokens=SENTENCES[2:], tags=TAGS[2:]), max_length=5)
    # [CLS] anna q ##x [SEP]; [CLS] bob saw new [SEP]; [CLS] paris [SEP]
    assert [len(ids) for ids in prepared.train["input_ids"]] == [5, 5, 3]
    assert [sum(label != IGNORED for label in labels) for labels in prepared.train["labels"]] == [2, 3, 1]
    (line,) = [record.getMessage() for record in caplog.records if "max_length" in record.getMessage()]
    assert line.startswith("5 of 11 words of the train split are beyond max_length (5 tokens)")
    assert "leave no room" in mistake(bert, data, max_length=2)[1]


def test_words_without_token_are_said(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A word of control characters has no token; the tags after it must not move up by one."""
    with caplog.at_level(logging.WARNING):
        prepared = prepare(bert, dataset(tokens=[["bob", "\u200b", "paris"]], tags=[["B-PER", "O", "B-LOC"]]))
    names = prepared.label_names or ()
    labels = [names[label] for label in prepared.train["labels"][0] if label != IGNORED]
    assert labels == ["B-PER", "B-LOC"]
    assert "1 words of the train split give no token" in caplog.text


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "ClassLabel", "recipe", "lower case"])
def test_tags_are_matched_to_the_models_by_name(form: str, bert: Path) -> None:
    """Data and models number the same tags differently; matched by number every entity would change its type."""
    from datasets import ClassLabel, Features, List, Value

    others = ("B-LOC", "I-LOC", "O", "I-PER", "B-PER")  # the data's order
    numbers = [[others.index(tag) for tag in tags] for tags in TAGS]
    names = None
    if form == "text":
        data = dataset(tokens=SENTENCES, tags=TAGS)
    elif form == "lower case":
        data = dataset(tokens=SENTENCES, tags=[[tag.lower() for tag in tags] for tags in TAGS])
    else:
        data = dataset(tokens=SENTENCES, tags=numbers)
        names = list(others)
    if form == "ClassLabel":
        data = data.cast(Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=list(others)))}))
        names = None
    prepared = prepare(bert, data, teacher=open_config(str(bert)), names=names)
    assert prepared.label_names == NAMES
    found = [[NAMES[label] for label in labels if label >= 0] for labels in prepared.train["labels"]]
    assert found == TAGS


def permuted(path: Path, order: Sequence[int], directory: Path) -> Path:
    """Save the same model with the outputs of its head in another order."""
    model, _ = load_model(str(path), prepare(path, dataset(tokens=SENTENCES, tags=TAGS)).head, own_head=True)
    model.classifier.weight.data = model.classifier.weight.data[list(order)]
    model.classifier.bias.data = model.classifier.bias.data[list(order)]
    names = [NAMES[at] for at in order]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: at for at, name in enumerate(names)}
    model.save_pretrained(directory)
    open_tokenizer(str(path)).save_pretrained(directory)
    return directory


def test_a_teacher_with_another_order_gives_the_same_rows(bert: Path, make_model: Any, tmp_path: Path) -> None:
    """Compared column by column, a teacher whose head is ordered differently teaches the wrong types."""
    from hf_distill.rows.inferred import infer_layout

    student_path = make_model("bert-tokens", labels=NAMES, vocab=WORDS, layers=2, seed=7)
    other = permuted(bert, (3, 0, 4, 1, 2), tmp_path / "permuted")
    data = dataset(tokens=SENTENCES, tags=TAGS)
    rows = []
    for path in (bert, other):
        prepared = prepare(path, data, teacher=open_config(str(path)), student=open_config(str(student_path)))
        assert prepared.label_names == NAMES
        teacher, _ = load_model(str(path), prepared.head, own_head=True)
        student, _ = load_model(str(student_path), prepared.head, own_head=True)
        inputs = batch(prepared)
        forward = {key: value for key, value in inputs.items() if key != "labels"}
        with torch.no_grad():
            logits = student(**forward).logits, teacher(**forward).logits
        rows.append(prepared.layout.select(*logits, inputs))
        assert infer_layout(student, teacher) == prepared.layout
    assert torch.equal(rows[0].student, rows[1].student)
    assert torch.allclose(rows[0].teacher, rows[1].teacher)
    assert rows[0].teacher.shape == (11, 5)


def test_rows_without_tags_still_have_the_teacher(bert: Path) -> None:
    """An unlabelled sentence is what distillation can use and training cannot. Its rows are the words: were they all
    tokens, [CLS] and ##x would be taught as well, and padding at the latest."""
    data = dataset(tokens=SENTENCES, tags=[TAGS[0], None, ["B-LOC"]])
    some = prepare(bert, data, teacher=open_config(str(bert)))
    assert some.labelled
    inputs = batch(some)
    assert inputs["labels"][1].tolist() == [-100, -1, -1, -1, -1, -1, -100, -100, -100, -100]
    assert {unit: counts.tolist() for unit, counts in some.layout.counts(inputs).items()} == {
        "row": [5, 5, 1],
        "label": [5, 0, 1],
        "written": [0, 0, 0],
        "example": [1, 1, 1],
    }
    selected = some.layout.select(torch.randn(3, 10, 5), None, inputs)
    assert selected.labels.tolist() == [1, 2, 0, 0, 3, *[IGNORED] * 5, 3]
    bare = prepare(bert, data.remove_columns("tags"), data, teacher=open_config(str(bert)))
    assert (bare.labelled, bare.evaluator.names[0]) == (False, "span_f1")
    assert bare.layout.counts(batch(bare))["row"].tolist() == [5, 5, 1]
    assert bare.layout.counts(batch(bare))["label"].tolist() == [0, 0, 0]
    none = dataset(tokens=SENTENCES, tags=[None, [None] * 5, [-100]])
    empty = prepare(bert, data, none, teacher=open_config(str(bert)))
    assert (empty.labelled, empty.evaluator.names) == (True, ())
    assert batch(empty, "eval")["labels"].max() == UNLABELLED
    assert empty.layout.counts(batch(empty, "eval"))["row"].tolist() == [1, 5, 5]
    gap = prepare(bert, dataset(tokens=[["bob", "saw", "paris"]], tags=[["B-PER", None, "B-LOC"]]))
    assert gap.train["labels"][0] == [-100, 1, -1, 0, -100]  # without a model the order is alphabetical


# ---- Metrics ---------------------------------------------------------------------------------------------------------


def one_hot(rows: Sequence[Sequence[int]]) -> Any:
    return np.eye(len(NAMES))[np.array(rows)]


def test_span_metrics_are_those_counted_by_hand(bert: Path) -> None:
    """An entity counts if type and both ends are right; by tokens, or with padding, the figure differs."""
    prepared = prepare(bert, dataset(tokens=SENTENCES, tags=TAGS), teacher=open_config(str(bert)))
    labels = np.array([[-100, 1, 2, -100, 0, 3, 4, -100], [-100, 3, 0, 1, 0, -100, -100, -100]])
    # True: PER 0-1, LOC 3-4; LOC 0, PER 2. Found: PER 0-1 (right), LOC 3 (too short); PER 0 (wrong type), PER 2 (right)
    # and LOC 3. What is said about other positions must not matter.
    guesses = one_hot([[3, 1, 2, 3, 0, 3, 0, 1], [1, 1, 0, 1, 3, 3, 3, 3]])
    found = prepared.evaluator.evaluate(Predictions(guesses, labels))
    assert list(found) == ["span_f1", "span_precision", "span_recall", "token_accuracy"]
    assert found["span_precision"] == pytest.approx(2 / 5)
    assert found["span_recall"] == pytest.approx(2 / 4)
    assert found["span_f1"] == pytest.approx(2 * 0.4 * 0.5 / 0.9)
    assert found["token_accuracy"] == pytest.approx(6 / 9)


def test_span_metrics_agree_with_seqeval(bert: Path) -> None:
    """Loose tags (I- without B-, a change of type inside) are where implementations differ; the reference decides."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    prepared = prepare(bert, dataset(tokens=SENTENCES, tags=TAGS), teacher=open_config(str(bert)))
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 5, (40, 12))
    labels[chance.random(labels.shape) < 0.2] = IGNORED
    labels[3] = UNLABELLED
    logits = chance.normal(size=(40, 12, 5)) + 1.5 * np.eye(5)[labels.clip(0)]
    found = prepared.evaluator.evaluate(Predictions(logits, labels))
    rows = [(row >= 0, row, guess) for row, guess in zip(labels, logits.argmax(-1), strict=True)]
    true = [[NAMES[tag] for tag in row[known]] for known, row, _ in rows]
    predicted = [[NAMES[tag] for tag in guess[known]] for known, _, guess in rows]
    assert found["span_f1"] == pytest.approx(f1_score(true, predicted))
    assert found["span_precision"] == pytest.approx(precision_score(true, predicted))
    assert found["span_recall"] == pytest.approx(recall_score(true, predicted))
    assert 0.1 < found["span_f1"] < 0.9


def test_tags_without_spans_are_judged_word_by_word(make_model: Any) -> None:
    """Parts of speech have no spans: seqeval would answer 0 or 1 for anything."""
    path = make_model("bert-tokens", labels=("NOUN", "VERB", "X"), vocab=WORDS)
    data = dataset(tokens=[["anna", "saw", "paris", "."]], tags=[["NOUN", "VERB", "NOUN", "X"]])
    prepared = prepare(path, data, teacher=open_config(str(path)))
    assert prepared.evaluator.names == ("token_accuracy", "f1_macro")
    logits = np.eye(3)[np.array([[0, 0, 1, 0, 0, 0]])]
    found = prepared.evaluator.evaluate(Predictions(logits, np.array([[-100, 0, 1, 0, 2, -100]])))
    assert found == {"token_accuracy": 0.75, "f1_macro": pytest.approx((0.8 + 1 + 0) / 3)}
    key, line = mistake(path, data, teacher=open_config(str(path)), metrics=["span_f1"])
    assert key == "metrics"
    assert "'span_f1' is a metric of spans" in line
    assert "Did you mean 'span_f1'" in mistake(path, data, metrics=["spanf1"])[1]
    assert "is not a metric of one label for each word" in mistake(path, data, metrics=["pearson"])[1]
    assert prepare(path, data, metrics=["mcc"]).evaluator.names == ("mcc",)


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        ({"tokens": ["bob saw"], "tags": [["O", "O"]]}, "columns.tokens", "holds text in the train split, first in"),
        ({"tokens": [[1, 2]], "tags": [["O", "O"]]}, "columns.tokens", "wanted a list of words"),
        ({"tokens": [[["bob"]]], "tags": [["O"]]}, "columns.tokens", "wanted a list of words"),
        ({"tokens": [["bob"], []], "tags": [["O"], []]}, "columns.tokens", "row 1 (counted from 0) of the train split"),
        ({"tokens": [["bob"], None], "tags": [["O"], ["O"]]}, "columns.tokens", "row 1 (counted from 0)"),
        ({"tokens": [["bob"], ["to", None]], "tags": [["O"], ["O", "O"]]}, "columns.tokens", "row 1 (counted from 0)"),
        (
            {"tokens": [["bob"], ["bob", "saw"]], "tags": [["O"], ["O"]]},
            "columns.tags",
            "row 1 (counted from 0) of the train split has 2 words and 1 tags",
        ),
        ({"tokens": [["bob"]], "tags": ["O"]}, "columns.tags", "holds text in the train split, first in"),
        ({"tokens": [["bob"]], "tags": [[["O"]]]}, "columns.tags", "wanted a list in every row"),
        ({"tokens": [["bob", "saw"]], "tags": [["O", "B-ORG"]]}, "columns.tags", "the label 'B-ORG'; wanted one of"),
        ({"tokens": [["bob", "saw"]], "tags": [[0, 7]]}, "columns.tags", "has the label 7; wanted 0 to 4"),
        ({"tokens": [["bob", "saw"]], "tags": [[0, -3]]}, "columns.tags", "has the label -3; wanted 0 or more"),
        ({"tokens": [["bob", "saw"]], "tags": [[0.5, 1.0]]}, "columns.tags", "has the label 0.5"),
        ({"tokens": [["bob", "saw"]], "tags": [["O", None]], "names": ["A", "A"]}, "labels", "a name is twice"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(columns: dict[str, Any], key: str, says: str, bert: Path) -> None:
    """Tags one short, or of another tag set, would be cut, recycled or learned; the row that is wrong is named."""
    names = columns.get("names")
    data = dataset(**{role: values for role, values in columns.items() if role != "names"})
    found, line = mistake(bert, data, teacher=open_config(str(bert)), names=names)
    assert (found, says in line) == (key, True), line


def test_heads_that_do_not_fit(bert: Path, make_model: Any) -> None:
    """A head of another width would be replaced by a random one."""
    data = dataset(tokens=SENTENCES, tags=TAGS)
    other = open_config(str(make_model("bert-tokens", labels=("O", "B-X", "I-X"), vocab=WORDS)))
    key, line = mistake(bert, data, teacher=other)
    assert key == "columns.tags"
    assert "has the label 'B-PER'; wanted one of [O, B-X, I-X]" in line


def test_labels_objective_without_tags_names_the_right_column(bert: Path) -> None:
    """The advice must name a role this task has."""
    from hf_distill.objectives import Labels

    prepared = prepare(bert, dataset(tokens=SENTENCES), teacher=open_config(str(bert)))
    with pytest.raises(UserError, match=r"data: \{columns: \{tags: \.\.\.\}\}"):
        TokenClassification().check((Labels(),), prepared)


# ---- In the trainer --------------------------------------------------------------------------------------------------


def sentences(count: int, seed: int = 0, unlabelled: int = 5) -> Any:
    """Return sentences of 1 to 12 words whose tags follow from the words; every `unlabelled`-th has none."""
    chance = random.Random(seed)
    tag_of = {"anna": "B-PER", "bob": "B-PER", "smith": "I-PER", "paris": "B-LOC", "new": "B-LOC", "york": "I-LOC"}
    words = [[chance.choice((*WORDS, "qx", "xyz")) for _ in range(chance.randint(1, 12))] for _ in range(count)]
    tags = [
        None if unlabelled and row % unlabelled == unlabelled - 1 else [tag_of.get(word, "O") for word in sentence]
        for row, sentence in enumerate(words)
    ]
    return dataset(tokens=words, tags=tags)


def train(bert: Path, student: Path, data: Any, out: Path, collator: Any = None, **settings: Any) -> dict[str, Any]:
    """Train two steps of 8 examples in float64, and return logs, weights and figures of an evaluation."""
    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import KLDivergence, Labels

    prepared = prepare(bert, data, teacher=open_config(str(bert)))
    models = [load_model(str(path), prepared.head, own_head=True)[0].double() for path in (student, bert)]
    for model in models:
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    arguments = DistillationArguments(
        output_dir=str(out), report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, max_steps=2,
        optim="sgd", learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, **settings,
    )  # fmt: skip
    trainer = DistillationTrainer(
        models[0], arguments, teacher=models[1], objectives=[KLDivergence(temperature=2.0), Labels()],
        layout=prepared.layout, train_dataset=prepared.train, eval_dataset=prepared.eval,
        data_collator=collator or prepared.collator, processing_class=open_tokenizer(str(bert)),
    )  # fmt: skip
    trainer.train()
    logs = [{key: log[key] for key in ("loss", "objective/kl", "objective/labels", "agreement", "grad_norm")}
            for log in trainer.state.log_history if "loss" in log]  # fmt: skip
    evaluated = trainer.evaluate()
    return {
        "logs": logs,
        "weights": {name: value.detach().clone() for name, value in trainer.model.named_parameters()},
        "eval": {key: evaluated[f"eval_{key}"] for key in ("loss", "objective/kl", "objective/labels", "agreement")},
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(one["logs"]) == 2
    for mine, theirs in zip(one["logs"], other["logs"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-6)  # the Trainer logs in float32
    assert one["eval"] == pytest.approx(other["eval"], rel=1e-9)
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def student(make_model: Any) -> Path:
    path: Path = make_model("bert-tokens", labels=NAMES, vocab=WORDS, layers=2, seed=7)
    return path


@pytest.fixture(scope="module")
def whole(bert: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """8 examples in one batch."""
    settings = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
    return train(bert, student, sentences(16), tmp_path_factory.mktemp("whole"), **settings)


@pytest.mark.parametrize("size", [4, 2, 1])
def test_the_split_of_a_step_changes_nothing(
    size: int, whole: dict[str, Any], bert: Path, student: Path, tmp_path: Path
) -> None:
    """Averaged per micro-batch, a word's weight would depend on how long its neighbours are, and how many have tags."""
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    assert_same(train(bert, student, sentences(16), tmp_path, per_device_eval_batch_size=size, **settings), whole)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str, whole: dict[str, Any], bert: Path, student: Path, tmp_path: Path) -> None:
    """Padded positions, or their labels on the other side of the tokens, would be taught as words."""
    from transformers import DataCollatorForTokenClassification

    tokenizer = open_tokenizer(str(bert))
    tokenizer.padding_side = side
    collator = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=48)
    settings = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
    if side == "left":  # BERT's positions are absolute: logits move, the rows must not
        prepared = prepare(bert, sentences(16), teacher=open_config(str(bert)), tokenizer=tokenizer)
        rows = [{key: row[key] for key in row if key != "length"} for row in prepared.train]
        counts = prepared.layout.counts(dict(collator(rows)))
        assert counts["row"].tolist() == [len(words) for words in sentences(16)["tokens"]]
        return
    assert_same(train(bert, student, sentences(16), tmp_path, collator, **settings), whole)


def test_unlabelled_rows_teach(bert: Path, student: Path, tmp_path: Path) -> None:
    """Rows without tags dropped from the teacher's term: a transfer set would be as small as the labelled one."""
    settings = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
    some, full = (train(bert, student, sentences(16, unlabelled=every), tmp_path, **settings) for every in (2, 0))
    one, other = some["logs"][0], full["logs"][0]
    assert one["objective/kl"] == pytest.approx(other["objective/kl"], rel=1e-6)
    assert one["agreement"] == pytest.approx(other["agreement"])
    assert one["objective/labels"] != pytest.approx(other["objective/labels"], rel=1e-4)


# ---- A whole run -----------------------------------------------------------------------------------------------------


def write_recipe(directory: Path, teacher: Path, eval_tags: bool = True, **sections: Any) -> Path:
    for name, count in (("train", 48), ("validation", 16)):
        rows = list(sentences(count, seed=len(name), unlabelled=5 if name == "train" else 0))
        for row in rows:
            if name == "validation" and not eval_tags:
                del row["tags"]
        text = "\n".join(json.dumps({"words": row.pop("tokens"), **row}) for row in rows)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = {
        "task": "token-classification",
        "data": {
            "path": {name: str(directory / f"{name}.jsonl") for name in ("train", "validation")},
            "columns": {"tokens": "words"},
        },
        "teacher": {"name": "pretrained", "model": str(teacher)},
        "student": {"name": "copy_layers", "layers": 2},
        "objectives": [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}],
        "training": {
            "output_dir": str(directory / "out"), "per_device_train_batch_size": 8, "per_device_eval_batch_size": 5,
            "num_train_epochs": 2, "learning_rate": 3e-3, "disable_tqdm": True, "report_to": "none",
        },
        "report": {"baseline": True, "latency": False},
    } | sections  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def test_a_run_from_words_to_report(bert: Path, tmp_path: Path) -> None:
    """The reported figures must be those of the saved student on the words of the eval split, judged from outside."""
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    report = run(write_recipe(tmp_path, bert))
    assert report.metric == "span_f1"
    assert report.baseline is not None
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    true, predicted, right = [], [], []
    for line in (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["words"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            guess = model(**encoded).logits[0].argmax(-1).tolist()
        places = encoded.word_ids(0)
        tags = [model.config.id2label[guess[places.index(word)]] for word in range(len(row["words"]))]
        true.append(row["tags"])
        predicted.append(tags)
        right += [one == other for one, other in zip(tags, row["tags"], strict=True)]
    assert report.student.metrics["span_f1"] == pytest.approx(f1_score(true, predicted))
    assert report.student.metrics["token_accuracy"] == pytest.approx(np.mean(right))
    assert 0 < report.agreement <= 1
    assert report.eval_rows == len(right)
    assert report.is_chance("teacher"), "its weights are random"
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    confusion = content["confusion"]
    assert sorted(confusion["names"]) == sorted(NAMES)
    assert sum(map(sum, confusion["counts"])) == len(right)
    same = sum(confusion["counts"][at][at] for at in range(len(NAMES)))
    assert same / len(right) == pytest.approx(report.agreement)
    assert sum(content["calibration"]["student"]["counts"]) == len(right)
    assert {group["name"] for group in content["groups"]} <= set(NAMES)
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_permuted_teacher_gives_the_same_run(bert: Path, tmp_path: Path) -> None:
    """The teacher's order must reach training, agreement and its own metrics alike; half of it is worse than none."""
    student = {"name": "pretrained", "model": str(permuted(bert, range(5), tmp_path / "student"))}
    other = permuted(bert, (3, 0, 4, 1, 2), tmp_path / "teacher")
    reports = []
    for name, teacher in (("one", bert), ("two", other)):
        (tmp_path / name).mkdir()
        options = {"student": student, "report": {"baseline": False, "latency": False}}
        reports.append(run(write_recipe(tmp_path / name, teacher, **options)))
    one, two = reports
    assert two.teacher.metrics == pytest.approx(one.teacher.metrics)
    assert two.student.metrics == pytest.approx(one.student.metrics)
    assert two.agreement == pytest.approx(one.agreement)


def test_an_eval_split_without_tags(bert: Path, tmp_path: Path) -> None:
    """Agreement is all that is left, over words and nothing else."""
    options = {"report": {"baseline": False, "latency": False}}
    report = run(write_recipe(tmp_path, bert, eval_tags=False, **options))
    assert report.metric == "agreement"
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    counts = content["confusion"]["counts"]
    same = sum(row[at] for at, row in enumerate(counts))
    assert same / sum(map(sum, counts)) == pytest.approx(report.agreement)


def test_a_teacher_of_another_task_is_refused(make_model: Any, tmp_path: Path) -> None:
    """A sequence classifier's head fits by width and says nothing about words."""
    teacher = make_model("bert", labels=NAMES, vocab=WORDS)
    with pytest.raises(UserError, match="BertForSequenceClassification: it has no trained head"):
        run(write_recipe(tmp_path, teacher))


def test_a_recipe_without_a_tokens_column_is_refused(bert: Path, tmp_path: Path) -> None:
    """The role and the column are named, not a KeyError from inside a worker."""
    path = write_recipe(tmp_path, bert)
    with pytest.raises(UserError, match="no column 'tokens' for the role 'tokens'"):
        run(path, "data.columns={}")
