"""The shape of a student that is asked for by its cost: chosen once, the same in all processes, in the recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from forked import two_processes

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.directory import stored_recipe
from hf_distill.run.dry_run import check
from hf_distill.run.preparation import open_run
from hf_distill.run.shape_latency import ShapeLatency
from hf_distill.run.student_cost import Timed, _largest

WriteRecipe = Callable[..., Path]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A clock by which a forward pass takes 1 ms and as much again for each layer; it notes what it timed."""
    clock: dict[str, Any] = {"layer": 1.0, "timed": []}

    def timed(self: ShapeLatency, student: Any) -> Timed:
        clock["timed"].append(student.num_hidden_layers)
        return Timed(1.0 + clock["layer"] * student.num_hidden_layers, 1.0 + self.teacher.num_hidden_layers)

    monkeypatch.setattr(ShapeLatency, "__call__", timed)
    return clock


def student(**cost: Any) -> dict[str, Any]:
    return {"name": "copy_layers", **cost}


def chosen(path: Path) -> dict[str, Any]:
    stored = stored_recipe(path.parent / "out")
    assert stored is not None
    found: dict[str, Any] = stored["student"]
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_the_largest_within_is_found(count: int) -> None:
    """A bisection that is off by one takes a student too large, or one of half the size that was allowed."""
    for limit in range(-1, count + 1):
        asked: list[int] = []

        def costs(index: int) -> int:
            asked.append(index)  # noqa: B023
            return index

        found = _largest([None] * count, costs, limit)  # type: ignore[list-item]
        assert found == (None if limit < 0 else min(limit, count - 1))
        assert (0 if found is None else found) in asked


def test_the_largest_student_not_above_the_size_is_taken(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Nearest would be above what the device can hold; by layers alone, half of them are not half of the size."""
    from transformers import AutoModelForSequenceClassification

    teacher = make_model("bert", layers=4, seed=1)
    whole = AutoModelForSequenceClassification.from_pretrained(teacher).num_parameters()
    layer = 8544
    for layers in (1, 2, 3, 4):
        exactly = (whole - (4 - layers) * layer) / whole
        for size, expected in ((exactly, layers), (min(1.0, exactly + 0.01), layers), (exactly - 0.001, layers - 1)):
            recipe = load_recipe(write_recipe(student=student(size=size)))
            if expected == 0:
                with pytest.raises(UserError, match=r"student\.size: .*The nearest is layers 1, .* embeddings"):
                    check(recipe)
                continue
            (line,) = [line for line in check(recipe).splitlines() if line.startswith("student ")]
            assert f"layers {expected})" in line
    around = {"name": "optimal_brain_damage", "ratio": 0.5, "student": student(size=0.1)}
    with pytest.raises(UserError, match=r"student\.student\.size: 0\.1: .* of copy_layers .* is layers 1, "):
        check(load_recipe(write_recipe(student=around)))
    around["student"] = student(size=0.9)
    assert "; before optimal_brain_damage is applied to it" in check(load_recipe(write_recipe(student=around)))
    limit = whole - 2 * layer
    plan = check(load_recipe(write_recipe(student=student(parameters=str(limit)))))
    assert f"cost        parameters {limit} is met by layers 2, " in plan


def test_a_run_chooses_once(write_recipe: WriteRecipe, times: dict[str, Any]) -> None:
    """A resumed run that measures anew may get another student, and ends with weights of neither."""
    path = write_recipe(student=student(latency=0.6))
    runs.run(path)
    assert chosen(path) == {"name": "copy_layers", "chosen_for": {"latency": 0.6}, "layers": 2}
    assert 2 in times["timed"]
    made = runs.weights(path.parent / "out")
    # The machine is slower now, and only one layer would be within the limit: the run goes on as it began.
    times |= {"layer": 2.0, "timed": []}
    runs.unfinish(path.parent / "out")
    report = runs.run(path)
    assert times["timed"] == []
    assert runs.same(made, runs.weights(path.parent / "out"))
    assert "layers: 2" in report.recipe
    # --check says the same, and measures nothing.
    assert "layers 2, for latency 0.6 (as this run began)" in check(load_recipe(path))
    # Another limit is another recipe, unless the run starts over.
    other = write_recipe(student=student(latency=0.7))
    with pytest.raises(UserError, match="another recipe"):
        runs.run(other)
    runs.run(other, restart=True)
    assert chosen(other)["layers"] == 1


def test_a_time_that_no_shape_meets_names_the_nearest(write_recipe: WriteRecipe, times: dict[str, Any]) -> None:
    """The line is all that tells a user by how much the wish is out of reach."""
    with pytest.raises(UserError, match=r"student\.latency: 0\.3: .*nearest is layers 1, 0\.4 of .*2\.00 ms of 5\.00"):
        runs.run(write_recipe(student=student(latency=0.3)))
    assert times["timed"][-1] == 1


@pytest.mark.parametrize("cost", [{"size": 0.5}, {"latency": 0.5}])
def test_a_share_needs_a_teacher_model(cost: dict[str, Any], write_recipe: WriteRecipe, make_model: Any) -> None:
    """The student itself would be the teacher whose share is asked for."""
    recipe = write_recipe(
        student=student(**cost, model=str(make_model("bert-bare"))),
        teacher={"name": "given", "columns": {"probabilities": ["negative", "positive"]}},
    )
    with pytest.raises(UserError, match=r"parameters: 20M"):
        check(load_recipe(recipe))


def test_models_of_a_shape_are_timed(write_recipe: WriteRecipe, brief_latency: None) -> None:
    """What measures shapes works on real data, for which tasks adapt a model, and leaves the random numbers alone."""
    import torch

    from hf_distill.run import shape_latency

    recipe = load_recipe(write_recipe())
    run = open_run(recipe, restart=False)
    before = torch.get_rng_state()
    timing = ShapeLatency(recipe, run.pair.teacher, run.prepared, torch.device("cpu"), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape_latency, "SECONDS", 0.01)
        found = timing(run.pair.student)
    assert min(found) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_two_processes_take_one_choice(write_recipe: WriteRecipe, times: dict[str, Any], tmp_path: Path) -> None:
    """Each would measure by itself, and the processes would train students of different depth."""
    path = write_recipe(student=student(latency=0.6), training={"use_cpu": True})

    def opened() -> Any:
        from hf_distill import parallel

        times["layer"] = 1.0 + parallel.is_first_of_machine()  # the first finds it slower
        run = open_run(load_recipe(path), restart=False)
        return run.pair.student.num_hidden_layers, len(times["timed"]) > 0

    assert sorted(two_processes(opened, tmp_path / "told")) == [(1, False), (1, True)]


@pytest.mark.parametrize(
    ("task", "theirs", "ours"),
    [("text-classification", "bert", "distilbert"), ("text-generation", "llama-lm", "mamba")],
)
def test_a_student_of_another_architecture_is_trained(
    task: str, theirs: str, ours: str, write_recipe: WriteRecipe, make_model: Any, sentiment_csv: Any
) -> None:
    """Trained, saved and found again, it must be the class that was asked for; the report says what it started from."""
    from transformers import AutoConfig

    path = write_recipe(
        task=task,
        data={
            "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
            "columns": {"text": "sentence"},
            "max_length": 16,
        },
        teacher={"name": "pretrained", "model": str(make_model(theirs, layers=4, seed=1))},
        student={
            "name": "from_config",
            "model_type": ours,
            "start": "teacher",
            "overrides": {"num_hidden_layers": 1},
        },
        training={"max_steps": 2},
    )
    assert f": {ours}, 1 layer of 32" in check(load_recipe(path))
    report = runs.run(path)
    out = path.parent / "out"
    assert AutoConfig.from_pretrained(out).model_type == ours
    facts = report.settings["student"]["copied from the teacher"]
    assert facts["its layers"] == [0]
    made = runs.weights(out)
    runs.unfinish(out)
    again = runs.run(path)
    assert runs.same(made, runs.weights(out))
    assert again.settings["student"]["copied from the teacher"] == facts
