"""Language models evaluated by the texts that they write after the prompts of the eval split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import two_processes
from prepared import refused
from runs import run

from hf_distill.metrics.exact import last_number
from hf_distill.metrics.section import Evaluation
from hf_distill.metrics.text import score_texts, units_of_texts
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.tasks import Prepared, Setup, TextGeneration
from hf_distill.tasks.evaluator import Predictions

PROMPTS = ["the plot", "a great film with a clever cast and a moving story is", "dull", "it was a very bad"]
COMPLETIONS = [" is stale", " good", " and funny !", " story !"]
CHATML = (
    "{% for message in messages %}{% if message.role == 'assistant' %}a .{% generation %} {{ message.content }} !"
    "{% endgeneration %}{% else %} the {{ message.content }} . {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a .{% endif %}"
)


def prepare(
    model: Path, columns: dict[str, Sequence[Any]], metrics: Sequence[str], *, template: str = "", **evaluation: Any
) -> Prepared:
    from datasets import Dataset

    data = Dataset.from_dict(dict(columns))
    tokenizer = open_tokenizer(str(model))
    if template:
        tokenizer.chat_template = template
    setup = Setup(
        tokenizer=tokenizer, configs=(open_config(str(model)),), max_length=40, metrics=list(metrics),
        evaluation=Evaluation(metrics=list(metrics), **evaluation),
    )  # fmt: skip
    return TextGeneration().prepare({"train": data, "eval": data}, setup)


pairs = {"prompt": PROMPTS, "completion": COMPLETIONS}
mistake = partial(refused, prepare)


def greedy(model: Any, ids: Sequence[int], ends: Sequence[int], limit: int) -> list[int]:
    """Continue one prompt without batch, padding or cache."""
    made: list[int] = []
    while len(made) < limit and not (made and made[-1] in ends):
        with torch.no_grad():
            made.append(int(model(input_ids=torch.tensor([[*ids, *made]])).logits[0, -1].argmax()))
    return made


# ---- Exact match -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("3-5", 5), ("x = -5", -5), ("$1,234.50 each", 1234.5), ("1,2", 2), ("18.", 18), ("-$3", -3), (".5", 0.5)],
)
def test_the_last_number_of_a_text(text: str, number: float) -> None:
    """A dash taken for a sign, or half of 1,234 for the number, makes right answers wrong."""
    assert last_number(text) == number


def test_exact_match_by_hand() -> None:
    """Case and articles must not cost a right answer where they are normalised, and must where they are not."""
    predictions, references = ["The U.S. Army!", " 18 ", "he has 3, so 7.00"], ["US army", "18", "#### 7"]
    names = ["exact_match", "exact_match_plain", "exact_match_number"]
    found = score_texts(names, predictions, references)
    assert found == {
        "exact_match": pytest.approx(2 / 3),
        "exact_match_plain": pytest.approx(1 / 3),
        "exact_match_number": 1.0,  # None equals None: hence references without a number are refused
    }
    units = units_of_texts("exact_match", predictions, references)
    assert units is not None
    assert units.value() == found["exact_match"]


# ---- Texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_a_text_does_not_depend_on_its_neighbours(kind: str, make_model: Any) -> None:
    """Padding on the right, or positions that count padding, change what a model writes after a short prompt."""
    path = make_model(kind, seed=3)
    prepared = prepare(path, pairs, ["exact_match", "rouge1", "perplexity"], max_new_tokens=6)
    model = load_model(str(path), prepared.head)[0]
    tokenizer = open_tokenizer(str(path))
    expected = {
        tuple(row["input_ids"]): greedy(
            model, row["input_ids"][: row["labels"].count(-100)], [tokenizer.eos_token_id], 6
        )
        for row in prepared.eval
    }
    texts = [tokenizer.decode(made, skip_special_tokens=True).strip() for made in expected.values()]
    for batch_size in (1, 3, 4):
        assert list(prepared.evaluator.generate(model, batch_size)) == texts
    found = prepared.evaluator.evaluate(Predictions(losses=np.ones((4, 2)), texts=texts))
    references = [COMPLETIONS[PROMPTS.index(prompt)].strip() for prompt in prepared.evaluator.generator.prompts]
    assert found == pytest.approx({"perplexity": np.e, **score_texts(["exact_match", "rouge1"], texts, references)})
    assert prepared.evaluator.in_training == ("exact_match", "rouge1")


def test_every_end_of_a_model_ends_a_text(make_model: Any) -> None:
    """An instruction model ends its turn with another token than a text: with one of the two, it would ramble on."""
    path = make_model("llama-lm", seed=3)
    prepared = prepare(path, pairs, ["exact_match"], max_new_tokens=8)
    model = load_model(str(path), prepared.head)[0]
    ids = prepared.evaluator.generator.written.ids[0]
    free = greedy(model, ids, [], 8)
    model.generation_config.eos_token_id = [free[2], 5000]
    text = prepared.evaluator.generate(model, 4)[0]
    ended = free[: free.index(free[2]) + 1]
    assert text == open_tokenizer(str(path)).decode(ended, skip_special_tokens=True).strip()


def test_a_conversation_is_continued_after_its_last_question(make_model: Any) -> None:
    """A prompt without the generation prompt of the template asks a model to write the next question."""
    path = make_model("llama-lm")
    chats = [
        [{"role": "user", "content": "film"}, {"role": "assistant", "content": "moving"},
         {"role": "user", "content": "plot"}, {"role": "assistant", "content": "a stale plot"}],
        [{"role": "user", "content": "cast"}, {"role": "assistant", "content": "clever"}],
    ]  # fmt: skip
    prepared = prepare(path, {"messages": chats}, ["exact_match"], template=CHATML)
    generator, tokenizer = prepared.evaluator.generator, open_tokenizer(str(path))
    tokenizer.chat_template = CHATML
    expected = [tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"] for chat in chats]
    assert sorted(map(list, generator.written.ids)) == sorted(expected)
    assert sorted(generator.references) == ["a stale plot !", "clever !"]


def test_some_rows_of_all_lengths(make_model: Any) -> None:
    """The first rows of a sorted split are the short ones; and the noise must be that of the rows that count."""
    prepared = prepare(make_model("llama-lm"), pairs, ["exact_match"], generate_rows=3)
    evaluator = prepared.evaluator
    assert list(evaluator.generator.rows) == [0, 2, 3] or list(evaluator.generator.rows) == [0, 1, 3]
    texts: list[str | None] = [None] * 4
    for row, reference in zip(evaluator.generator.rows, evaluator.generator.references, strict=True):
        texts[row] = reference if row else "wrong"
    predictions = Predictions(losses=np.ones((4, 2)), texts=texts)
    assert evaluator.evaluate(predictions) == {"exact_match": pytest.approx(2 / 3)}
    assert evaluator.count(predictions) == 3
    units = evaluator.units(predictions)
    assert (units.counted.sum(), units.value()) == (3, pytest.approx(2 / 3))


def test_a_cut_completion_is_not_a_reference(make_model: Any) -> None:
    """No text equals half of a completion, so a right answer would count as wrong."""
    long = {"prompt": [*PROMPTS, "film"], "completion": [*COMPLETIONS, " great" * 60]}
    prepared = prepare(make_model("llama-lm"), long, ["exact_match"])
    assert len(prepared.eval) == 5
    assert sorted(prepared.evaluator.generator.prompts) == sorted(PROMPTS)


def test_two_processes_share_the_texts(make_model: Any, tmp_path: Path) -> None:
    """Each its half, and in the end both all of them, in the order of the split."""
    path = make_model("llama-lm", seed=3)
    prepared = prepare(path, pairs, ["exact_match"], max_new_tokens=5)
    model = load_model(str(path), prepared.head)[0]
    alone = prepared.evaluator.generate(model, 4)

    def work() -> Any:
        from accelerate import PartialState

        PartialState(cpu=True, backend="gloo")
        return prepared.evaluator.generate(model, 4)

    assert two_processes(work, tmp_path / "two") == [alone, alone]


# ---- Functions -------------------------------------------------------------------------------------------------------


def test_a_function_of_texts(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts in another order than references and prompts give a score that is a number and means nothing."""
    (tmp_path / "own_metrics.py").write_text(
        "calls = []\n"
        "def longer(predictions, references, prompts):\n"
        "    calls.append(len(predictions))\n"
        "    return [len(p) > len(r) + len(q) for p, r, q in zip(predictions, references, prompts)]\n"
        "def together(predictions, references):\n    return len(set(predictions))\n"
        "def broken(predictions, references):\n    return [1.0] * (len(predictions) + 1)\n"
        "def other(predictions):\n    return 1.0\n"
        "def word_loss(predictions, references):\n    return 0.0\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_metrics  # type: ignore[import-not-found]

    name = "own_metrics:longer"
    given = (["long text", "a"], ["text", "long"], ["a", "b"])
    for _ in range(2):
        assert score_texts([name], *given) == {name: 0.5}
    units = units_of_texts(name, *given)
    assert units is not None
    assert units.value() == 0.5
    assert own_metrics.calls == [2]
    assert units_of_texts("own_metrics:together", *given) is None
    prepared = prepare(make_model("llama-lm"), pairs, ["own_metrics:word_loss", name])
    assert (prepared.evaluator.headline, prepared.evaluator.greater_is_better) == ("own_metrics:word_loss", False)
    for wrong, says in (("broken", "for 2 texts"), ("other", "must take"), ("none", "not a function")):
        key, line = mistake(make_model("llama-lm"), pairs, [f"own_metrics:{wrong}"])
        assert key == "metrics"
        assert says in line


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "metrics", "evaluation", "key", "says"),
    [
        ({"text": PROMPTS}, ["rouge1"], {}, "metrics", "plain texts have none"),
        ({"text": PROMPTS}, ["sys:exit"], {}, "metrics", "plain texts have none"),
        (pairs, ["accuracy"], {}, "metrics", "not a metric of tokens"),
        (pairs, ["exact_match_number"], {}, "metrics", "4 of 4 references"),
        (pairs, ["exact_match"], {"max_new_tokens": 500}, "max_new_tokens", "500 tokens more"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(
    columns: dict[str, Any], metrics: list[str], evaluation: dict[str, Any], key: str, says: str, make_model: Any
) -> None:
    """Each would fail after the training, or score a text against nothing."""
    found, line = mistake(make_model("llama-lm"), columns, metrics, **evaluation)
    assert found == key
    assert says in line


# ---- A whole run -----------------------------------------------------------------------------------------------------


def test_a_run_chooses_the_best_student_by_its_texts(write_recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """The figures must be those of what the saved student writes, and the checkpoint the one that wrote best."""
    from transformers import AutoModelForCausalLM

    teacher = make_model("llama-lm", seed=3)
    data = tmp_path / "data.jsonl"
    rows = [dict(zip(pairs, pair, strict=True)) for pair in zip(*pairs.values(), strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    (tmp_path / "words_of_mine.py").write_text(
        "def words(predictions, references, prompts):\n"
        "    return [len(set(p.split())) / 10 for p, q in zip(predictions, prompts, strict=True)]\n",
        encoding="utf-8",
    )
    path = write_recipe(
        task="text-generation",
        data={"path": {"train": str(data), "validation": str(data)}, "max_length": 32},
        teacher={"name": "pretrained", "model": str(teacher)},
        student={"name": "copy_layers", "layers": 1},
        evaluation={"metrics": ["words_of_mine:words", "exact_match", "perplexity"], "max_new_tokens": 5},
        report={"baseline": True, "latency": False},
        training={
            "num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 2e-2,
            "load_best_model_at_end": True, "metric_for_best_model": "words_of_mine:words", "greater_is_better": True,
        },
    )  # fmt: skip
    report = run(path)
    assert (report.metric, report.eval_rows) == ("words_of_mine:words", 16)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), open_tokenizer(str(teacher))
    texts = [
        tokenizer.decode(greedy(model, tokenizer(prompt)["input_ids"], [tokenizer.eos_token_id], 5), True)
        for prompt in PROMPTS
    ]
    assert report.student.metrics["words_of_mine:words"] == pytest.approx(
        np.mean([len(set(text.split())) / 10 for text in texts])
    )
    seen = [entry["eval_words_of_mine:words"] for entry in report.history["student"] if "eval_runtime" in entry]
    assert len(seen) == 3
    assert report.student.metrics["words_of_mine:words"] == pytest.approx(max(seen))
    assert report.gain_error is not None
