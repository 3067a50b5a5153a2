"""Whole runs of a recipe whose student is sharded by FSDP2 or DeepSpeed: they write what one process writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engines
import pytest
from runs import KL_AND_LABELS, WriteRecipe, run, weights

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {"name": "from_config", "overrides": {"num_hidden_layers": 2, **STILL}}
EXACT = {
    "optim": "sgd",  # Adam makes steps of full size out of the rounding of a gradient that is zero
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "use_cpu": True,
}
AT_ONCE = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
HIDDEN = [{"name": "hidden", "projection": "always"}]


def sections(name: str, make_model: Any, sentiment_csv: Any) -> dict[str, Any]:
    if name == "stages, baseline, seeds":
        last = {"objectives": KL_AND_LABELS, "training": {**AT_ONCE, "load_best_model_at_end": True}}
        return {
            "student": BERT,
            "objectives": None,
            "stages": [{"objectives": HIDDEN}, last],
            "report": {"latency": True, "baseline": True, "seeds": 2},
        }
    if name == "adapters of both":
        teacher = {"name": "finetuned", "model": str(make_model("bert-bare", **STILL)), "lora": {"r": 2}}
        return {"student": {"name": "lora", "student": BERT, "r": 2}, "teacher": teacher}
    live = {
        "name": "pretrained",
        "model": str(make_model("llama-lm", layers=3, seed=1, tie_word_embeddings=True)),
    }
    return {
        "task": "text-generation",
        "data": {
            "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
            "columns": {"text": "sentence"},
        },
        "teacher": {"name": "cached", "teacher": live} if "cached" in name else live,
        "student": {"name": "copy_layers", "layers": 2},
    }


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found


def figures(found: dict[str, Any]) -> dict[str, float]:
    models = {name: found[name]["metrics"] for name in ("teacher", "student", "baseline") if found.get(name)}
    every = {f"{name} {metric}": value for name, metrics in models.items() for metric, value in metrics.items()}
    return {**every, "agreement": found["agreement"]}


@pytest.mark.parametrize("engine", ["fsdp2", *engines.ZERO])
@pytest.mark.parametrize(
    "name",
    [
        "language model",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("language model, cached", "stages, baseline, seeds", "adapters of both")
        ),
    ],
)
def test_sharded_run(
    name: str, engine: str, write_recipe: WriteRecipe, make_model: Any, sentiment_csv: Any, tmp_path: Path
) -> None:
    """A student of which a process has a part only would be evaluated, timed, merged or saved in parts; accelerate does
    not even evaluate it."""
    path = write_recipe(**sections(name, make_model, sentiment_csv), training=EXACT)
    run(path, f"training.output_dir={tmp_path / 'one'}")
    half, results = "training.per_device_train_batch_size=4", tmp_path / "processes"
    if name == "language model":
        assert engines.command(engine, path, half, directory=results) == [0, 0], (results / "0.log").read_text()
    else:
        engines.run(engine, lambda: run(path, half) and None, results, logged=True)
    one, two = report(tmp_path / "one"), report(tmp_path / "out")
    assert two["settings"]["processes"] == 2
    assert figures(two) == pytest.approx(figures(one), rel=1e-5)
    for seed, other in zip(two["seeds"], one["seeds"], strict=True):
        assert seed["student"] == pytest.approx(other["student"])
        assert seed["baseline"] == pytest.approx(other["baseline"])
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "out")  # tied weights once, as one process writes them
    assert ours.keys() == theirs.keys()
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-5 for name in ours)
