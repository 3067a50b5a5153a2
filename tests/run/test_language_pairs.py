"""Pairs of language models of one vocabulary: padded to other sizes, grouped queries, tied and untied heads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import WriteRecipe, run

from hf_distill.models.loading import open_config, open_tokenizer

TEXTS = ["a great film", "the plot is moving and the cast is charming .", "dull", "it was a very bad story !"]


@pytest.fixture
def language_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> WriteRecipe:
    """Write a recipe that trains on a few texts; `teacher` and `student` are to be given."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4), encoding="utf-8")
    return lambda **sections: write_recipe(
        task="text-generation",
        data={"path": {"train": str(data), "validation": str(data)}, "max_length": 32},
        **sections,
    )


def alone(path: Path, tokens: int) -> torch.Tensor:
    """Return a saved model's log-probabilities for every token to be predicted, in float64, a text at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    rows = []
    for ids in sequences(path):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        rows.append(logits[:-1, :tokens].log_softmax(-1))
    return torch.cat(rows)


def sequences(path: Path) -> list[list[int]]:
    tokenizer = open_tokenizer(str(path))
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS * 4]


def is_tied(path: Path) -> bool:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


# As Qwen2.5's 151,936 and 152,064 rows for one vocabulary, and as Llama 3's smaller ones: fewer layers, narrower, other
# numbers of key-value heads, embeddings that are the head.
NARROW = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("how", "tied", "more", "most"),
    [
        ("pretrained", True, 0, 8),
        ("pretrained", False, 8, 0),
        ("from_config", True, 8, 0),
        ("from_config", False, 0, 8),
        ("copy_layers", False, 0, 8),
    ],
)
def test_a_student_with_an_embedding_of_another_size(
    how: str, tied: bool, more: int, most: int, make_model: Any, language_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Rows that are no token take mass in the softmax; a head tied in training and not on disk is another one."""
    size = open_config(str(make_model("llama-lm"))).vocab_size
    teacher = make_model("llama-lm", seed=1, vocab_size=size + more)
    shape = {} if how == "copy_layers" else NARROW
    settings = {"vocab_size": size + most, "tie_word_embeddings": tied}
    student: dict[str, Any] = {"name": how}
    if how == "from_config":
        student |= {"overrides": {"num_hidden_layers": 2, **settings, **shape}}
    else:
        student |= {"model": str(make_model("llama-lm", layers=2, seed=2, **settings, **shape))}
    if how == "copy_layers":
        student |= {"layers": 1}
    report = run(language_recipe(teacher={"name": "pretrained", "model": str(teacher)}, student=student))
    out = tmp_path / "out"
    config = open_config(str(out))
    assert (config.vocab_size, config.tie_word_embeddings) == (size + most, tied)
    assert config.num_key_value_heads == shape.get("num_key_value_heads", 2)
    assert is_tied(out) == tied
    theirs, ours = alone(teacher, size), alone(out, size)
    labels = torch.tensor([token for ids in sequences(teacher) for token in ids[1:]])
    for name, log_probabilities in (("teacher", theirs), ("student", ours)):
        loss = -log_probabilities.gather(-1, labels[:, None]).mean()
        found = getattr(report, name).metrics["perplexity"]
        assert found == pytest.approx(math.exp(loss), rel=1e-4)
    assert report.agreement == pytest.approx(float((theirs.argmax(-1) == ours.argmax(-1)).double().mean()))
    temperature = 2.0
    soft, softer = ((one / temperature).log_softmax(-1) for one in (ours, theirs))
    expected = temperature**2 * float((softer.exp() * (softer - soft)).sum(-1).mean())
    last = [entry for entry in report.history["student"] if "eval_objective/kl" in entry][-1]
    assert last["eval_objective/kl"] == pytest.approx(expected, rel=1e-4)
