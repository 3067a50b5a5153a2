"""Runs whose student writes by a server or together with the teacher: what they check, train and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_server import FakeServer
from fake_vllm import FakeVLLM
from runs import run, same, weights
from writers import opened

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

TEXTS = ["the plot is", "a great", "is it", "the cast was very", "dull and", "this film with the"]
Write = Callable[..., Path]


@pytest.fixture
def write(make_model: Any, tmp_path: Path) -> Write:
    """Return a function that writes a recipe whose student learns on-policy."""
    teacher, student = str(make_model("llama-lm", seed=1)), str(make_model("llama-lm", layers=1, seed=2))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f"{json.dumps({'prompt': one, 'completion': ' good'})}\n" for one in TEXTS))

    def written(completions: dict[str, Any], out: str = "out", **more: Any) -> Path:
        path = tmp_path / f"{out}.yaml"
        sections = {
            "task": "text-generation",
            "data": {"path": {"train": str(data), "eval": str(data)}, "max_length": 24},
            "teacher": {"name": "pretrained", "model": teacher},
            "student": {"name": "pretrained", "model": student},
            "completions": {"by": "student", "max_new_tokens": 5, **completions},
            "objectives": [{"name": "reverse_kl"}],
            "training": {
                "output_dir": str(tmp_path / out),
                "max_steps": 3,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "report_to": "none",
            },
            "report": {"latency": False},
        }
        path.write_text(yaml.safe_dump({**sections, **more}))
        return path

    return written


@pytest.mark.parametrize("name", ["pretrained", "lora"])
def test_a_server_writes_for_a_run(write: Write, make_model: Any, tmp_path: Path, name: str) -> None:
    """The run trains on the texts of the student that the server was given: greedy, those that it writes itself."""
    student = str(make_model("llama-lm", layers=1, seed=2))
    entry = {"name": name, "model": student, **({"r": 4} if name == "lora" else {})}
    vllm = FakeVLLM(opened(Path(make_model("llama-lm", layers=1, seed=5)))[0])
    with FakeServer(vllm.answer).running() as server:
        greedy = {"temperature": 0.0, "reuse": 2}
        ours = write({**greedy, "backend": {"name": "vllm", "url": server.url}}, "served", student=entry)
        assert "never run on a GPU" in check(load_recipe(ours, []))
        assert not server.requests
        report = run(ours)
    assert vllm.events == ["reload", "reset", *["complete"] * 4] * 2  # of three steps, two write
    gaps = [entry["rollout_gap"] for entry in report.history["student"] if "rollout_gap" in entry]
    assert gaps
    assert max(gaps) < 1e-4
    run(write(greedy, "alone", student=entry))
    assert same(weights(tmp_path / "served"), weights(tmp_path / "alone"))


def test_both_write_in_a_run(write: Write, tmp_path: Path) -> None:
    """`by: mixture` in a recipe, and the same weights when it is run again."""
    mixture = {"by": "mixture", "teacher_share": 0.5}
    assert "student and teacher together write one" in check(load_recipe(write(mixture), []))
    for out in ("once", "again"):
        run(write(mixture, out))
    assert same(weights(tmp_path / "once"), weights(tmp_path / "again"))


@pytest.mark.parametrize(("key", "value"), [("url", "localhost:8000"), ("key", "NOT_IN_THE_ENVIRONMENT")])
def test_a_server_that_cannot_be_asked_is_told_where_it_is_named(write: Write, key: str, value: str) -> None:
    """Before the teacher is loaded, not when the first text is to be written."""
    path = write({"backend": {"name": "vllm", "url": "http://localhost:8000", key: value}})
    line = 1 + next(at for at, text in enumerate(path.read_text().splitlines()) if text.strip() == f"{key}: {value}")
    for tried in (check, lambda recipe: run(path)):
        with pytest.raises(UserError) as caught:
            tried(load_recipe(path, []))
        assert str(caught.value).startswith(f"{path}:{line}: completions.backend.{key}: ")


@pytest.mark.parametrize("key", ["completions.backend", "completions.by"])
def test_a_mixture_that_cannot_be(write: Write, make_model: Any, key: str) -> None:
    """Told by --check and by the run, before anything is loaded."""
    live = {"name": "pretrained", "model": str(make_model("llama-lm", seed=1))}
    if key == "completions.by":
        path = write({"by": "mixture"}, teacher={"name": "cached", "teacher": live})
    else:
        path = write({"by": "mixture", "backend": {"name": "continuous_batching"}})
    for tried in (check, lambda recipe: run(path)):
        with pytest.raises(UserError, match=r"by: mixture|new texts are written") as caught:
            tried(load_recipe(path, []))
        assert key in str(caught.value)
