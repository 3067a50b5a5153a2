"""Question answering: from contexts and answers to windows, metrics and a run, with real tokenizers and models."""

from __future__ import annotations

import json
import logging
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import batch, dataset, refused
from runs import run

from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.metrics.answers import Questions, best_span
from hf_distill.models.loading import open_config, open_tokenizer
from hf_distill.rows.spans import SpanRows
from hf_distill.tasks import Prepared, QuestionAnswering, Setup
from hf_distill.tasks.evaluator import Predictions

NAMES = ("anna", "bob", "carla", "dan", "eve", "frank", "gina", "hugo")
PLACES = ("paris", "rome", "oslo", "lima", "cairo", "delhi", "quito", "bern")
WORDS = (*NAMES, *PLACES, "where", "does", "live", "lives", "in", "old", "town", "of", "the", "and", "?", ".")


def towns(count: int, facts: int = 4, unanswerable: int = 0, unlabelled: int = 0, seed: int = 0) -> Any:
    """Return questions about who lives where; every `unanswerable`-th has no answer, every `unlabelled`-th no label."""
    chance = random.Random(seed)
    columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
    for index in range(count):
        names, places = chance.sample(NAMES, facts + 1), chance.sample(PLACES, facts)
        told = [f"the old town of {place}" if chance.random() < 0.3 else place for place in places]
        context = " ".join(f"{name} lives in {place} ." for name, place in zip(names, told, strict=False))
        asked = chance.randrange(facts)
        none = unanswerable and index % unanswerable == unanswerable - 1
        columns["question"].append(f"{index} where does {names[-1] if none else names[asked]} live ?")
        columns["context"].append(context)
        start = context.index(told[asked], context.index(f"{names[asked]} lives"))
        answers: Any = {"text": [told[asked], places[asked]], "answer_start": [start, context.index(places[asked])]}
        if none:
            answers = {"text": [], "answer_start": []}
        columns["answers"].append(None if unlabelled and index % unlabelled == 0 else answers)
    return dataset(**columns)


def easy(count: int, seed: int = 0) -> Any:
    """Return questions whose answer is the only place in the context, so that a tiny model learns to find it."""
    chance = random.Random(seed)
    columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
    for index in range(count):
        words = [chance.choice(NAMES) for _ in range(chance.randint(6, 26))]
        place, at = chance.choice(PLACES), chance.randrange(len(words))
        answers: Any = {"text": [], "answer_start": []}
        if index % 4:
            words[at] = place
            answers = {"text": [place], "answer_start": [len(" ".join([*words[:at], ""]))]}
        columns["question"].append(f"{index} where ?")
        columns["context"].append(" ".join(words))
        columns["answers"].append(None if index % 9 == 0 else answers)
    return dataset(**columns)


def prepare(
    model: Path,
    train: Any,
    eval: Any = None,
    *,
    max_length: int | None = 32,
    metrics: Sequence[str] = (),
    tokenizer: Any = None,
    stride: int = 6,
    **task: Any,
) -> Prepared:
    return QuestionAnswering(stride=stride, **task).prepare(
        {"train": train, "eval": train if eval is None else eval},
        Setup(tokenizer=tokenizer or open_tokenizer(str(model)), max_length=max_length, metrics=list(metrics)),
    )


mistake = partial(refused, prepare)


def plain(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode without repairing the spaces around punctuation, as the decoder of word pieces does."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if "[CLS]" in tokenizer.get_vocab():
        return " ".join(tokens).replace(" ##", "")
    text: str = tokenizer.decode(ids)
    return text.strip()


@pytest.fixture(scope="module")
def bert(make_model: Any) -> Path:
    path: Path = make_model("bert-qa", vocab=WORDS)
    return path


# ---- Windows ---------------------------------------------------------------------------------------------------------


def test_windows_by_hand(bert: Path) -> None:
    """Positions off by one, a window without its question, or a lost overlap: all train without an error."""
    context = "anna lives in paris . bob lives in old rome ."
    data = dataset(
        question=["where does bob live ?"], context=[context], answers=[{"text": ["old rome"], "answer_start": [35]}]
    )
    prepared = prepare(bert, data, max_length=16, stride=3)
    tokenizer = open_tokenizer(str(bert))
    question = ["[CLS]", "where", "does", "bob", "live", "?", "[SEP]"]
    words = context.split()
    # 16 tokens, 8 of them the question's and special ones: 8 of the context, the last 3 of them again.
    wanted = [[*question, *words[:8], "[SEP]"], [*question, *words[5:], "[SEP]"]]
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in prepared.train["input_ids"]] == wanted
    assert prepared.train["labels"][:] == [[IGNORED, IGNORED], [10, 11]]
    assert prepared.train["context_mask"][:] == [[0] * 7 + [1] * 8 + [0], [0] * 7 + [1] * 6 + [0]]
    assert prepared.train["length"][:] == [16, 14]
    assert prepared.eval["length"][:] == [14, 16]
    inputs = {"input_ids", "token_type_ids", "attention_mask"}
    assert set(prepared.train.column_names) == {*inputs, "labels", "context_mask", "length"}
    assert set(prepared.eval.column_names) == set(prepared.train.column_names)
    whole = prepare(bert, data, max_length=None)
    assert whole.train["input_ids"][:] == tokenizer(["where does bob live ?"], [context])["input_ids"]
    assert whole.train["labels"][:] == [[15, 16]]


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
@pytest.mark.parametrize("max_length", [24, 64])
def test_every_window_points_to_its_answer(kind: str, max_length: int, make_model: Any) -> None:
    """Tokenizers differ in where a space belongs, and windows in whether the answer is cut: judged by decoding."""
    path = make_model(kind, vocab=WORDS)
    tokenizer = open_tokenizer(str(path))
    decode = partial(plain, tokenizer)
    data = towns(24)
    windows = prepare(path, data, max_length=max_length, stride=8).train
    assert max(windows["length"]) <= max_length
    assert (len(windows) > 24) == (max_length == 24)
    asked: dict[int, list[bool]] = {}
    for ids, labels, mask in zip(windows["input_ids"], windows["labels"], windows["context_mask"], strict=True):
        context = decode([token for token, one in zip(ids, mask, strict=True) if one])
        row = int(re.findall(r"(\d+) ?where", tokenizer.decode(ids))[0])
        answer, whole = data[row]["answers"]["text"][0], data[row]["context"]
        start = whole.index(context)
        at = data[row]["answers"]["answer_start"][0]
        inside = start <= at and at + len(answer) <= start + len(context)
        assert (labels[0] >= 0) == inside, (context, answer)
        asked.setdefault(row, []).append(inside)
        if inside:
            assert decode(ids[labels[0] : labels[1] + 1]) == answer
            assert all(mask[labels[0] : labels[1] + 1])
    assert len(asked) == 24
    assert all(any(found) for found in asked.values())


def test_part_of_a_word_and_spaces_around_it(bert: Path) -> None:
    """The token that holds an answer's first letter is its start, even if the answer begins within it."""
    context = "anna lives in paris ."
    for text, start in (("pari", 14), ("aris", 15), (" paris ", 13)):
        answers = [{"text": [text], "answer_start": [start]}]
        prepared = prepare(bert, dataset(question=["where ?"], context=[context], answers=answers))
        assert prepared.train["labels"][:] == [[7, 7]], text


def test_no_answer(bert: Path) -> None:
    """A window without the answer taught as `no answer` where all questions have one, or the other way round."""
    both, one = towns(8, unanswerable=4), towns(8)
    plain, known = prepare(bert, one, max_length=24), prepare(bert, both, max_length=24)
    assert {tuple(labels) for labels in plain.train["labels"] if labels[0] <= 0} == {(IGNORED, IGNORED)}
    assert {tuple(labels) for labels in known.train["labels"] if labels[0] <= 0} == {(0, 0)}
    assert not any(mask[0] for mask in plain.train["context_mask"])
    assert all(mask[0] == 1 and sum(mask) > 1 for mask in known.train["context_mask"])
    assert plain.evaluator.names == ("f1", "exact_match")
    assert known.evaluator.names == ("f1", "exact_match", "f1_has_answer", "accuracy_no_answer")
    assert prepare(bert, one, max_length=24, no_answer=True).train["labels"][:].count([0, 0]) > 0
    assert prepare(bert, both, max_length=24, no_answer=False).train["labels"][:].count([0, 0]) == 0
    # Known from either split: train and eval must agree on what the first token means.
    assert prepare(bert, one, both, max_length=24).train["context_mask"][0][0] == 1


@pytest.mark.parametrize(("kind", "place"), [("bert", 0), ("roberta", 0), ("gpt2", 0), ("xlnet", -1)])
def test_the_token_for_no_answer(kind: str, place: int, make_model: Any) -> None:
    """It must be allowed, and the same token in every window, or training teaches what evaluation does not read."""
    from tokenizers.processors import TemplateProcessing

    path = make_model("bert" if kind == "xlnet" else kind, vocab=WORDS)
    tokenizer = open_tokenizer(str(path))
    if kind == "xlnet":  # its classification token is the last one
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[SEP]", "[CLS]")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A [SEP] [CLS]", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:1", special_tokens=special
        )
    windows = prepare(path, towns(8, unanswerable=2), max_length=28, tokenizer=tokenizer).train
    pointed = [labels for labels, mask in zip(windows["labels"], windows["context_mask"], strict=True) if mask[place]]
    assert len(pointed) == len(windows)
    lengths = windows["length"] if place else [0] * len(windows)
    none = [[place + length] * 2 for length in lengths]
    count = sum(found == wanted for found, wanted in zip(pointed, none, strict=True))
    assert len(windows) / 2 <= count < len(windows)
    if kind != "gpt2":  # which has no such token
        assert {ids[place] for ids in windows["input_ids"]} == {tokenizer.cls_token_id}


def test_unlabelled_rows_and_answers_that_fit_nowhere(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To teach `no answer` where the answer is not known, or longer than a window, is to teach a falsehood."""
    prepared = prepare(bert, towns(8, unlabelled=2), no_answer=True, max_length=64)
    assert [labels == [IGNORED] * 2 for labels in prepared.train["labels"]] == [True, False] * 4
    assert prepared.labelled
    bare = prepare(bert, towns(8).remove_columns("answers"), towns(8))
    assert not bare.labelled
    assert bare.evaluator.names == ("f1", "exact_match")
    assert prepare(bert, towns(8), towns(8).remove_columns("answers")).evaluator.names == ()
    context = " ".join(["old"] * 30)
    long = dataset(question=["where ?"], context=[context], answers=[{"text": [context], "answer_start": [0]}])
    with caplog.at_level(logging.WARNING, logger="hf_distill"):
        found = prepare(bert, long, no_answer=True, max_length=20)
    assert {tuple(labels) for labels in found.train["labels"]} == {(IGNORED, IGNORED)}
    assert "1 of 1 questions of the train split have an answer that no window of 20 tokens holds" in caplog.text


def test_answers_as_a_list_of_mappings(bert: Path) -> None:
    """The form of SQuAD's own JSON files, which differs from the Hub's, must give the same windows."""
    data = towns(6, unanswerable=3)
    rows = [
        [
            {"text": text, "answer_start": start}
            for text, start in zip(one["text"], one["answer_start"], strict=True)
        ]
        for one in data["answers"]
    ]  # fmt: skip
    listed = dataset(question=data["question"][:], context=data["context"][:], answers=rows)
    assert prepare(bert, listed).train["labels"][:] == prepare(bert, data).train["labels"][:]


def test_padding_is_on_the_right_whatever_the_tokenizer_says(bert: Path) -> None:
    """Labels and predictions are positions: padding on the left would move every one of them, silently."""
    tokenizer = open_tokenizer(str(bert))
    tokenizer.padding_side = "left"
    prepared = prepare(bert, towns(6, facts=3), tokenizer=tokenizer, max_length=24)
    found = batch(prepared)
    for at, row in enumerate(prepared.train):
        length, rest = row["length"], found["input_ids"].shape[1] - row["length"]
        assert found["input_ids"][at].tolist() == row["input_ids"] + [tokenizer.pad_token_id] * rest
        assert found["attention_mask"][at].tolist() == [1] * length + [0] * rest
        assert found["context_mask"][at].tolist() == row["context_mask"] + [0] * rest
    assert found["labels"].tolist() == prepared.train["labels"][:]


# ---- Bad data --------------------------------------------------------------------------------------------------------


def rows(**columns: Any) -> Any:
    """Return two rows, the second with what the arguments say."""
    good = {
        "question": "where does bob live ?",
        "context": "bob lives in rome .",
        "answers": {"text": ["rome"], "answer_start": [13]},
    }
    return dataset(**{name: [value, columns.get(name, value)] for name, value in good.items()})


@pytest.mark.parametrize(
    ("columns", "key", "words"),
    [
        ({"answers": {"text": ["rome"], "answer_start": [12]}}, "answers", "start 12.*there; the answer is at 13"),
        ({"answers": {"text": ["oslo"], "answer_start": [13]}}, "answers", "the answer is not in the context"),
        ({"answers": {"text": ["rome"], "answer_start": [-6]}}, "answers", "it is negative"),
        ({"answers": {"text": ["rome"], "answer_start": []}}, "answers", "1 answer texts and 0 answer_start"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "answers", "without text.*empty lists"),
        ({"context": "  "}, "context", "no context"),
        ({"context": None}, "context", r"1 of 2 entries .* missing \(None\), the first in row 1"),
        ({"question": ""}, "question", "no question"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(columns: Any, key: str, words: str, bert: Path) -> None:
    """A shifted answer_start (in bytes, say) would train the student on nonsense; the row is what helps to fix it."""
    found, line = mistake(bert, rows(**columns), rows())
    assert found == f"columns.{key}"
    assert re.search(words, line), line
    assert "row 1" in line
    assert "train split" in line


@pytest.mark.parametrize(
    "answers",
    [
        ["rome", "rome"],
        [["rome"], ["rome"]],
        [{"text": "rome", "answer_start": 13}] * 2,
        [{"text": ["rome"]}] * 2,
        [{"text": ["rome"], "answer_start": ["13"]}] * 2,
    ],
)
def test_answers_in_another_form_are_refused(answers: Any, bert: Path) -> None:
    """The form that is wanted, before anything is tokenised, not a KeyError from inside a worker."""
    key, line = mistake(bert, dataset(question=["where ?"] * 2, context=["bob lives in rome ."] * 2, answers=answers))
    assert key == "columns.answers"
    assert "wanted SQuAD's format, {text: [...], answer_start: [...]}" in line


def test_too_little_room(bert: Path) -> None:
    """The tokenizer panics on a stride that does not fit, in Rust, and on a question that fills the window."""
    key, line = mistake(bert, rows(), max_length=16, stride=8)
    assert key == "max_length"
    assert "16 tokens leave room for 8 of the context beside the question of row 0" in line
    assert "more than the 8 that windows overlap by" in line
    assert len(prepare(bert, rows(), max_length=16, stride=7).train) == 2
    key, line = mistake(bert, rows(question="where ? " * 20), max_length=24, stride=0)
    assert key == "max_length"
    assert "room for 0 of the context beside the question of row 1" in line


def test_slow_tokenizers_and_names_are_refused(bert: Path) -> None:
    """Without offsets no answer can be found; names of classes would be accepted and do nothing."""

    class Slow:
        is_fast = False

    assert "Slow does not give the position of a token in the text" in mistake(bert, rows(), tokenizer=Slow())[1]
    with pytest.raises(UserError, match="an answer is a span of text"):
        QuestionAnswering().prepare(
            {"train": rows(), "eval": rows()}, Setup(tokenizer=open_tokenizer(str(bert)), label_names=["a"])
        )
    for name in ("accuracy", "evaluate/squad"):
        assert mistake(bert, rows(), metrics=[name])[0] == "metrics"


# ---- Metrics ---------------------------------------------------------------------------------------------------------


def official_normalise(text: str) -> str:
    """As `normalize_answer` of SQuAD's evaluate-v2.0.py."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split())


def official(predicted: str, gold: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 as `get_raw_scores` of SQuAD's evaluate-v2.0.py."""
    gold = [answer for answer in gold if official_normalise(answer)] or [""]
    exact, f1 = 0.0, 0.0
    for answer in gold:
        exact = max(exact, float(official_normalise(answer) == official_normalise(predicted)))
        gold_tokens, tokens = official_normalise(answer).split(), official_normalise(predicted).split()
        same = sum((Counter(gold_tokens) & Counter(tokens)).values())
        if len(gold_tokens) == 0 or len(tokens) == 0:
            f1 = max(f1, float(gold_tokens == tokens))
        elif same:
            precision, recall = same / len(tokens), same / len(gold_tokens)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("The U.S. Army", ["us army"], 1, 1),
        ("in Paris", ["Paris", "city of Paris"], 0, 2 / 3),
        ("a the", ["an"], 1, 1),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("new new york", ["new york city"], 0, 2 / 3),
        ("rock'n'roll", ["rocknroll!"], 1, 1),
        ("anthem", ["them"], 0, 0),
    ],
)
def test_answers_are_judged_as_by_squad(predicted: str, gold: list[str], exact: float, f1: float) -> None:
    """Another normalisation gives figures that cannot be compared with any published one."""
    assert official(predicted, gold) == pytest.approx((exact, f1))
    words = predicted.split() or [""]
    context = " ".join(words)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    starts = ends - [len(word) for word in words]
    no_answer = predicted == ""
    logits = np.zeros((1, len(words) + 1, 2))
    logits[0, 0 if no_answer else 1, 0] = logits[0, 0 if no_answer else len(words), 1] = 9.0
    questions = Questions(
        names=("exact_match", "f1"),
        contexts=[context],
        answers=[gold],
        row=[0],
        starts=[np.array([0, *starts])],
        ends=[np.array([0, *ends])],
        allowed=[np.array([False] + [True] * len(words))],
        nothing=[0],
        longest=30,
    )
    assert questions.predictions(logits) == [predicted]
    assert questions.metrics(logits) == pytest.approx({"exact_match": exact, "f1": f1})


@pytest.mark.parametrize(("null", "wanted"), [(4.5, ""), (4.0, "Paris"), (3.5, "Paris")])
def test_no_answer_has_to_be_better_than_the_best_span(null: float, wanted: str) -> None:
    """Predictions differ from those of BERT's run_squad.py, which answers nothing only where `score_null - best` is
    greater than its threshold, 0: equal scores give the span. They are common in half precision."""
    logits = np.array([[[null, 0.0], [1.0, 3.0], [0.0, 0.0]]])
    questions = Questions(
        names=("f1",),
        contexts=["Paris in"],
        answers=[["Paris"]],
        row=[0],
        starts=[np.array([0, 0, 6])],
        ends=[np.array([0, 5, 8])],
        allowed=[np.array([False, True, True])],
        nothing=[0],
        longest=1,
    )
    assert questions.predictions(logits) == [wanted]


def brute_force(start: Any, end: Any, allowed: Any, longest: int) -> tuple[float, int, int]:
    pairs = [
        (start[i] + end[j], -i, -j)
        for i in range(len(start))
        for j in range(i, min(i + longest, len(start)))
        if allowed[i] and allowed[j]
    ]
    score, i, j = max(pairs)
    return score, -i, -j


def test_the_best_span_is_the_best_of_all() -> None:
    """An end before the start, or a span into the question, has often the greatest sum."""
    chance = np.random.default_rng(0)
    for length in range(1, 30):
        start, end = chance.normal(size=(2, length))
        allowed = chance.random(length) < 0.7
        allowed[chance.integers(length)] = True
        for longest in (1, 3, 40):
            assert best_span(start, end, allowed, longest) == pytest.approx(brute_force(start, end, allowed, longest))


def judge(prepared: Prepared, tokenizer: Any, data: Any, logits: Any) -> tuple[dict[str, float], list[str]]:
    """Return EM, F1 and the predictions, from tokens and texts alone: without what the task knows of its windows."""
    no_answer = prepared.train["context_mask"][0][0] == 1
    spans: dict[int, list[tuple[float, str]]] = {row: [] for row in range(len(data))}
    nulls: dict[int, list[float]] = {row: [] for row in range(len(data))}
    for window, scores in zip(prepared.eval, logits, strict=True):
        ids = window["input_ids"]
        first = ids.index(tokenizer.sep_token_id) + 1
        allowed = [first <= at < len(ids) - 1 for at in range(len(ids))]
        row = int(re.findall(r"(\d+) where", plain(tokenizer, ids))[0])
        score, i, j = brute_force(scores[:, 0], scores[:, 1], allowed, 5)
        spans[row].append((score, plain(tokenizer, ids[i : j + 1])))
        nulls[row].append(scores[0].sum())
    best = {row: max(found) for row, found in spans.items()}
    texts = ["" if no_answer and min(nulls[row]) > best[row][0] else best[row][1] for row in best]
    known = [row for row in best if data[row]["answers"] is not None]
    exact, f1 = np.array([official(texts[row], data[row]["answers"]["text"]) for row in known]).T
    none = np.array([not data[row]["answers"]["text"] for row in known])
    figures = {"exact_match": exact.mean(), "f1": f1.mean()}
    if none.any():
        figures |= {"f1_has_answer": f1[~none].mean(), "exact_match_has_answer": exact[~none].mean()}
        figures["accuracy_no_answer"] = exact[none].mean()
    return figures, texts


@pytest.mark.parametrize("unanswerable", [0, 3])
def test_metrics_are_over_questions(unanswerable: int, bert: Path) -> None:
    """Judged window by window, a question with many windows would count often, and mostly as wrong."""
    data = towns(40, facts=6, unanswerable=unanswerable, unlabelled=7)
    names = ["f1", "exact_match"]
    if unanswerable:
        names += ["f1_has_answer", "exact_match_has_answer", "accuracy_no_answer"]
    prepared = prepare(bert, data, max_length=24, metrics=names, longest_answer=5)
    assert len(prepared.eval) > 60
    assert prepared.eval["length"][:] == sorted(prepared.eval["length"][:])
    chance = np.random.default_rng(0)
    longest = max(prepared.eval["length"])
    logits = chance.normal(size=(len(prepared.eval), longest, 2))
    logits[:, 0] += 0.9
    labels = np.array(prepared.eval["labels"][:])
    for at, (first, last) in enumerate(labels):
        if first >= 0 and chance.random() < 0.6:  # some right ones
            logits[at, first, 0] += 4
            logits[at, last, 1] += 4
    logits = logits.astype(np.float32)
    for at, length in enumerate(prepared.eval["length"]):
        logits[at, length:] = -100.0  # as the trainer pads
    wanted, _ = judge(prepared, open_tokenizer(str(bert)), data, [
        one[:length].astype(np.float64) for one, length in zip(logits, prepared.eval["length"], strict=True)
    ])  # fmt: skip
    found = prepared.evaluator.evaluate(Predictions(logits, labels))
    assert list(found) == names
    assert found == pytest.approx(wanted)
    assert 0 < found["exact_match"] < found["f1"] < 1
    scores = prepared.evaluator.questions.scores(logits)["f1"]
    assert len(scores) == 40
    assert np.isnan(scores).sum() == len(range(0, 40, 7))
    assert np.nanmean(scores) == pytest.approx(found["f1"])


def test_undefined_metrics_are_nan(bert: Path) -> None:
    """A diverged model's NaN has an argmax, and thus a score; and a mean over no question is none."""
    prepared = prepare(bert, towns(6), metrics=["f1", "accuracy_no_answer"])
    shape = (len(prepared.eval), max(prepared.eval["length"]), 2)
    evaluator = prepared.evaluator
    found = evaluator.evaluate(Predictions(np.zeros(shape)))
    assert np.isnan(found["accuracy_no_answer"])
    assert found["f1"] >= 0
    assert np.isnan(evaluator.evaluate(Predictions(np.full(shape, np.nan)))["f1"])
    with pytest.raises(ValueError, match="wanted those of all"):
        evaluator.evaluate(Predictions(np.zeros(shape)[1:]))


def test_the_noise_of_a_gain_is_that_of_questions(bert: Path) -> None:
    """Windows resampled as if each were judged alone: an error bar of another quantity, or a crash after hours."""
    data = towns(60, facts=6, unlabelled=6)
    prepared = prepare(bert, data, max_length=24)
    chance = np.random.default_rng(1)
    shape = (len(prepared.eval), max(prepared.eval["length"]), 2)
    labels = np.array(prepared.eval["labels"][:])
    evaluator: Any = prepared.evaluator
    predictions, scores = {}, {}
    for name in ("student", "baseline"):
        logits = chance.normal(size=shape)
        predictions[name] = Predictions(logits, labels)
        scores[name] = evaluator.questions.scores(logits)["f1"]
    difference = scores["student"] - scores["baseline"]
    difference = difference[~np.isnan(difference)]
    assert len(difference) == 50 == evaluator.count(predictions["student"])
    # A bootstrap of a mean estimates its standard error; 100 samples do to about 7 %.
    assert evaluator.gain_error(predictions["student"], predictions["baseline"]) == pytest.approx(
        difference.std() / 50**0.5, rel=0.25
    )


# ---- A whole run -----------------------------------------------------------------------------------------------------


def write_recipe(directory: Path, model: Path, **sections: Any) -> Path:
    for name, count in (("train", 96), ("validation", 40)):
        text = "\n".join(json.dumps(row) for row in easy(count, seed=len(name)))
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = {
        "task": {"name": "question-answering", "stride": 8, "longest_answer": 5},
        "data": {
            "path": {name: str(directory / f"{name}.jsonl") for name in ("train", "validation")}, "max_length": 24,
        },
        "teacher": {"name": "pretrained", "model": str(model)},
        "student": {"name": "copy_layers", "layers": 2},
        "objectives": [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}],
        "training": {
            "output_dir": str(directory / "out"), "per_device_train_batch_size": 8, "per_device_eval_batch_size": 5,
            "num_train_epochs": 1, "learning_rate": 1e-3, "disable_tqdm": True, "report_to": "none",
            "logging_steps": 1000,
        },
        "report": {"baseline": True, "latency": False},
    } | sections  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def test_a_run_from_contexts_to_report(bert: Path, tmp_path: Path) -> None:
    """The reported figures must be those of the saved student on the questions of the eval split, from outside; and
    rows, labels or metrics that are off would leave a trained teacher at chance without an error."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    settings = {"num_train_epochs": 6, "learning_rate": 5e-3}
    path = write_recipe(tmp_path, bert, teacher={"name": "finetuned", "model": str(bert), "training": settings})
    # One of the teacher's two layers: the student cannot agree with it everywhere.
    report = run(path, "student.layers=1", "training.learning_rate=5e-4")
    assert report.metric == "f1"
    assert report.baseline is not None
    assert report.teacher.metrics["f1"] > 0.7
    assert report.chance is not None
    assert report.chance.value < 0.5
    assert not report.is_chance("teacher")
    data = easy(40, seed=len("validation"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prepared = prepare(bert, data, max_length=24, stride=8)
    assert len(prepared.eval) > 55
    guesses = {}
    places = {"student": tmp_path / "out", "teacher": next((tmp_path / "out").glob("_teacher/*/config.json")).parent}
    for name, place in places.items():
        model = AutoModelForQuestionAnswering.from_pretrained(place).eval()
        logits = []
        for window in prepared.eval:  # one by one: no padding
            inputs = {key: torch.tensor([window[key]]) for key in ("input_ids", "token_type_ids")}
            with torch.no_grad():
                output = model(**inputs)
            logits.append(torch.stack((output.start_logits[0], output.end_logits[0]), -1).double().numpy())
        figures, _ = judge(prepared, tokenizer, data, logits)
        metrics = getattr(report, name).metrics
        assert list(metrics) == ["f1", "exact_match", "f1_has_answer", "accuracy_no_answer"]
        assert metrics == pytest.approx({key: figures[key] for key in metrics})
        masks = [np.array(mask, dtype=bool)[:, None] for mask in prepared.eval["context_mask"]]
        top = [np.where(mask, one, -np.inf).argmax(0) for one, mask in zip(logits, masks, strict=True)]
        guesses[name] = np.array(top)
    assert report.agreement == pytest.approx((guesses["student"] == guesses["teacher"]).mean())
    assert 0 < report.agreement < 1
    assert report.eval_rows == 40 - len(range(0, 40, 9))
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert content["gain_error"] > 0
    assert not content.get("confusion")
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_eval_split_without_answers(bert: Path, tmp_path: Path) -> None:
    """Agreement is all that is left, over starts and ends."""
    path = write_recipe(tmp_path, bert, report={"latency": False})
    place = tmp_path / "validation.jsonl"
    lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    place.write_text("\n".join(json.dumps({**row, "answers": None}) for row in lines), encoding="utf-8")
    report = run(path, "training.num_train_epochs=1")
    assert report.metric == "agreement"
    assert 0 <= report.agreement <= 1


def test_a_recipe_without_a_context_column_is_refused(bert: Path, tmp_path: Path) -> None:
    """The role and the column are named, not a KeyError from inside a worker."""
    path = write_recipe(tmp_path, bert)
    with pytest.raises(UserError, match="no column 'passage' for the role 'context'"):
        run(path, "data.columns={context: passage}")


def test_a_model_without_the_head_is_no_teacher(make_model: Any, tmp_path: Path) -> None:
    """A sequence classifier of two labels fits by width and says nothing about positions."""
    with pytest.raises(UserError, match="BertForSequenceClassification: it has no trained head"):
        run(write_recipe(tmp_path, make_model("bert", vocab=WORDS)))


def test_two_models_and_transformers_own_columns(bert: Path, tmp_path: Path) -> None:
    """`start_positions`, as every tutorial has them: dropped by the Trainer as unused, nothing would be learned."""
    from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import KLDivergence, Labels

    tokenizer = open_tokenizer(str(bert))
    data = prepare(bert, towns(8, unanswerable=4), max_length=64).train
    starts, ends = np.array(data["labels"][:]).T
    data = data.remove_columns(["labels", "context_mask", "length"])
    data = data.add_column("start_positions", starts).add_column("end_positions", ends)
    student, teacher = (AutoModelForQuestionAnswering.from_pretrained(bert) for _ in range(2))
    with torch.no_grad():
        student.qa_outputs.weight.mul_(0.5)
    trainer = DistillationTrainer(
        student,
        DistillationArguments(output_dir=str(tmp_path), report_to="none", per_device_eval_batch_size=3),
        teacher=teacher,
        objectives=[KLDivergence(), Labels()],
        eval_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    assert trainer.layout == SpanRows()
    found = trainer.predict(data)
    assert found.label_ids.tolist() == np.stack((starts, ends), -1).tolist()
    losses, divergences = [], []
    for row in data:  # one by one: no padding
        inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.no_grad():
            mine, theirs = student(**inputs), teacher(**inputs)
        for name, label in (("start_logits", "start_positions"), ("end_logits", "end_positions")):
            q, p = (one[name][0].double().log_softmax(-1) for one in (mine, theirs))
            losses.append(-q[row[label]].item())
            divergences.append((p.exp() * (p - q)).sum().item())
    assert found.metrics["test_objective/labels"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.metrics["test_objective/kl"] == pytest.approx(np.mean(divergences), rel=1e-4)
    assert open_config(str(bert)).architectures == ["BertForQuestionAnswering"]
