"""Summaries and translations: what the decoder is given and asked, and that generated texts are judged rightly."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS
from prepared import batch, refused
from runs import run

from hf_distill.errors import UserError
from hf_distill.metrics.text import score_texts
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.tasks import Prepared, Setup, Summarization, Task, Translation
from hf_distill.tasks.evaluator import Predictions
from hf_distill.tasks.generation import TextEvaluator

KINDS = ("t5", "bart")
SOURCES = [
    "the film is a great film with a charming cast and a moving story",
    "the plot was dull",
    "a scene of this film is very funny and the cast is clever",
    "it is bad !",
]
TARGETS = ["a great film .", "dull plot", "funny", "bad and stale ."]


def prepare(
    model: Path, columns: dict[str, Sequence[Any]], task: Task | None = None, *, other: Path | None = None, **setup: Any
) -> Prepared:
    from datasets import Dataset

    data = Dataset.from_dict(dict(columns))
    configs = tuple(open_config(str(path)) for path in (model, other or model))
    given = {"tokenizer": open_tokenizer(str(model)), "configs": configs, "max_length": 64, **setup}
    return (task or Summarization()).prepare({"train": data, "eval": data}, Setup(**given))


def summaries(model: Path, task: Task | None = None, **setup: Any) -> Prepared:
    return prepare(model, {"text": SOURCES, "summary": TARGETS}, task, **setup)


def load(path: Path, prepared: Prepared) -> Any:
    return load_model(str(path), prepared.head)[0].double()


mistake = partial(refused, prepare)


# ---- What the models are given ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_given_what_came_before(kind: str, make_model: Any) -> None:
    """Unshifted, the decoder reads the token it is to say: the loss falls to nothing and the student has learned to
    copy. Shifted after another first token, it begins in use as it never began in training."""
    path = make_model(kind)
    tokenizer, config = open_tokenizer(str(path)), open_config(str(path))
    inputs = batch(summaries(path, Summarization(prefix="film : ")))
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        ids, labels = tokenizer(f"film : {source}")["input_ids"], tokenizer(text_target=target)["input_ids"]
        assert labels[-1] == config.eos_token_id
        width, length = inputs["input_ids"].shape[1], inputs["labels"].shape[1]
        assert inputs["input_ids"][row].tolist() == ids + [tokenizer.pad_token_id] * (width - len(ids))
        assert inputs["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (width - len(ids))
        assert inputs["labels"][row].tolist() == labels + [-100] * (length - len(labels))
        given = inputs["decoder_input_ids"][row].tolist()
        assert given[: len(labels)] == [config.decoder_start_token_id, *labels[:-1]]
    # As Transformers' own models shift; past the end the tokens differ, which nobody sees.
    model = load_model(str(path), summaries(path).head)[0]
    theirs = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    known = inputs["labels"] != -100
    assert torch.equal(theirs[known], inputs["decoder_input_ids"][known])


def test_an_end_that_is_also_the_padding_is_learned(make_model: Any) -> None:
    """Labels told from padding by their id lose the end of every text: the student would never stop."""
    path = make_model("bart")
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.eos_token
    inputs = batch(summaries(path, tokenizer=tokenizer))
    ends = [(labels != -100).nonzero()[-1].item() for labels in inputs["labels"]]
    assert [int(inputs["labels"][row, end]) for row, end in enumerate(ends)] == [tokenizer.eos_token_id] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, make_model: Any, tmp_path: Path) -> None:
    """A long neighbour on either side must not change what an example contributes, to any objective."""
    from invariants.cases import NotingTrainer, arguments

    path, student = make_model(kind, seed=1), make_model(kind, layers=2)
    prepared = summaries(path)
    trainer = NotingTrainer(
        load(student, prepared), arguments(tmp_path), teacher=load(path, prepared),
        objectives=[KLDivergence(temperature=2.0), Labels()], layout=prepared.layout, train_dataset=prepared.train,
        data_collator=prepared.collator,
    )  # fmt: skip
    trainer.model.eval()
    together = batch(prepared)
    counts = trainer._count([together])
    alone = [prepared.collator([dict(row)]) for row in prepared.train]
    with torch.no_grad():
        whole = float(trainer.compute_loss(trainer.model, together, num_items_in_batch=counts))
        parts = [float(trainer.compute_loss(trainer.model, one, num_items_in_batch=counts)) for one in alone]
    # T5 computes its norms in float32.
    assert whole == pytest.approx(sum(parts), rel=1e-6 if kind == "t5" else 1e-10)
    # And the labels term is the model's own cross-entropy over the target's tokens, ends included.
    tokens = sum(int((one["labels"] != -100).sum()) for one in alone)
    own = sum(float(trainer.model(**one).loss.detach()) * int((one["labels"] != -100).sum()) for one in alone) / tokens
    trainer.objectives = (Labels(),)
    assert float(trainer_loss(trainer, together)["labels"]) == pytest.approx(own, rel=1e-5)


def trainer_loss(trainer: Any, inputs: dict[str, Any]) -> dict[str, float]:
    rows = trainer.layout.select(
        trainer.model(**{k: v for k, v in inputs.items() if k != "labels"}).logits, None, inputs
    )
    losses = torch.nn.functional.cross_entropy(rows.student, rows.labels)
    return {"labels": float(losses.detach())}


def test_long_texts_are_cut_and_empty_ones_left_out_with_a_count(make_model: Any, caplog: Any) -> None:
    """Cut targets teach to stop in the middle, an empty one to say nothing: neither may happen without a word."""
    path = make_model("t5")
    columns = {"text": ["film " * 30, "a film", "a film", " "], "summary": ["great", "great " * 20, "", "dull"]}
    with caplog.at_level(logging.INFO, "hf_distill"):
        prepared = prepare(path, columns, Summarization(max_target_length=5), max_length=8)
    tokenizer = open_tokenizer(str(path))
    assert [len(ids) for ids in prepared.train["input_ids"]] == [8, 3]
    assert [len(ids) for ids in prepared.train["labels"]] == [2, 5]
    assert {ids[-1] for ids in prepared.train["labels"]} == {tokenizer.eos_token_id}
    assert prepared.eval["reference"][:] == ["great " * 20, "great"]  # judged by the whole text, not by what was cut
    assert "2 of 4 examples of the train split are dropped: their text or summary is empty" in caplog.text
    assert "in 1 of 2 examples of the train split the text is truncated (data.max_length: 8)" in caplog.text
    assert (
        "in 1 of 2 examples of the eval split the summary is truncated (task.max_target_length: 5; the" in caplog.text
    )


def test_lengths_just_right_are_not_called_cut(make_model: Any, caplog: Any) -> None:
    """A false alarm on a whole data set makes users raise a limit that costs memory."""
    columns = {"text": ["a film"], "summary": ["a plot"]}
    prepare(make_model("bart"), columns, Summarization(max_target_length=4), max_length=4)
    assert "cut" not in caplog.text


def test_defaults_follow_the_models(make_model: Any) -> None:
    """A decoder shorter than the summaries would fail in the middle of training, on the first long one."""
    path = make_model("bart", max_position_embeddings=16)
    tokenizer = open_tokenizer(str(path))
    tokenizer.model_max_length = 10**30
    prepared = prepare(path, {"text": ["a film"], "summary": ["great " * 40]}, tokenizer=tokenizer, max_length=16)
    assert [len(ids) for ids in prepared.train["labels"]] == [16]
    assert load(path, prepared)(**batch(prepared)).logits.shape[1] == 16


# ---- Translation -----------------------------------------------------------------------------------------------------


def test_the_hubs_form_of_a_translation(make_model: Any) -> None:
    """Source and target exchanged train a model that translates the other way, and nothing fails."""
    path = make_model("t5")
    pairs = [{"de": target, "en": source} for source, target in zip(SOURCES, TARGETS, strict=True)]
    there = prepare(path, {"translation": pairs}, Translation(languages=("en", "de")))
    plain = prepare(path, {"source": SOURCES, "target": TARGETS}, Translation())
    back = prepare(path, {"translation": pairs}, Translation(languages=("de", "en")))
    for column in ("input_ids", "labels"):
        assert there.train[column][:] == plain.train[column][:]
    assert back.train["input_ids"][:] == there.train["labels"][:]
    assert there.evaluator.names == ("bleu", "chrf", "perplexity")


def nllb(directory: Path, make_model: Any) -> Path:
    """Return a BART with a tokenizer of many languages."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator([" ".join(WORDS)] * 2, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    vocab, merges = bpe.model.save(str(directory))
    tokenizer = transformers.NllbTokenizer(vocab=vocab, merges=merges)
    tokenizer.save_pretrained(directory)
    size = len(open_tokenizer(str(directory)))
    config = transformers.BartConfig(**{**open_config(str(make_model("bart"))).to_dict(), "vocab_size": size})
    torch.manual_seed(0)
    transformers.BartForConditionalGeneration(config).save_pretrained(directory)
    return directory


def test_models_of_many_languages(make_model: Any, tmp_path: Path) -> None:
    """Without its mark a sentence is read as English, and what is generated is in any language."""
    path = nllb(tmp_path, make_model)
    task = Translation(source_language="deu_Latn", target_language="fra_Latn")
    columns = {"source": SOURCES, "target": TARGETS}
    prepared = prepare(path, columns, task)
    tokenizer = open_tokenizer(str(path))
    german, french = tokenizer.convert_tokens_to_ids(["deu_Latn", "fra_Latn"])
    assert {ids[0] for ids in prepared.train["input_ids"]} == {german}
    assert {labels[0] for labels in prepared.train["labels"]} == {french}
    evaluator: Any = prepared.evaluator
    generator = evaluator.generator
    assert generator.settings["forced_bos_token_id"] == french
    key, line = mistake(path, columns, Translation())
    assert (key, "source_language: ..., target_language: ..." in line) == ("task", True)
    key, line = mistake(path, columns, Translation(source_language="deu_Latn", target_language="french"))
    assert (key, line) == ("task.target_language", "NllbTokenizer does not know the language 'french'.")
    key, line = mistake(path, {"text": SOURCES, "summary": TARGETS})
    assert (key, "a tokenizer of many languages" in line) == ("task", True)
    key, line = mistake(make_model("t5"), columns, task)
    assert (key, "not a tokenizer of many languages" in line) == ("task.source_language", True)


def test_a_language_that_ends_a_text_begins_the_next(make_model: Any, tmp_path: Path) -> None:
    """mBART's decoder begins with the language, not with the token its configuration names: half a token off, it
    translates into any language."""
    path = nllb(tmp_path, make_model)
    tokenizer = open_tokenizer(str(path))
    tokenizer.legacy_behaviour = True  # of NLLB: text, end, language, as in mBART
    task = Translation(source_language="deu_Latn", target_language="fra_Latn")
    prepared = prepare(path, {"source": SOURCES, "target": TARGETS}, task, tokenizer=tokenizer)
    french = tokenizer.convert_tokens_to_ids("fra_Latn")
    assert {labels[-1] for labels in prepared.train["labels"]} == {french}
    assert set(batch(prepared)["decoder_input_ids"][:, 0].tolist()) == {french}
    evaluator: Any = prepared.evaluator
    generator = evaluator.generator
    assert generator.settings["decoder_start_token_id"] == french
    assert "forced_bos_token_id" not in generator.settings


# ---- Generated texts -------------------------------------------------------------------------------------------------


def greedy(model: Any, tokenizer: Any, source: str, start: int, limit: int) -> str:
    """Generate without a cache, one forward pass over all so far for each token."""
    ids, said = torch.tensor([tokenizer(source)["input_ids"]]), [start]
    while len(said) <= limit:
        logits = model(input_ids=ids, decoder_input_ids=torch.tensor([said]), use_cache=False).logits[0, -1]
        forced = model.generation_config.forced_eos_token_id
        last = len(said) == limit and forced is not None
        said.append(forced if last else int(logits.argmax()))
        if said[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(said, skip_special_tokens=True))


def test_generating_leaves_every_part_in_the_mode_it_was_in(make_model: Any) -> None:
    """A frozen part that is kept in eval mode would train on with dropout after an evaluation."""
    path = make_model("bart", seed=3)
    prepared = summaries(path)
    model = load(path, prepared)
    model.train()
    model.model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    evaluator: Any = prepared.evaluator
    generator = evaluator.generator
    generator.texts(model, 4)
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_each_row(kind: str, make_model: Any) -> None:
    """Texts in the order of length judged against references in the order of the file: every score would be noise."""
    path = make_model(kind, seed=3)
    prepared = summaries(path)
    model, tokenizer = load(path, prepared), open_tokenizer(str(path))
    order = sorted(range(4), key=lambda row: len(tokenizer(SOURCES[row])["input_ids"]))
    longest = max(len(tokenizer(text_target=target)["input_ids"]) for target in TARGETS)
    evaluator: Any = prepared.evaluator
    generator = evaluator.generator
    assert generator.split["reference"][:] == [TARGETS[row] for row in order]
    model.generation_config.max_length = 3  # the task's limit holds for all models
    model.train()
    wanted = [greedy(load(path, prepared), tokenizer, SOURCES[row], model.config.decoder_start_token_id, longest)
              for row in order]  # fmt: skip
    for size in (1, 3, 4):
        assert generator.texts(model, size) == wanted
    assert len(set(wanted)) > 1
    assert (model.training, model.generation_config.max_length) == (True, 3)
    # Each model's own settings for the rest: no token twice.
    model.generation_config.no_repeat_ngram_size = 1
    other = generator.texts(model, 4)
    assert other != wanted


def test_beams_and_length_are_the_recipes(make_model: Any) -> None:
    """A teacher with four beams against a greedy student: the difference would be the beams'."""
    path = make_model("bart", seed=3)
    task = Summarization(num_beams=2, max_new_tokens=7)
    prepared = summaries(path, task)
    model = load(path, prepared)
    seen = []
    generate = model.generate
    model.generate = lambda **settings: seen.append(settings) or generate(**settings)
    model.generation_config.update(num_beams=4, do_sample=True)
    evaluator = prepared.evaluator
    figures = evaluator.evaluate(Predictions(losses=np.array([[0.0, 1.0]] * 4), texts=evaluator.generate(model, 4)))
    assert {key: seen[0][key] for key in ("num_beams", "max_new_tokens", "do_sample")} == {
        "num_beams": 2, "max_new_tokens": 7, "do_sample": False,
    }  # fmt: skip
    assert list(figures) == ["perplexity", "rouge2", "rouge1", "rougeL", "rougeLsum"]
    assert figures["perplexity"] == 1.0
    cheap = summaries(path, metrics=["perplexity"]).evaluator
    assert (cheap.generate(model, 4), cheap.names, len(seen)) == ((), ("perplexity",), 1)
    assert summaries(path, metrics=["chrf"]).evaluator.evaluate(Predictions(losses=np.ones((4, 2)))) == {}


def f1(true: Counter[Any], guess: Counter[Any]) -> float:
    same = sum((true & guess).values())
    return 2 * same / (sum(true.values()) + sum(guess.values())) if same else 0.0


def longest_common(one: list[str], other: list[str]) -> int:
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_by_hand() -> None:
    """Recall in place of F1, a mean over words in place of texts: numbers that look right and cannot be compared."""
    references = ["the cat sat on the mat .", "dogs bark"]
    predictions = ["a cat sat down on a mat", "the dog barked"]
    found = score_texts(["rouge1", "rouge2", "rougeL", "perplexity"], predictions, references)
    stems = [
        (["the", "cat", "sat", "on", "the", "mat"], ["a", "cat", "sat", "down", "on", "a", "mat"]),
        (["dog", "bark"], ["the", "dog", "bark"]),  # without their endings
    ]
    unigrams = [f1(Counter(true), Counter(guess)) for true, guess in stems]
    bigrams = [f1(Counter(pairwise(true)), Counter(pairwise(guess))) for true, guess in stems]
    common = [2 * longest_common(true, guess) / (len(true) + len(guess)) for true, guess in stems]
    assert unigrams == [2 * 4 / 13, 2 * 2 / 5]
    assert found == {
        "rouge1": pytest.approx(np.mean(unigrams)),
        "rouge2": pytest.approx(np.mean(bigrams)),
        "rougeL": pytest.approx(np.mean(common)),
    }


def test_rouge_of_sentences() -> None:
    """Sentences in another order cost `rougeL` and not `rougeLsum`; unsplit, the two are one number under two names."""
    found = score_texts(["rougeL", "rougeLsum"], ["Nobody came. It rained."], ["It rained.\nNobody came."])
    assert found == {"rougeL": pytest.approx(0.5), "rougeLsum": pytest.approx(1.0)}


def test_bleu_by_hand() -> None:
    """The mean of each sentence's BLEU is another number than the BLEU of all sentences, which is the published one."""
    references = ["the cat sat on the mat today", "a dog barks at the very old man"]
    predictions = ["the cat sat on the mat", "a dog barks at the old man"]
    right = dict.fromkeys(range(1, 5), 0)
    total = dict(right)
    for true, guess in zip(references, predictions, strict=True):
        for order in right:
            grams = [Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
                     for words in (true.split(), guess.split())]  # fmt: skip
            right[order] += sum((grams[0] & grams[1]).values())
            total[order] += sum(grams[1].values())
    precision = math.exp(sum(math.log(right[order] / total[order]) for order in right) / 4)
    brevity = math.exp(1 - 15 / 13)
    found = score_texts(["bleu", "chrf"], predictions, references)
    assert found["bleu"] == pytest.approx(100 * precision * brevity)
    assert score_texts(["chrf"], references, references)["chrf"] == pytest.approx(100)
    # Shares of character n-grams, of which the longest word has two orders: recall counts twice as much.
    precision, recall = np.mean([2 / 2, 1 / 1]), np.mean([2 / 3, 1 / 2])
    chrf = 5 * precision * recall / (4 * precision + recall)
    assert score_texts(["chrf"], ["ab"], ["abc"])["chrf"] == pytest.approx(100 * chrf)


def test_a_metric_of_the_evaluate_library(make_model: Any, tmp_path: Path) -> None:
    """Texts handed over in the wrong order, or as ids: a score that is a number and means nothing."""
    script = tmp_path / "longer.py"
    script.write_text(
        "import datasets\nimport evaluate\n\n\nclass Longer(evaluate.Metric):\n    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': text, 'references': text}))\n\n"
        "    def _compute(self, predictions, references):\n"
        "        pairs = list(zip(predictions, references))\n"
        "        return {'longer': sum(len(p) > len(r) for p, r in pairs) / len(pairs)}\n",
        encoding="utf-8",
    )
    name = f"evaluate/{script}"
    assert score_texts([name], ["long text", "a"], ["text", "long"]) == {name: 0.5}
    assert isinstance(summaries(make_model("t5"), metrics=[name]).evaluator, TextEvaluator)


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "task", "setup", "key", "says"),
    [
        ({"text": ["a"], "summary": [None]}, {}, {}, "columns.summary", "1 of 1 entries of the train split are"),
        ({"text": [1], "summary": ["a"]}, {}, {}, "columns.text", "holds whole numbers in the train split, first"),
        ({"text": ["a", "b"], "summary": ["", " "]}, {}, {}, "columns.summary", "has an empty text or summary"),
        ({"text": ["a"], "summary": ["a"]}, {"max_target_length": 65}, {}, "task.max_target_length", "at most 64"),
        ({"text": ["a"], "summary": ["a"]}, {"max_target_length": 2}, {}, "task.max_target_length", "adds 2 of its"),
        ({"text": ["a"], "summary": ["a"]}, {"max_new_tokens": 65}, {}, "task.max_new_tokens", "at most 64"),
        ({"text": ["a"], "summary": ["a"]}, {}, {"metrics": ["accuracy"]}, "metrics", "not a metric of generated"),
        ({"text": ["a"], "summary": ["a"]}, {}, {"label_names": ["a"]}, "labels", "names are for classes"),
        ({"text": ["a"], "summary": ["猫"]}, {}, {}, "metrics", "1 of 1 texts of the eval split have none"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused(
    columns: dict[str, Any], task: dict[str, Any], setup: dict[str, Any], key: str, says: str, make_model: Any
) -> None:
    """Each of these would train on something else than was meant, or fail after hours, when the texts are judged."""
    found, line = mistake(make_model("bart"), columns, Summarization(**task), **setup)
    assert found == key
    assert says in line


@pytest.mark.parametrize(
    ("columns", "languages", "key", "says"),
    [
        ({"source": ["a"]}, None, "columns", "Wanted, in both splits, a column 'source' and a column 'target'"),
        ({"translation": [{"en": "a", "de": "b"}]}, None, "columns", "languages: [en, de]"),
        ({"translation": [{"en": "a", "de": "b"}]}, ("en", "fr"), "task.languages", "'fr' is not a key of the column"),
    ],
)
def test_translations_without_two_languages(
    columns: dict[str, Any], languages: tuple[str, str] | None, key: str, says: str, make_model: Any
) -> None:
    """Which of the languages is the target is the user's to say."""
    found, line = mistake(make_model("t5"), columns, Translation(languages=languages))
    assert found == key
    assert says in line


def test_decoders_that_begin_differently(make_model: Any) -> None:
    """Fed with the student's first token, the teacher answers a question that it was never asked."""
    path, other = make_model("bart"), make_model("bart", decoder_start_token_id=0)
    key, line = mistake(path, {"text": SOURCES, "summary": TARGETS}, other=other)
    assert key == "student"
    assert line.startswith("its decoder and the teacher's begin with different tokens (0 and 2)")


def test_a_missing_package_is_named_before_training(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImportError at the end of a training of hours, when the texts are judged."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package rouge-score, which .* pip install 'hf-distill\[text\]'"):
        summaries(make_model("t5"))


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def write(directory: Path, task: Any, model: Path, **sections: Any) -> Path:
    data = directory / "data.jsonl"
    names = ("source", "target") if task == "translation" else ("text", "summary")
    rows = [dict(zip(names, pair, strict=True)) for pair in zip(SOURCES * 4, TARGETS * 4, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "task": task,
        "data": {"path": {"train": str(data), "validation": str(data)}, "max_length": 32},
        "teacher": {"name": "pretrained", "model": str(model)},
        "student": {"name": "copy_layers", "layers": 4, "decoder_layers": 1},
        "objectives": [{"name": "kl", "weight": 0.5}, {"name": "labels", "weight": 0.5}],
        "report": {"baseline": True, "latency": False},
        "training": {
            "output_dir": str(directory / "out"), "num_train_epochs": 2, "learning_rate": 5e-3,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "disable_tqdm": True,
            "report_to": "none", "eval_strategy": "epoch",
        },
        **sections,
    }  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def distilled(directory: Path, task: str, model: Path, **sections: Any) -> Any:
    return run(write(directory, task, model, **sections))


@pytest.mark.usefixtures("brief_latency")
@pytest.mark.parametrize(("kind", "task"), [("t5", "summarization"), ("bart", "translation")])
def test_a_run_from_texts_to_report(kind: str, task: str, make_model: Any, tmp_path: Path) -> None:
    """The reported figures must be those of the saved student, judged from outside; the eval loss is the distillation
    loss and not the model's own cross-entropy."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    teacher = make_model(kind, seed=1)
    report = distilled(tmp_path, task, teacher, report={"baseline": kind == "t5", "latency": True})
    metric = "rouge2" if task == "summarization" else "bleu"
    assert (report.metric, report.greater_is_better) == (metric, True)
    out = tmp_path / "out"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    names = ["rouge2", "rouge1", "rougeL", "rougeLsum"] if task == "summarization" else ["bleu", "chrf"]
    limit = max(len(tokenizer(text_target=target)["input_ids"]) for target in TARGETS)
    texts, losses = [], []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        texts.append(greedy(model, tokenizer, source, model.config.decoder_start_token_id, limit))
        labels = tokenizer(text_target=target)["input_ids"]
        for place, label in enumerate(labels):
            given = torch.tensor([[model.config.decoder_start_token_id, *labels[:place]]])
            ids = torch.tensor([tokenizer(source)["input_ids"]])
            with torch.no_grad():
                logits = model(input_ids=ids, decoder_input_ids=given).logits[0, -1, : len(tokenizer)]
            losses.append(-float(logits.double().log_softmax(-1)[label]))
    outside = score_texts(names, texts, TARGETS)
    perplexity = math.exp(sum(losses) / len(losses))
    assert report.student.metrics == pytest.approx({**outside, "perplexity": perplexity}, rel=1e-4)
    depth = (
        model.config.num_hidden_layers,
        getattr(model.config, "num_decoder_layers", None) or model.config.decoder_layers,
    )
    assert depth == (4, 1)
    evaluated = [log for log in report.history["student"] if "eval_loss" in log][-1]
    terms = 0.5 * evaluated["eval_objective/kl"] + 0.5 * evaluated["eval_objective/labels"]
    assert evaluated["eval_loss"] == pytest.approx(terms, rel=1e-5)
    assert math.exp(evaluated["eval_objective/labels"]) == pytest.approx(perplexity, rel=1e-3)
    assert 0 <= report.agreement < 1
    assert report.student.latency.batch.batch_size == 3
    assert (out / "report.html").is_file()
    page = (out / "README.md").read_text(encoding="utf-8")
    assert f"pipeline_tag: {task}" in page
    assert (report.gain_error is None) == (kind == "bart")  # which has no baseline


def test_generated_texts_choose_the_best_model(make_model: Any, tmp_path: Path) -> None:
    """Texts generated under the autocast of the training are others than the report's: not the best model is kept."""
    model = make_model("t5", seed=1)
    training = json.loads(write(tmp_path, "summarization", model).read_text())["training"]
    # The lowest, so that it is not the last.
    best = {"bf16": True, "load_best_model_at_end": True, "greater_is_better": False, "num_train_epochs": 4}
    given = {
        "evaluation": {"metrics": ["chrf", "rouge1", "perplexity"]},
        "objectives": [{"name": "labels"}],
        "report": {"baseline": False, "latency": False},
    }

    def run(metric: str) -> Any:
        chosen = {**training, **best, "metric_for_best_model": metric}
        return distilled(tmp_path, "summarization", model, training=chosen, **given)

    with pytest.raises(UserError, match="It is lowest when its logarithm is lowest: use objective/labels"):
        run("perplexity")
    report = run("chrf")
    evaluated = [log for log in report.history["student"] if "eval_loss" in log]
    scores = [log["eval_chrf"] for log in evaluated]
    assert scores[-1] > min(scores)
    assert report.student.metrics["chrf"] == min(scores)
    assert report.best["student"].value == max(scores)
    assert all({"eval_rouge1", "eval_chrf"} <= set(log) and "eval_perplexity" not in log for log in evaluated)


def test_a_student_from_a_configuration_and_a_teacher_that_is_trained_first(make_model: Any, tmp_path: Path) -> None:
    """Neither brings a head of the task by itself: the first token of their decoders must be found all the same."""
    report = distilled(
        tmp_path, "summarization", make_model("bart", seed=1),
        teacher={"name": "finetuned", "model": str(make_model("bart", seed=1)), "training": {"num_train_epochs": 1}},
        student={"name": "from_config", "overrides": {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}},
        report={"baseline": False, "latency": False},
    )  # fmt: skip
    assert report.headline("student") is not None
    assert list(report.student.metrics) == ["perplexity", "rouge2", "rouge1", "rougeL", "rougeLsum"]


@pytest.mark.parametrize("kind", ["llama-lm", "bert-mlm"])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_models_without_encoder_or_decoder_are_refused(side: str, kind: str, make_model: Any, tmp_path: Path) -> None:
    """A decoder alone would fail in a traceback when its weights are loaded, or be taken for half of a model."""
    entry = {"name": "pretrained", "model": str(make_model(kind))}
    with pytest.raises(UserError, match=rf"{side}\.model: there is no \w+ model with a head for summarization"):
        distilled(tmp_path, "summarization", make_model("t5"), **{side: entry})


def test_a_missing_column_is_named(make_model: Any, tmp_path: Path) -> None:
    """A KeyError from inside a worker names nothing that the user wrote."""
    path = write(tmp_path, "summarization", make_model("t5"))
    with pytest.raises(UserError, match="has no column 'highlights' for the role 'summary'"):
        run(path, "data.columns={summary: highlights}")
    path = write(tmp_path, {"name": "summarization", "max_target_length": 99}, make_model("bart"))
    with pytest.raises(
        UserError, match=r"recipe.yaml:\d+: task.max_target_length: 99 tokens are more than the decoders"
    ):
        run(path)
