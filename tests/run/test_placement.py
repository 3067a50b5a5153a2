"""Teachers whose weights lie elsewhere, and students that train in other ways, in one process and two: the same run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from runs import WriteRecipe, run, same, weights
from safetensors.torch import load_file
from versions import CHECKPOINTING

from hf_distill.errors import UserError

STUDENT = {"name": "copy_layers", "layers": 2}


def losses(directory: Path) -> dict[str, list[float]]:
    history = json.loads((directory / "report.json").read_text())["history"]
    return {name: [one["loss"] for one in log if "loss" in one] for name, log in history.items()}


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that were read from disk: a teacher that fits lies in memory all the same."""
    from accelerate.utils import OffloadedWeightsLoader

    read: list[str] = []
    real = OffloadedWeightsLoader.__getitem__

    def reading(self: Any, key: str) -> Any:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", reading)
    return read


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_a_teacher_on_disk(
    kind: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, offloaded: list[str]
) -> None:
    """A teacher that does not fit must teach what one teaches that fits, find its cache, and be evaluated."""
    model = str(make_model("bert", layers=4, seed=1))
    student = {**STUDENT, "model": model}
    plain = {"name": "pretrained", "model": model}
    found = []
    for own in ({}, {"offload": "disk"}):
        teacher = {**plain, **own}
        teacher = teacher if kind == "live" else {"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")}
        out = tmp_path / ("disk" if own else "plain")
        recipe = write_recipe(teacher=teacher, student=student, training={"output_dir": str(out)})
        found.append((run(recipe), weights(out), losses(out)))
    (whole, expected, trained), (report, got, steps) = found
    assert same(expected, got)
    assert steps == trained
    assert report.teacher.metrics == whole.teacher.metrics
    assert any(".layer." in name for name in offloaded)
    assert not any("embeddings" in name for name in offloaded)


# What is special about a training -> sections of the recipe.
SPECIAL: dict[str, dict[str, Any]] = {
    "nothing": {},
    "teacher on disk": {"teacher": {"offload": "disk"}},
    "int8": {"teacher": {"quantization": "int8"}},
    "nf4": {"teacher": {"quantization": "nf4"}},
    "adapters": {"student": {"name": "lora", "r": 4}},
    "activation checkpointing": {"training": CHECKPOINTING},
    "both": {"teacher": {"quantization": "int8"}, "student": {"name": "lora", "r": 4}},
}


def trained(recipe: Path, root: Path, model: str) -> dict[str, Any]:
    """Return losses, metrics and exported weights of each special training; in every process."""
    found = {}
    for name, sections in SPECIAL.items():
        out = root / name.replace(" ", "-")
        own = {f"teacher.{key}": value for key, value in sections.get("teacher", {}).items()}
        own |= {f"training.{key}": value for key, value in sections.get("training", {}).items()}
        adapters = "student" in sections
        if adapters:
            own["student"] = json.dumps({**sections["student"], "student": {**STUDENT, "model": model}})
        size = 8 // int(os.environ.get("WORLD_SIZE", "1"))
        own |= {"training.output_dir": out, "training.per_device_train_batch_size": size}
        run(recipe, *(f"{key}={value}" for key, value in own.items()))
        report = json.loads((out / "report.json").read_text())
        found[name] = losses(out), report["student"]["metrics"], exported(out)
    return found


def exported(directory: Path) -> dict[str, torch.Tensor]:
    (file,) = (one for one in directory.glob("*.safetensors"))
    return load_file(file)


@pytest.mark.slow
def test_two_processes_train_as_one(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """DDP with hooks, quantized weights, frozen parameters or recomputed activations must not change a gradient."""
    settled = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # its draws differ between splits
    model = str(make_model("bert", layers=4, seed=1, hidden_size=64, intermediate_size=64, **settled))
    recipe = write_recipe(
        teacher={"name": "pretrained", "model": model}, student={**STUDENT, "model": model},
        training={"train_sampling_strategy": "random", "optim": "sgd", "learning_rate": 0.1, "logging_steps": 1},
    )  # fmt: skip
    two, _ = engines.run("ddp", lambda: trained(recipe, tmp_path / "two", model), tmp_path / "results")
    one = trained(recipe, tmp_path / "one", model)
    for name, (steps, metrics, state) in one.items():
        others, measured, got = two[name]
        assert others["student"] == pytest.approx(steps["student"], rel=1e-5), name
        assert measured == pytest.approx(metrics, abs=1e-5), name
        assert state.keys() == got.keys()
        for key, value in state.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-6)
    assert one["teacher on disk"][0] == one["nothing"][0]
    assert one["nf4"][0] != one["nothing"][0]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"offload": "disk", "device_map": "auto"}, "offload"),
        ({"offload": "cpu", "quantization": "int8"}, "offload"),
        ({"device_map": "auto", "quantization": "int8"}, "device_map"),
    ],
)
def test_places_that_exclude_each_other(
    settings: dict[str, str], key: str, write_recipe: WriteRecipe, tiny_bert: Path
) -> None:
    """One of two contradicting settings would win in silence."""
    recipe = write_recipe(
        teacher={"name": "pretrained", "model": str(tiny_bert), **settings},
        student={**STUDENT, "model": str(tiny_bert)},
    )
    with pytest.raises(UserError) as error:
        run(recipe)
    assert key in str(error.value)


def test_layers_of_a_teacher_that_is_elsewhere_are_not_copied(write_recipe: WriteRecipe, tiny_bert: Path) -> None:
    """The student would get empty weights."""
    recipe = write_recipe(teacher={"name": "pretrained", "model": str(tiny_bert), "offload": "disk"})
    with pytest.raises(UserError, match="offloaded"):
        run(recipe)


def test_each_process_has_accelerators_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process would spread its teacher over all accelerators, also those on which the others train."""
    from accelerate import PartialState

    from hf_distill import parallel
    from hf_distill.models.placement import Placement

    assert Placement("auto").arguments(None) == {}  # on CPUs there is nothing to spread
    state = {"device": torch.device("cuda:1"), "local_process_index": 1, "_cpu": False}
    monkeypatch.setattr(PartialState, "_shared_state", state)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 5)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert parallel.devices() == [1, 3]
