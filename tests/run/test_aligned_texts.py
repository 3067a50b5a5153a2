"""A language model taught by one with another tokenizer: by recipe, live and stored."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import WriteRecipe, run, weights

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.loading import open_config, open_tokenizer
from hf_distill.run.dry_run import check
from hf_distill.tasks import Setup, TextGeneration

TEXTS = ["a great film", "the plot is moving and the cast is charming .", "dull", "it was a very bad story !"]
TERMS = [{"name": "kl", "temperature": 2.0, "weight": 0.5}, {"name": "reverse_kl", "weight": 0.5}]
TEMPLATE = (
    "{% for m in messages %}{{ '<BEGIN>' + m['role'] + ' ' + m['content'] + '<END>' }}{% endfor %}"
    "{% if add_generation_prompt %}<BEGIN>assistant {% endif %}"
)


def data(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": {"train": str(path), "validation": str(path)}, "max_length": 48}


@pytest.fixture
def recipe(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> WriteRecipe:
    """Write a recipe in which GPT-2 teaches Llama."""
    made: dict[str, Any] = {
        "task": "text-generation",
        "data": data(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS * 4]),
        "teacher": {"name": "pretrained", "model": str(make_model("gpt2-lm", seed=1))},
        "student": {"name": "pretrained", "model": str(make_model("llama-lm", seed=2))},
        "objectives": TERMS,
    }
    return lambda **sections: write_recipe(**{**made, **sections})


def prepared(make_model: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    from datasets import Dataset

    paths = [str(make_model("gpt2-lm", seed=1)), str(make_model("llama-lm", seed=2))]
    teacher, student = (open_tokenizer(path) for path in paths)
    for tokenizer in (teacher, student):
        tokenizer.pad_token = tokenizer.eos_token
    configs = tuple(open_config(path) for path in paths)
    setup = Setup(tokenizer=student, teacher_tokenizer=teacher, configs=configs, max_length=48)
    split = Dataset.from_list(rows)
    return TextGeneration(**settings).prepare({"train": split, "eval": split}, setup), student, teacher


def test_live_and_stored_teachers_teach_the_same(recipe: WriteRecipe, tmp_path: Path) -> None:
    """Stored under the teacher's numbers, or for labels that are not compared, each row teaches other tokens."""
    live = run(recipe(training={"output_dir": str(tmp_path / "live")}))
    plain = json.loads(recipe().read_text())
    cached = {
        "name": "cached",
        "teacher": plain["teacher"],
        "top": 5000,
        "precision": "float32",
        "path": str(tmp_path / "c"),
    }
    terms = [{**one, "temperature": 2.0} for one in TERMS]
    stored = run(recipe(teacher=cached, objectives=terms, training={"output_dir": str(tmp_path / "stored")}))
    again = run(recipe(objectives=terms, training={"output_dir": str(tmp_path / "again")}))
    one, other = (weights(tmp_path / name) for name in ("again", "stored"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert stored.agreement == pytest.approx(again.agreement, rel=1e-4)
    assert live.student.metrics.keys() == live.teacher.metrics.keys()


def test_the_teacher_is_evaluated_on_its_own_tokens(recipe: WriteRecipe, tmp_path: Path, make_model: Any) -> None:
    """By the student's numbers its perplexity is that of noise, and the report says that nothing was there to learn."""
    report = run(recipe())
    assert "perplexity" in report.teacher.metrics, report.teacher.metrics
    from transformers import AutoModelForCausalLM

    path = make_model("gpt2-lm", seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), open_tokenizer(str(path))
    sums, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        sums -= float(logits.gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert report.teacher.metrics["perplexity"] == pytest.approx(math.exp(sums / count), rel=1e-4)


def test_check_says_how_much_is_compared(recipe: WriteRecipe) -> None:
    """Without a word, a student learns from half of a text."""
    text = check(load_recipe(recipe()))
    assert "% of the tokens to learn are one token of the teacher too" in text
    assert "% of the student's tokens" in text


def test_what_does_not_fit_is_refused(recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Logits of other tokens side by side, or layers at other positions, train without an error."""
    other = make_model("gpt2-lm", vocab=["film"])  # spells all other words
    wanted = [
        ({"objectives": [{"name": "logits_mse"}]}, "logits_mse"),
        ({"objectives": [{"name": "hidden", "layers": [[1, 1]]}]}, "token by token"),
        ({"task": {"name": "text-generation", "packing": True}}, "task.packing"),
        ({"teacher": {"name": "pretrained", "model": str(other)}}, "min_coverage"),
        ({"completions": {"by": "teacher", "prompt_tokens": 2, "max_new_tokens": 4}}, "completions.by"),
        ({"evaluation": {"own_samples": 2}}, "own_samples"),
        ({"tokenizer": str(make_model("llama-lm", seed=2))}, "tokenizer"),
    ]
    for sections, words in wanted:
        with pytest.raises(UserError, match=words):
            check(load_recipe(recipe(**sections)))


def test_the_student_writes_and_a_teacher_of_another_family_scores(recipe: WriteRecipe, tmp_path: Path) -> None:
    """If no token of it were compared, the run would end well, and the student be what it was."""
    completions = {"by": "student", "prompt_tokens": 2, "max_new_tokens": 4, "share": 0.5}
    training = {"output_dir": str(tmp_path / "own"), "logging_steps": 1, "max_steps": 2}
    report = run(recipe(completions=completions, training=training))
    first = next(entry for entry in report.history["student"] if "compared_tokens" in entry)
    assert first["compared_tokens"] > 0
    assert 0 < first["shared_mass"] <= 1
    assert first["not_aligned"] < 1
    assert math.isfinite(first["loss"])
    assert first["loss"] > 0


# ---- Conversations ---------------------------------------------------------------------------------------------------


def test_each_model_reads_its_own_chat_template(make_model: Any, tmp_path: Path) -> None:
    """With the student's template the teacher reads markers that it has never seen, and predicts them."""
    paths = []
    for kind, marks in (("gpt2-lm", ("q ", "<|endoftext|>")), ("llama-lm", ("zz ", "</s>"))):
        path = tmp_path / kind
        shutil.copytree(make_model(kind, seed=1), path)
        tokenizer = open_tokenizer(str(path))
        tokenizer.chat_template = TEMPLATE.replace("<BEGIN>", marks[0]).replace("<END>", marks[1])
        tokenizer.save_pretrained(path)
        paths.append(path)
    made: dict[str, Any] = {}
    conversation = {
        "messages": [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "a great film"}]
    }
    found, student, teacher = prepared(lambda kind, **_: tmp_path / kind, [conversation, conversation], **made)
    row = found.train[0]
    compared = [place for place, at in enumerate(row["aligned_at"]) if at >= 0]
    ours = student.convert_ids_to_tokens([row["input_ids"][place] for place in compared])
    theirs = teacher.convert_ids_to_tokens(
        [row["teacher_input_ids"][row["aligned_at"][place] + 1] for place in compared]
    )
    assert [one.strip("▁") for one in ours] == ["a", "great", "film", "</s>"]
    assert [one.strip("Ġ") for one in theirs] == ["a", "great", "film", "<|endoftext|>"]  # the ends, by their role
    assert all(row["labels"][place] != -100 for place in compared)
    batch = found.collator([{name: value for name, value in row.items() if not name.endswith("length")}] * 2)
    assert batch["aligned_at"].shape == batch["labels"].shape
    assert "teacher_labels" not in batch or batch["teacher_labels"].shape == batch["teacher_input_ids"].shape


def test_spans_prefixes_and_sorted_probabilities_by_recipe(recipe: WriteRecipe, tmp_path: Path) -> None:
    """What no run reaches may be refused, or compare nothing, without anyone noticing."""
    terms = [{"name": name} for name in ("kl", "span", "uld", "mined", "labels")]
    found = {}
    for alignment in ("strict", "prefix"):
        task = {"name": "text-generation", "alignment": alignment, "min_coverage": 0.1}
        training = {"output_dir": str(tmp_path / alignment), "eval_strategy": "epoch"}
        report = run(recipe(task=task, objectives=terms, training=training))
        last = [entry for entry in report.history["student"] if "eval_objective/kl" in entry][-1]
        found[alignment] = {term["name"]: last[f"eval_objective/{term['name']}"] for term in terms}
        assert all(math.isfinite(value) and value > 0 for value in found[alignment].values()), found
