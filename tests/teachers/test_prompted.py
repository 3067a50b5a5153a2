"""A language model with a prompt teaches: against a loop over whole sequences, one row and one verbalizer at a time."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

PROMPT = "the film is {{ sentence }} and the story is"
# Of one token and of several; more than one for a label.
VERBALIZERS = {"positive": [" great", " very funny"], "negative": " dull"}


@pytest.fixture
def prompted(write_recipe: WriteRecipe, make_model: Any) -> WriteRecipe:
    """Write a recipe with a prompted teacher; keyword arguments are keys of the teacher, `sections` of the recipe."""

    def write(*, kind: str = "llama-lm", sections: Any = None, cached: Path | None = None, **keys: Any) -> Path:
        own = {
            "name": "prompted",
            "model": str(make_model(kind, layers=2, seed=3)),
            "prompt": PROMPT,
            "verbalizers": VERBALIZERS,
            **keys,
        }
        return write_recipe(
            teacher=own if cached is None else {"name": "cached", "teacher": own, "path": str(cached)},
            student={"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=2))},
            **(sections or {}),
        )

    return write


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def loop(model: Path, prompts: list[str], *, mean: bool = False) -> np.ndarray[Any, Any]:
    """Return log-probabilities of negative and positive, `(rows, 2)`: float64, no padding, no cache, no batch."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encodes = AutoConfig.from_pretrained(model).is_encoder_decoder
    network = (AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM).from_pretrained(model).double().eval()
    scores = np.zeros((len(prompts), 2))
    for row, prompt in enumerate(prompts):
        for at, texts in enumerate((["negative"], ["positive"])):
            found = []
            for text in [VERBALIZERS[texts[0]]] if isinstance(VERBALIZERS[texts[0]], str) else VERBALIZERS[texts[0]]:
                if encodes:
                    ids = tokenizer(text_target=text, add_special_tokens=False)["input_ids"]
                    start = [network.config.decoder_start_token_id]
                    start += [tokenizer.bos_token_id] if network.config.model_type == "bart" else []
                    inputs = tokenizer(prompt, return_tensors="pt")
                    logits = network(**inputs, decoder_input_ids=torch.tensor([[*start, *ids]])).logits[0]
                else:
                    whole = tokenizer(prompt + text)["input_ids"]
                    ids = whole[len(tokenizer(prompt)["input_ids"]) :]
                    logits = network(input_ids=torch.tensor([whole])).logits[0]
                each = logits[-len(ids) - 1 : -1].log_softmax(-1)[range(len(ids)), ids]
                found.append(each.mean() if mean else each.sum())
            scores[row, at] = torch.stack(found).logsumexp(0).item()
    return scores - np.logaddexp(*scores.T)[:, None]


def rendered(rows: list[dict[str, str]]) -> list[str]:
    return [PROMPT.replace("{{ sentence }}", row["sentence"]) for row in rows]


def made(path: Path) -> tuple[Any, Any]:
    """Return the prepared data of a recipe, and its teacher."""
    from hf_distill.data import load_splits
    from hf_distill.run.pairing import open_pair
    from hf_distill.run.preparation import prepare

    recipe = load_recipe(path)
    pair = open_pair(recipe)
    splits = load_splits(recipe.data, recipe.task.roles, recipe.teacher.reads)
    theirs = prepare(recipe, pair, splits)[0].for_teacher
    assert theirs is not None
    return theirs, recipe.teacher.load(theirs.head, lambda model, how: model)


def logits(path: Path, split: str = "train", batch: int = 8) -> np.ndarray[Any, Any]:
    """Return the teacher's logits for a split in the order in which a training has its rows: negative, positive."""
    theirs, source = made(path)
    source.model.double()
    rows = getattr(theirs, split)
    with torch.no_grad():
        found = [
            source.model(**{name: batched[name] for name in ("input_ids", "attention_mask")})["logits"]
            for start in range(0, len(rows), batch)
            for batched in [theirs.collator([rows[at] for at in range(start, min(start + batch, len(rows)))])]
        ]
    whole = torch.cat(found).numpy()
    order = list(theirs.head.settings["id2label"].values())
    return whole[:, [order.index(name) for name in ("negative", "positive") if name in order]]


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm", "t5", "bart"])
def test_the_targets_are_those_of_a_loop_over_whole_sequences(
    prompted: WriteRecipe, make_model: Any, sentiment_csv: Any, kind: str
) -> None:
    """Otherwise tokens are cut at another place, labels change places or verbalizers are added up wrongly."""
    prompts = rendered(read(sentiment_csv.train))
    for mean in (False, True):
        wanted = loop(make_model(kind, layers=2, seed=3), prompts, mean=mean)
        assert wanted.std(0).min() > 0.01
        found = logits(prompted(kind=kind, length_normalisation=mean))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_it_teaches_live_and_from_a_cache(
    prompted: WriteRecipe, make_model: Any, sentiment_csv: Any, tmp_path: Path
) -> None:
    """Rows or classes in another order would teach noise; a cache without the prompt in its key, another prompt's."""
    live = run(prompted(sections={"training": {"logging_steps": 1}}))
    rows = read(sentiment_csv.validation)
    guesses = loop(make_model("llama-lm", layers=2, seed=3), rendered(rows)).argmax(-1)
    right = [("negative", "positive")[guess] == row["label"] for guess, row in zip(guesses, rows, strict=True)]
    assert live.teacher.metrics["accuracy"] == pytest.approx(np.mean(right))
    facts = live.settings["teacher"]
    assert facts["prompt"] == PROMPT
    assert facts["verbalizers"]["positive"] == ["' great'", "' very funny'"]
    stored = run(prompted(sections={"training": {"logging_steps": 1}}, cached=tmp_path / "cache"), restart=True)
    assert stored.teacher.metrics == live.teacher.metrics
    assert stored.settings["teacher"] == facts
    assert stored.student.metrics == live.student.metrics
    with pytest.raises(UserError, match="cache"):
        run(prompted(cached=tmp_path / "cache", prompt=f"this {PROMPT}"), restart=True)


# ---- Calibration -----------------------------------------------------------------------------------------------------


def softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shares: np.ndarray[Any, Any] = np.exp(values - values.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def test_contextual_calibration_divides_by_the_probabilities_of_texts_without_content(
    prompted: WriteRecipe, make_model: Any, sentiment_csv: Any
) -> None:
    """Otherwise the teacher says what it says to everything (Zhao et al. 2021, section 5)."""
    model = make_model("llama-lm", layers=2, seed=3)
    free = loop(model, [PROMPT.replace("{{ sentence }}", text) for text in ("N/A", "[MASK]", "")])
    q = np.exp(loop(model, rendered(read(sentiment_csv.validation)))) / np.exp(free).mean(0)
    q /= q.sum(-1, keepdims=True)
    found = np.exp(logits(prompted(calibration="contextual"), "eval"))
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(q[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prior", ["uniform", "labels"])
def test_prior_calibration_makes_the_mean_prediction_the_prior(
    prompted: WriteRecipe, sentiment_csv: Any, tmp_path: Path, prior: str
) -> None:
    """Otherwise the mean prediction over the train rows is whatever the model prefers."""
    rows = read(sentiment_csv.train)[:60] + [row for row in read(sentiment_csv.train) if row["label"] == "negative"]
    path = tmp_path / "skewed.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sentence", "label"])
        writer.writeheader()
        writer.writerows(rows)
    data = {
        "path": {"train": str(path), "validation": str(sentiment_csv.validation)},
        "columns": {"text": "sentence"},
    }
    plain = logits(prompted(sections={"data": data}))
    found = logits(prompted(calibration="prior", prior=prior, sections={"data": data}))
    wanted = [0.5, 0.5] if prior == "uniform" else [62 / 92, 30 / 92]
    assert abs(np.exp(plain).mean(0)[0] - wanted[0]) > 0.02
    np.testing.assert_allclose(np.exp(found).mean(0), wanted, atol=1e-5)
    moved = (found - plain)[:, 0] - (found - plain)[:, 1]
    np.testing.assert_allclose(moved, moved[0], atol=1e-5)  # the same for all rows


# ---- Solved examples -------------------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    return check(load_recipe(path))


def prompt_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(" " * 12 + "|")]


def test_solved_examples_are_labelled_train_rows_as_many_of_each_class(
    prompted: WriteRecipe, sentiment_csv: Any
) -> None:
    """An example of the eval split would leak its label; unbalanced or changing ones would shift all targets."""
    short = {"prompt": "{{ sentence }} is", "examples": 2}
    text = shown(prompted(**short))
    train = {row["sentence"]: row["label"] for row in read(sentiment_csv.train)}
    answers = {"positive": "great", "negative": "dull"}
    lines = [line[14:] for line in prompt_lines(text) if len(line) > 14]
    assert len(lines) == 3
    labels = []
    for line in lines[:2]:
        sentence, _, answer = line.rpartition(" is ")
        labels.append(train[sentence])
        assert answers[train[sentence]] == answer
    assert sorted(labels) == ["negative", "positive"]
    assert text == shown(prompted(**short))
    assert text != shown(prompted(**short, seed=1))
    # Where the template places them itself.
    placed = "{% for one in examples %}{{ one.sentence }} is{{ one.answer }} . {% endfor %}{{ sentence }} is"
    lines = prompt_lines(shown(prompted(examples=2, prompt=placed)))
    assert len(lines) == 1
    assert lines[0].count(" is great . ") == lines[0].count(" is dull . ") == 1


def test_the_prompt_of_a_chat_goes_through_the_template(prompted: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Without the roles' marks, or with the special tokens twice, an instruction-tuned model reads something else."""
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": "the film"}, {"role": "user", "content": "{{ text }} is"}]
    with pytest.raises(UserError, match="no chat template") as caught:
        shown(prompted(prompt=messages))
    assert "teacher.prompt" in str(caught.value)
    copy = tmp_path / "chat"
    shutil.copytree(make_model("llama-lm", layers=2, seed=3), copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for one in messages %}{{ one.role[0] }} {{ one.content }} . {% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    tokenizer.save_pretrained(copy)
    text = shown(prompted(prompt=messages, model=str(copy), examples=2))
    (line,) = prompt_lines(text)
    assert line.count("s the film . u ") == 1
    assert line.count(" is . a ") == 2
    assert line.endswith(" is . a")
    theirs, _ = made(prompted(prompt=messages, model=str(copy)))
    prefix = theirs.head.settings["prompted"]["prefixes"][0]
    assert prefix.count(tokenizer.bos_token_id) == 1


# ---- Several labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(prompted: WriteRecipe, tmp_path: Path) -> WriteRecipe:
    """Write a recipe with several labels per row."""
    path = tmp_path / "tagged.jsonl"
    tags = [["funny"], [], ["funny", "dull"], ["dull"]]
    sentences = ["the cast is great", "a plot", "this story was very funny", "the film and the scene"]
    rows = [{"sentence": one, "tags": some} for one, some in zip(sentences, tags, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**keys: Any) -> Path:
        data = {"path": {"train": str(path), "validation": str(path)}, "columns": {"text": "sentence", "label": "tags"}}
        return prompted(
            **{
                "prompt": "{{ text }} . it is {{ label }} and",
                "verbalizers": {"yes": [" great"], "no": [" bad", " awful scene"]},
                "sections": {"data": data},
                **keys,
            }
        )

    return write


def test_several_labels_are_asked_for_one_by_one(tagged: WriteRecipe, make_model: Any) -> None:
    """Otherwise labels compete, or a label gets the logit of another."""
    theirs, source = made(tagged())
    names = list(theirs.head.settings["id2label"].values())
    assert sorted(names) == ["dull", "funny"]
    source.model.double()
    batch = theirs.collator([theirs.train[at] for at in range(4)])
    found = source.model(batch["input_ids"], batch["attention_mask"])["logits"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "VERBALIZERS", {"positive": [" great"], "negative": [" bad", " awful scene"]})
        for row, sentence in enumerate(
            ["the cast is great", "a plot", "this story was very funny", "the film and the scene"]
        ):
            prompts = [f"{sentence} . it is {name} and" for name in names]
            wanted = loop(make_model("llama-lm", layers=2, seed=3), prompts)
            np.testing.assert_allclose(found[row].numpy(), wanted[:, 1] - wanted[:, 0], rtol=0, atol=1e-6)
    for name, value in (("contextual", None), ("prior", 0.5)):
        theirs, source = made(tagged(calibration=name, prior="labels" if value else "uniform", examples=2))
        batch = theirs.collator([theirs.train[at] for at in range(4)])
        shares = source.model(batch["input_ids"], batch["attention_mask"])["logits"].sigmoid()
        if value:  # each of the labels belongs to half of the rows
            np.testing.assert_allclose(shares.mean(0).numpy(), [value, value], atol=1e-5)


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_a_text_is_shortened_and_nothing_else(prompted: WriteRecipe, caplog: pytest.LogCaptureFixture) -> None:
    """Cut at its end, a prompt would lose the question; cut at its beginning, the instructions."""
    theirs, _ = made(prompted(max_length=14))
    assert "shortened at the end" in caplog.text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(load_recipe(prompted()).teacher.source)
    prefix = theirs.head.settings["prompted"]["prefixes"][0]
    texts = [tokenizer.decode(prefix + row) for row in theirs.train["input_ids"]]
    assert all(text.startswith("the film is") and text.endswith("and the story is") for text in texts)
    assert max(len(prefix + row) for row in theirs.train["input_ids"]) <= 14 - 2


BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {"prompt": "{{ sentenze }} is"},
        "prompt",
        "'sentenze', which is not a column of the train split. Did you mean 'sentence'?",
    ),
    ({"prompt": "{{ sentence is"}, "prompt", "not a Jinja template"),
    ({"prompt": "{{ sentence }} {{ label }} is"}, "prompt", "names the label"),
    ({"prompt": "the film is"}, "prompt", "names no column"),
    ({"prompt": "{{ sentence.nothing }} is"}, "prompt", "cannot be rendered"),
    (
        {"prompt": "{{ sentence }} is ", "verbalizers": {"positive": "great", "negative": "dull"}},
        "verbalizers.positive",
        "joins its end",
    ),
    ({"verbalizers": {"positive": " great"}}, "", "two labels or more"),
    ({"verbalizers": {"positive": " great", "negative": []}}, "", "wanted a text"),
    ({"verbalizers": {"positive": " great", "negative": " great"}}, "verbalizers.negative", "same tokens"),
    ({"verbalizers": {"positive": " great", "negative": " great film"}}, "verbalizers.negative", "begin with one"),
    ({"verbalizers": {"yes": " great", "no": " bad"}}, "verbalizers", "no verbalizer for negative, positive"),
    ({"examples": 200}, "examples", "200 examples are 100 of"),
    ({"prompt": "very " * 80 + "{{ sentence }} is"}, "prompt", "without the text of the row"),
    ({"kind": "bert-mlm"}, "model", "does not continue a text"),
    ({"prior": "labels"}, "", "calibration: prior only"),
]


@pytest.mark.parametrize(("keys", "key", "words"), BAD)
def test_what_does_not_fit_is_one_line(prompted: WriteRecipe, keys: dict[str, Any], key: str, words: str) -> None:
    """Each would otherwise be a traceback, or a teacher of noise."""
    with pytest.raises(UserError) as caught:
        shown(prompted(**keys))
    (line,) = caught.value.mistakes
    assert words in line
    assert f"teacher{'.' if key else ''}{key}" in line


def test_verbalizers_that_begin_alike_are_told(prompted: WriteRecipe, caplog: pytest.LogCaptureFixture) -> None:
    """They are scored by what follows, so half of what the user wrote decides nothing."""
    shown(prompted(verbalizers={"positive": " very great", "negative": " very bad"}))
    assert "begin with the same token" in caplog.text
    assert "' very great'" in caplog.text


def test_several_labels_want_yes_and_no(tagged: WriteRecipe) -> None:
    """Otherwise one prompt would stand for all labels, or the words of one label for another."""
    for keys, words in (
        ({"verbalizers": {"funny": " funny", "dull": " dull"}}, "verbalizers: {yes:"),
        ({"prompt": "{{ text }} is"}, "does not name the label"),
    ):
        with pytest.raises(UserError, match=words):
            shown(tagged(**keys))


def test_a_missing_column_of_large_data_is_told_too(prompted: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large data is looked at, not prepared, by --check: the mistake would show after the download of the model."""
    monkeypatch.setattr("hf_distill.run.dry_run.is_here", lambda _: False)
    with pytest.raises(UserError, match="Did you mean 'sentence'"):
        shown(prompted(prompt="{{ sentenze }} is", sections={"evaluation": {"metrics": ["accuracy"]}}))


def test_transfer_rows_are_asked_about_and_never_solved_examples(tagged: WriteRecipe, tmp_path: Path) -> None:
    """A row without a label would stand in the prompt with some label as its answer."""
    path, more = tmp_path / "tagged.jsonl", tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"sentence": f"a plot {end}"}) + "\n" for end in ("of", "and", "the", "with")))
    data = {
        "path": {"train": str(path), "validation": str(path)},
        "columns": {"text": "sentence", "label": "tags"},
        "transfer": {"path": str(more)},
    }
    theirs, source = made(tagged(examples=4, calibration="prior", prior="labels", sections={"data": data}))
    batch = theirs.collator([theirs.train[at] for at in range(8)])
    assert source.model(batch["input_ids"], batch["attention_mask"])["logits"].shape == (8, 2)
    with pytest.raises(UserError, match="5 examples are 3 of 'yes'"):
        made(tagged(examples=5, sections={"data": data}))


def test_labels_that_are_distributions_count_as_their_likeliest_class(prompted: WriteRecipe, tmp_path: Path) -> None:
    """The labels of several annotators ended the run with a traceback, with and without solved examples."""
    path = tmp_path / "soft.csv"
    path.write_text("sentence,negative,positive\nbad,0.9,0.1\ngreat,0.2,0.8\ndull,0.6,0.4\n")
    data = {
        "path": {"train": str(path), "validation": str(path)},
        "columns": {"text": "sentence", "label": ["negative", "positive"]},
    }
    task = {"name": "text-classification", "problem": "single_label"}
    sections = {"data": data, "task": task}
    theirs, _ = made(
        prompted(examples=2, calibration="prior", prior="labels", prompt="{{ text }} is", sections=sections)
    )
    order = list(theirs.head.settings["id2label"].values())
    assert [theirs.head.settings["prompted"]["prior"][order.index(name)] for name in ("negative", "positive")] == [
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    ]


def test_a_label_without_a_verbalizer_is_told_with_both_ways_out(prompted: WriteRecipe) -> None:
    """Told of the data alone, the line that is missing in the recipe is not looked for there."""
    words = "has the label 'negative'; wanted one of .positive, neutral.*Or add it to the teacher's verbalizers"
    with pytest.raises(UserError, match=words):
        shown(prompted(verbalizers={"positive": " great", "neutral": " dull"}))
