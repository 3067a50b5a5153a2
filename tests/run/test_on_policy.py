"""Runs in which the student writes: stages before it, resumes, what is reported, one recipe on two processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import start, status
from runs import run, same, weights

from hf_distill.errors import UserError
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.writer import dump_recipe
from hf_distill.run.dry_run import check

TEXTS = ["the plot is", "a great", "is it", "the cast was very", "dull and", "this film with the", "a scene", "fresh"]
STUDENT = {"by": "student", "max_new_tokens": 5}


def recipe(tmp_path: Path, make_model: Any, **sections: Any) -> Path:
    """Return a recipe whose prompts have completions, too."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(f"{json.dumps({'prompt': one, 'completion': ' very dull !'})}\n" for one in TEXTS))
    path = tmp_path / "recipe.yaml"
    content = {
        "task": "text-generation",
        "data": {"path": {"train": str(data), "eval": str(data)}, "max_length": 24},
        "teacher": {"name": "pretrained", "model": str(make_model("llama-lm", seed=1))},
        "student": {"name": "pretrained", "model": str(make_model("llama-lm", layers=1, seed=2))},
        "completions": STUDENT,
        "objectives": [{"name": "reverse_kl"}],
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
            "save_steps": 2,
            "logging_steps": 1,
        },
        "report": {"latency": False},
        **sections,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


STAGES: list[dict[str, Any]] = [
    {"objectives": [{"name": "kl"}, {"name": "labels"}], "completions": {"by": "data"}},
    {"objectives": [{"name": "reverse_kl"}], "training": {"max_steps": 2}},
]


def test_stored_targets_are_of_other_texts(tmp_path: Path, make_model: Any) -> None:
    """Otherwise a run would end after the cache was filled, or find targets of the data for what the student wrote."""
    inner = {"name": "pretrained", "model": str(make_model("llama-lm", seed=1))}
    path = recipe(tmp_path, make_model, teacher={"name": "cached", "teacher": inner, "top": 3})
    with pytest.raises(UserError, match="generate") as caught:
        check(load_recipe(path))
    assert "completions.by" in str(caught.value)


def test_a_student_learns_from_the_data_before_it_writes(tmp_path: Path, make_model: Any) -> None:
    """A student far from its teacher writes texts that teach it nothing: it has to be brought near first."""
    path = recipe(tmp_path, make_model, objectives=None, stages=STAGES)
    told = load_recipe(path)
    assert [told.completions_in(stage).by for stage in told.plan] == ["data", "student"]
    (tmp_path / "again.yaml").write_text(dump_recipe(told))
    assert load_recipe(tmp_path / "again.yaml") == told
    report = run(path)
    first, second = (report.history[name] for name in ("student stage 1", "student stage 2"))
    assert not any("completion_length" in one for one in first)
    assert all("completion_length" in one for one in second if "loss" in one)


@pytest.mark.parametrize(
    ("shared", "own", "words"),
    [
        (None, {"by": "student"}, "prepared for all stages"),
        (STUDENT, {"by": "teacher"}, "prepared for all stages"),
        (STUDENT, {"backend": "transformers"}, "one backend"),
        (STUDENT, "data", "wanted a mapping"),
        (STUDENT, {"shar": 0.5}, "share"),
    ],
)
def test_stages_that_cannot_write_so_are_mistakes(
    tmp_path: Path, make_model: Any, shared: Any, own: Any, words: str
) -> None:
    """Otherwise a stage would silently learn from other texts than its author thinks."""
    stages = [STAGES[0], {**STAGES[1], "completions": own}]
    path = recipe(tmp_path, make_model, objectives=None, stages=stages, completions=shared)
    with pytest.raises(UserError, match=words):
        load_recipe(path)


def test_a_stage_on_the_data_needs_completions(tmp_path: Path, make_model: Any) -> None:
    """It would learn nothing; and --check says what each stage learns from, and how much of it is written."""
    writing = {**STUDENT, "share": 0.5, "reuse": 2}
    path = recipe(tmp_path, make_model, objectives=None, stages=STAGES, completions=writing)
    said = check(load_recipe(path))
    assert "completions: by data" in said
    assert "50 % have one that is written" in said
    assert "for 2 optimiser steps" in said
    path = recipe(tmp_path, make_model, objectives=None, stages=STAGES)
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': one})}\n" for one in TEXTS))
    with pytest.raises(UserError, match="8 of 8 rows of the train split have no completion") as caught:
        check(load_recipe(path))
    assert "stages[0].completions.by" in str(caught.value)


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, make_model: Any, reuse: int) -> None:
    """Otherwise what the student writes would depend on when it was stopped."""
    training = {"max_steps": 12, "save_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    training |= {"gradient_accumulation_steps": 2, "report_to": "none"}
    completions = {**STUDENT, "reuse": reuse, "share": 0.5}

    def of(name: str) -> Path:
        own = {**training, "output_dir": str(tmp_path / name)}
        return recipe(tmp_path, make_model, completions=completions, training=own)

    run(of("whole"))
    path, out = of("out"), tmp_path / "out"
    child, deadline = start(lambda: run(path)), time.monotonic() + 120
    while not (out / "checkpoint-3" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert (status(child) == -signal.SIGKILL) != (out / "report.json").exists()
    run(path)
    assert same(weights(tmp_path / "whole"), weights(out))
