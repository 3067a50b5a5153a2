"""Text generation: which tokens are learned, and that nothing else takes part."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import batch, refused
from runs import run

from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_config, open_tokenizer
from hf_distill.models.outline import has_head
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.tasks import Prepared, Setup, TextGeneration

TEXTS = ["a great film", "the plot is moving and the cast is charming .", "dull", "it was a very bad story !"]
CHATML = (
    "{% for message in messages %}{% if message.role == 'assistant' %}a {% generation %}{{ message.content }} !"
    "{% endgeneration %}{% else %}the {{ message.content }} . {% endif %}{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "is it dull"}, {"role": "assistant", "content": "it is great"}],
    [
        {"role": "user", "content": "film"},
        {"role": "assistant", "content": "moving"},
        {"role": "user", "content": "plot"},
        {"role": "assistant", "content": "stale"},
    ],
]


def tokenizer_of(model: Path) -> Any:
    tokenizer = open_tokenizer(str(model))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def prepare(
    model: Path,
    columns: dict[str, Sequence[Any]],
    *,
    max_length: int | None = 64,
    tokenizer: Any = None,
    metrics: Sequence[str] = (),
    **task: Any,
) -> Prepared:
    from datasets import Dataset

    data = Dataset.from_dict(dict(columns))
    return TextGeneration(**task).prepare(
        {"train": data, "eval": data},
        Setup(tokenizer=tokenizer or tokenizer_of(model), max_length=max_length, metrics=list(metrics)),
    )


mistake = partial(refused, prepare)


def learned(tokenizer: Any, row: dict[str, Any]) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100])).strip()


# ---- Plain text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_the_end_of_a_text_is_learned_though_it_is_also_the_padding(kind: str, make_model: Any) -> None:
    """Labels derived from pad ids lose every end of text: the student would never stop."""
    path = make_model(kind)
    tokenizer = tokenizer_of(path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    inputs = batch(prepare(path, {"text": TEXTS}))
    assert inputs["input_ids"].shape == inputs["labels"].shape == inputs["attention_mask"].shape
    for row, text in enumerate(TEXTS):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        width = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][row].tolist() == ids + [tokenizer.pad_token_id] * (width - len(ids))
        assert inputs["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (width - len(ids))
        assert inputs["labels"][row].tolist() == [-100, *ids[1:]] + [-100] * (width - len(ids))


def test_packed_blocks_hold_every_token_once(make_model: Any) -> None:
    """Packing that drops remainders or repeats tokens trains on other text than the recipe names."""
    path = make_model("gpt2-lm")
    tokenizer = tokenizer_of(path)
    stream = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    packed = prepare(path, {"text": TEXTS}, max_length=8, packing=True)
    blocks = packed.train["input_ids"][:]
    assert [token for block in blocks for token in block] == stream
    assert {len(block) for block in blocks[:-1]} == {8}
    assert packed.train["length"][:] == [len(block) for block in blocks]
    # Not learned: the first token of every text and of every block.
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS]
    starts = {sum(lengths[:index]) for index in range(len(TEXTS))} | set(range(0, len(stream), 8))
    labels = [label for row in packed.train["labels"] for label in row]
    assert labels == [-100 if place in starts else token for place, token in enumerate(stream)]
    unpacked = prepare(path, {"text": TEXTS})
    counts = [prepared.layout.counts(batch(prepared))["label"].sum().item() for prepared in (packed, unpacked)]
    assert counts == [len(stream) - len(starts), len(stream) - len(TEXTS)]


def test_long_texts_are_cut_and_empty_ones_left_out_with_a_count(make_model: Any, caplog: Any) -> None:
    """A cut text that gets an end of text anyway teaches to stop in the middle; a silent loss of rows is worse."""
    path = make_model("gpt2-lm")
    with caplog.at_level(logging.INFO, "hf_distill"):
        prepared = prepare(path, {"text": ["film " * 30, " ", "", "a great film"]}, max_length=6)
    assert [len(ids) for ids in prepared.train["input_ids"]] == [6, 4]
    assert tokenizer_of(path).eos_token_id not in prepared.train["input_ids"][0]
    assert prepared.eval["length"][:] == [4, 6]
    assert "2 of 4 examples of the train split are dropped: nothing in them to learn within 6 tokens" in caplog.text
    assert "1 of 4 examples of the train split are truncated; task: {packing: true} would use" in caplog.text


# ---- Completions -----------------------------------------------------------------------------------------------------


def test_only_the_completion_is_learned(make_model: Any) -> None:
    """A prompt that takes part in the loss teaches the student to ask rather than to answer."""
    path = make_model("llama-lm")
    tokenizer = tokenizer_of(path)
    columns = {"prompt": ["is it", "the plot is"], "completion": [" a great film", " dull"]}
    prepared = prepare(path, columns)
    assert [learned(tokenizer, row) for row in prepared.train] == ["a great film</s>", "dull</s>"]
    whole = [
        [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ("is it a great film", "the plot is dull")
    ]
    assert prepared.train["input_ids"][:] == whole
    rows = prepared.layout.select(torch.randn(2, 6, 160), None, batch(prepared))
    assert rows.labels.tolist() == [*whole[0][2:], *whole[1][3:]]


def test_a_token_across_the_border_is_learned_and_said(make_model: Any, caplog: Any) -> None:
    """Tokens of prompt + completion need not begin with those of the prompt: labels would be off by one."""
    path = make_model("gpt2-lm")
    tokenizer = tokenizer_of(path)
    assert tokenizer("a ")["input_ids"] != tokenizer("a film")["input_ids"][:2]
    prepared = prepare(path, {"prompt": ["a ", "a"], "completion": ["film", " film"]})
    assert [learned(tokenizer, row) for row in prepared.train] == ["film<|endoftext|>"] * 2
    assert "in 1 of 2 examples of the train split the end of the prompt" in caplog.text


def test_a_prompt_that_leaves_no_room_is_left_out(make_model: Any, caplog: Any) -> None:
    """Cut to its prompt an example has no label: it would cost a teacher's pass and count for nothing."""
    path = make_model("gpt2-lm")
    columns = {"prompt": ["film " * 9, "a"], "completion": ["dull", " film"]}
    assert len(prepare(path, columns, max_length=8).train) == 1
    assert "1 of 2 examples of the train split are dropped" in caplog.text
    key, line = mistake(path, {"prompt": ["film " * 9], "completion": ["dull"]}, max_length=8)
    assert (key, line) == ("columns.completion", "no example of the train split has anything to learn within 8 tokens.")


# ---- Conversations ---------------------------------------------------------------------------------------------------


def test_only_the_assistant_is_learned(make_model: Any) -> None:
    """Whatever the template adds or the user says must not be learned; both turns of the assistant must."""
    path = make_model("gpt2-lm")
    tokenizer = tokenizer_of(path)
    tokenizer.chat_template = CHATML
    prepared = prepare(path, {"messages": CHATS}, tokenizer=tokenizer)
    texts = [tokenizer.decode(row["input_ids"]).strip() for row in prepared.train]
    assert texts == ["the is it dull . a it is great !", "the film . a moving !the plot . a stale !"]
    assert [learned(tokenizer, row) for row in prepared.train] == ["it is great !", "moving ! stale !"]


def test_a_template_without_marks(make_model: Any) -> None:
    """Of 28 templates that models come with one has marks; Transformers returns a mask of zeros for the others."""
    path = make_model("gpt2-lm")
    tokenizer = tokenizer_of(path)
    key, line = mistake(path, {"messages": CHATS}, tokenizer=tokenizer)
    assert key == "columns.messages"
    assert line.startswith("the tokenizer has no chat template")
    tokenizer.chat_template = CHATML
    marked = prepare(path, {"messages": CHATS}, tokenizer=tokenizer)
    tokenizer.chat_template = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    plain = prepare(path, {"messages": CHATS}, tokenizer=tokenizer)
    for column in ("input_ids", "labels"):
        assert plain.train[column][:] == marked.train[column][:]
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}{% generation %}{% endgeneration %}"
    assert mistake(path, {"messages": CHATS}, tokenizer=tokenizer) == (
        "columns.messages",
        "the chat template refuses a conversation: roles must alternate (row 0 of the train split)",
    )


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "task", "key", "says"),
    [
        ({"tools": ["a"]}, {}, "columns", "nothing to learn from. Wanted, in both splits, a column 'text'"),
        ({"text": ["a"], "messages": [CHATS[0]]}, {}, "columns", "examples of several kinds: text, messages"),
        ({"text": ["a"]}, {"examples": "completion"}, "columns", "need a column for 'prompt' and 'completion'"),
        ({"text": ["a", None]}, {}, "columns.text", "1 of 2 entries of the train split are missing (None), the first"),
        ({"text": [1]}, {}, "columns.text", "holds whole numbers in the train split, first in row 0"),
        ({"messages": [CHATS[0]]}, {"packing": True}, "columns", "only plain text can be packed"),
        ({"text": ["a"], "example_weight": [1.0]}, {"packing": True}, "columns.weight", "a packed block joins several"),
        ({"text": ["a"]}, {"packing": True, "max_length": None}, "max_length", "packed blocks need a length"),
        ({"text": ["a"]}, {"max_length": 1}, "max_length", "wanted at least 2"),
        ({"text": ["a"]}, {"metrics": ["accuracy"]}, "metrics", "is not a metric of tokens"),
        ({"text": ["a"]}, {"metrics": ["evaluate/rouge"]}, "metrics", "plain texts have none"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    columns: dict[str, Any], task: dict[str, Any], key: str, says: str, make_model: Any
) -> None:
    """Each of these would train on something else than was meant, or fail in the middle of a run."""
    found, line = mistake(make_model("gpt2-lm"), columns, **task)
    assert found == key
    assert says in line


def test_several_kinds_of_columns_and_one_named(make_model: Any) -> None:
    """Data sets of conversations often carry their text too: the recipe decides, not the order of the columns."""
    path = make_model("gpt2-lm")
    columns = {"text": ["a great film"], "prompt": ["a"], "completion": [" film"]}
    assert prepare(path, columns, examples="completion").train["length"][:] == [3]
    assert prepare(path, columns, examples="text").train["length"][:] == [4]


def test_heads_are_known_by_table_not_by_name(make_model: Any) -> None:
    """GPT2LMHeadModel does not end in ForCausalLM: a good teacher would be refused as headless."""
    gpt2, llama, bert = (open_config(str(make_model(kind))) for kind in ("gpt2-lm", "llama-lm", "bert-mlm"))
    assert has_head(gpt2, "AutoModelForCausalLM")
    assert has_head(llama, "AutoModelForCausalLM")
    assert not has_head(bert, "AutoModelForCausalLM")
    assert has_head(bert, "AutoModelForMaskedLM")
    assert not has_head(open_config(str(make_model("gpt2"))), "AutoModelForCausalLM")


# ---- Loss ------------------------------------------------------------------------------------------------------------


def trainer_of(prepared: Prepared, student: Any, teacher: Any, directory: Path, **arguments: Any) -> Any:
    from invariants.cases import NotingTrainer
    from invariants.cases import arguments as quiet

    return NotingTrainer(
        student,
        quiet(directory, **arguments),
        teacher=teacher,
        objectives=[KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)],
        layout=prepared.layout,
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        data_collator=prepared.collator,
    )


def load(path: Path, prepared: Prepared) -> Any:
    return load_model(str(path), prepared.head)[0].double()


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_a_step_does_not_depend_on_its_split(kind: str, make_model: Any, tmp_path: Path) -> None:
    """A mean over a micro-batch's tokens weighs a token by the company it keeps."""
    from invariants.cases import largest_difference, split, train

    path = make_model(kind, layers=2, seed=1)
    prompts = [" ".join(["the", "film", "is"][: 1 + index % 3]) for index in range(16)]
    completions = [" " + " ".join(["very", "great", "and", "moving"] * (1 + index % 4)) for index in range(16)]
    prepared = prepare(path, {"prompt": prompts, "completion": completions})
    dropout = {f"{name}_pdrop": 0.0 for name in ("resid", "embd", "attn")} if kind == "gpt2-lm" else {}
    student = make_model(kind, layers=1, seed=2, **dropout)
    records = [
        train(
            trainer_of(
                prepared, load(student, prepared), load(path, prepared), tmp_path, num_train_epochs=1, **split(s)
            )
        )
        for s in (8, 4, 1)
    ]
    for other in records[1:]:
        assert other.losses == pytest.approx(records[0].losses, rel=1e-12)
        assert largest_difference(records[0], other) < 1e-9


def test_padding_changes_nothing(make_model: Any, tmp_path: Path) -> None:
    """A long neighbour in the batch must not change what an example contributes."""
    path, student = make_model("gpt2-lm", seed=1), make_model("gpt2-lm", layers=2)
    prepared = prepare(path, {"text": TEXTS})
    trainer = trainer_of(prepared, load(student, prepared), load(path, prepared), tmp_path)
    trainer.model.eval()
    together = batch(prepared)
    counts = trainer._count([together])
    alone = [prepared.collator([{key: row[key] for key in ("input_ids", "labels")}]) for row in prepared.train]
    with torch.no_grad():
        whole = trainer.compute_loss(trainer.model, together, num_items_in_batch=counts)
        parts = [trainer.compute_loss(trainer.model, one, num_items_in_batch=counts) for one in alone]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-6)


def test_one_vocabulary_padded_to_two_sizes(make_model: Any, tmp_path: Path) -> None:
    """Padding rows of an embedding are no tokens: left in the softmax they take mass, and shapes do not even fit."""
    path = make_model("llama-lm", seed=1)
    size = open_config(str(path)).vocab_size
    student = make_model("llama-lm", layers=2, vocab_size=size + 8)
    prepared = prepare(path, {"text": TEXTS})
    losses = []
    for shift in (0.0, 50.0):
        model = load(student, prepared)
        model.lm_head.weight.data[size:] += shift
        trainer = trainer_of(prepared, model.eval(), load(path, prepared), tmp_path)
        with torch.no_grad():
            losses.append(float(trainer.compute_loss(model, batch(prepared))))
    assert losses[0] == losses[1]
    assert math.isfinite(losses[0])


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def write(directory: Path, columns: dict[str, Sequence[Any]]) -> str:
    path = directory / "data.jsonl"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def distilled(directory: Path, teacher: Path, columns: dict[str, Sequence[Any]], **sections: Any) -> Any:
    where = write(directory, columns)
    recipe: dict[str, Any] = {
        "task": "text-generation",
        "data": {"path": {"train": where, "validation": where}, "max_length": 32},
        "teacher": {"name": "pretrained", "model": str(teacher)},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [{"name": "kl", "weight": 0.5}, {"name": "labels", "weight": 0.5}],
        "report": {"baseline": True, "latency": False},
        "training": {
            "output_dir": str(directory / "out"),
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "disable_tqdm": True,
        },
        **sections,
    }
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return run(path)


def token_losses(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Return the loss of every token of every text, one forward pass a token, in float64."""
    losses = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for place in range(1, len(ids)):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:place]])).logits[0, -1, : len(tokenizer)]
            losses.append(-float(logits.log_softmax(-1)[ids[place]]))
    return losses


def spread(out: Path, tokenizer: Any) -> float:
    """Return the standard deviation of the gain over the resampled eval splits that the report draws."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64) for one in (out, out / "_runs/baseline")]
    texts = sorted(TEXTS * 4, key=lambda text: len(tokenizer(text)["input_ids"]))  # as the eval split is
    known = {text: [token_losses(model, tokenizer, [text]) for model in models] for text in TEXTS}
    draw, gains = np.random.default_rng(0), []
    for _ in range(100):
        chosen = [known[texts[row]] for row in draw.integers(0, len(texts), len(texts))]
        ours, theirs = ([loss for one in chosen for loss in one[model]] for model in (0, 1))
        gains.append(math.exp(sum(ours) / len(ours)) - math.exp(sum(theirs) / len(theirs)))
    return float(np.std(gains, ddof=1))


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_a_run_and_its_perplexities(kind: str, make_model: Any, tmp_path: Path) -> None:
    """The headline would be wrong with padding counted, means of means, or a better student called worse."""
    from transformers import AutoModelForCausalLM

    path = make_model(kind, seed=1, tie_word_embeddings=kind == "gpt2-lm")
    report = distilled(tmp_path, path, {"text": TEXTS * 4}, evaluation={"metrics": ["perplexity"]})
    tokenizer = tokenizer_of(path)
    out = tmp_path / "out"
    for name, where in (("teacher", path), ("student", out)):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64)
        losses = token_losses(model, tokenizer, TEXTS)
        assert getattr(report, name).metrics == {
            "perplexity": pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
        }
    assert (report.metric, report.greater_is_better) == ("perplexity", False)
    student, baseline = report.headline("student"), report.headline("baseline")
    assert report.gain == student - baseline
    assert report.retention == pytest.approx(report.headline("teacher") / student)
    assert report.gain_error == pytest.approx(spread(tmp_path / "out", tokenizer), rel=1e-3)
    assert report.eval_rows == 4 * len(TEXTS)
    verdict = replace(report, chance=None).verdict()  # as of a teacher that knows something
    assert f"perplexity is {student:.4g} against the teacher's" in verdict[0].replace(",", "")
    assert ("seems to have helped" in verdict[1]) == (student < baseline)
    assert 0 <= report.agreement < 1
    config = json.loads((out / "config.json").read_text())
    assert config["use_cache"] is True
    assert config.get("num_hidden_layers", config.get("n_layer")) == 1
    student = AutoModelForCausalLM.from_pretrained(out)
    assert student.generate(torch.tensor([[5, 6]]), max_new_tokens=3, pad_token_id=0).shape[1] >= 3


def test_the_report_judges_in_the_precision_of_the_training(make_model: Any, tmp_path: Path) -> None:
    """Models that a run had trained in bf16 were judged in float32, the teacher beside them in bf16, and all of them in
    bf16 when the same command found them finished: a score that was neither that of the epochs nor that of tomorrow."""
    path = make_model("llama-lm", seed=1)
    training = {"output_dir": str(tmp_path / "out"), "bf16": True, "num_train_epochs": 2, "learning_rate": 1e-2}
    reports = [distilled(tmp_path, path, {"text": TEXTS * 4}, training=training) for _ in range(2)]
    for name in ("student", "baseline"):
        losses = [log["eval_objective/labels"] for log in reports[0].history[name] if "eval_objective/labels" in log]
        for report in reports:
            assert report.headline(name) == pytest.approx(math.exp(losses[-1]), rel=1e-6)


def test_a_teacher_that_knows_nothing(make_model: Any, tmp_path: Path) -> None:
    """A random teacher's perplexity is that of a guess among all tokens, or worse: nothing can be distilled from it."""
    path = make_model("llama-lm", seed=1)
    report = distilled(tmp_path, path, {"text": TEXTS * 4}, report={"latency": False})
    tokens = len(tokenizer_of(path))
    assert report.chance is not None
    assert (report.chance.value, report.chance.error) == (tokens, 0.0)
    assert report.headline("teacher") > tokens
    assert report.verdict()[0].startswith(
        "The teacher is no better than a trivial guess: its perplexity is "
        f"{report.headline('teacher'):.4g} against {tokens} for all tokens equally likely."
    )


def test_a_run_on_completions_from_a_padded_student(make_model: Any, tmp_path: Path) -> None:
    """Two heads of different widths with one tokenizer are an ordinary pair, all the way to the report."""
    path = make_model("llama-lm", seed=1)
    size = open_config(str(path)).vocab_size
    student = make_model("llama-lm", layers=1, vocab_size=size + 8)
    columns = {"prompt": ["is it", "the plot is"] * 4, "completion": [" a great film", " dull"] * 4}
    report = distilled(
        tmp_path, path, columns, student={"name": "pretrained", "model": str(student)}, report={"latency": False}
    )
    assert report.headline("student") > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == size + 8


def test_a_student_with_another_vocabulary_is_refused(make_model: Any, tmp_path: Path) -> None:
    """Token 17 of one model is another word in the other: the student would learn nonsense without an error."""
    student = make_model("llama-lm", vocab=["film", "plot"])
    with pytest.raises(UserError, match="tokens to learn are one token of the teacher"):
        distilled(
            tmp_path, make_model("llama-lm"), {"text": TEXTS}, student={"name": "pretrained", "model": str(student)}
        )


def test_a_perplexity_far_above_the_teachers_is_a_number_of_times() -> None:
    """Read as a share kept, or as a percentage with seven digits, the headline says nothing."""
    from reports import model

    from hf_distill.report.report import Report

    for student, says in ((12.0, "(20.0 % more)"), (9.0, "(10.0 % less)"), (420.0, "(42.0 times as much)")):
        results = {"teacher": model(2, None, perplexity=10.0), "student": model(1, None, perplexity=student)}
        baseline = model(1, None, perplexity=student + 1)
        report = Report(
            task="text-generation", metric="perplexity", greater_is_better=False, baseline=baseline, **results
        )
        assert report.verdict()[0].startswith(
            f"The student's perplexity is {student:g} against the teacher's 10 {says}"
        )
        assert report.verdict()[1].startswith("The teacher seems to have helped: -1 perplexity compared")
