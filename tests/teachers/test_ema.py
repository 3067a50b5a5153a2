"""The mean teacher: its recurrence, its one copy of the weights, resuming, and a run that learns from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariants.cases import Collator, NotingTrainer, arguments, make_model, make_rows, split
from marked import Marked, marked_rows
from runs import WriteRecipe, run, same, unfinish, weights
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.lora import Lora
from hf_distill.objectives import Hidden, KLDivergence, Labels
from hf_distill.run.dry_run import check
from hf_distill.teachers import CachedTeacher, EmaTeacher
from hf_distill.teachers.ema import Ema
from hf_distill.training.saving import TARGETS

TERMS = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5))


class Notes(TrainerCallback):
    """Writes down the student after every step; told before the average is moved, or after, it is the same."""

    def __init__(self) -> None:
        self.students: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.students.append({name: one.detach().clone().numpy() for name, one in kwargs["model"].named_parameters()})


def trainer(path: Path, kind: str = "classification", **settings: Any) -> Any:
    import datasets

    settings = {"learning_rate": 1e-2, **settings}
    teacher = Ema(0.9, warm_up=settings.pop("warm_up", True))
    terms, dropout = settings.pop("terms", TERMS), settings.pop("dropout", 0.0)
    rows = settings.pop("rows", None) or make_rows(kind)
    student = make_model(kind, 1, seed=1, dtype=torch.float64, dropout=dropout)
    if (lora := settings.pop("lora", None)) is not None:
        student = with_adapters(student, lora)
    return NotingTrainer(
        student,
        arguments(path, **settings),
        teacher=teacher,
        objectives=terms,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(make_rows(kind, 13)),
        data_collator=Collator(),
    )


def with_adapters(student: Any, lora: Lora) -> Any:
    """Return a student with adapters that change it from the start."""
    wrapped = lora.wrap(student)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, one in wrapped.named_parameters():
            if "lora_" in name:
                one.data = 0.3 * torch.randn(one.shape, dtype=torch.float64)
    return wrapped


LORA = Lora(r=2, alpha=3.0, use_rslora=True)


@pytest.mark.parametrize("warm_up", [True, False])
def test_the_average_is_the_recurrence(warm_up: bool, tmp_path: Path) -> None:
    """Moved at every micro-batch, or by another share in the first steps, it is an average over another time."""
    made = trainer(tmp_path, warm_up=warm_up, max_steps=5, **split(4))
    average = {name: one.detach().clone().numpy() for name, one in made.model.named_parameters()}
    notes = Notes()
    made.add_callback(notes)
    made.train()
    assert len(notes.students) == 5
    assert made.args.gradient_accumulation_steps == 2
    for step, student in enumerate(notes.students, 1):
        decay = min(0.9, 1 - 1 / (step + 1)) if warm_up else 0.9
        average = {name: decay * average[name] + (1 - decay) * one for name, one in student.items()}
    found = {name: one.numpy() for name, one in made.teacher.named_parameters()}
    assert found.keys() == average.keys()
    for name, one in average.items():
        np.testing.assert_allclose(found[name], one, rtol=1e-12, atol=1e-15)
    assert not any(one.requires_grad for one in made.teacher.parameters())
    assert not made.teacher.training


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_of_adapters_their_product_is_averaged(kind: str, tmp_path: Path) -> None:
    """The averages of A and B multiply to another model than the average: trained by it, nothing tells."""
    made = trainer(tmp_path, kind, lora=LORA, max_steps=4, **split(4))
    scale, prefix = 3.0 / np.sqrt(2), "base_model.model."
    head = {name for name in dict(made.model.named_parameters()) if ".modules_to_save." in name}
    assert bool(head) == (kind == "classification")

    def whole(student: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, one in student.items():
            plain = name.removeprefix(prefix).replace(".base_layer", "").replace(".modules_to_save.default", "")
            at = name.replace(".base_layer.weight", "")
            if "lora_" in name or ".original_module." in name:
                continue
            if f"{at}.lora_A.default.weight" in student:
                one = one + scale * student[f"{at}.lora_B.default.weight"] @ student[f"{at}.lora_A.default.weight"]
            found[plain] = one
        return found

    average = whole({name: one.detach().clone().numpy() for name, one in made.model.named_parameters()})
    notes = Notes()
    made.add_callback(notes)
    made.train()
    for step, student in enumerate(notes.students, 1):
        decay = min(0.9, 1 - 1 / (step + 1))
        average = {name: decay * average[name] + (1 - decay) * one for name, one in whole(student).items()}
    found = {name: one.numpy() for name, one in made.teacher.named_parameters()}
    assert found.keys() == average.keys()
    for name, one in average.items():
        np.testing.assert_allclose(found[name], one, rtol=1e-12, atol=1e-14)
    assert not any(one.requires_grad for one in made.teacher.parameters())


def test_of_adapters_only_what_they_change_is_held_twice() -> None:
    """A share of .401 after ten steps of .05, where A and B apart have .401 squared; and one copy of all else."""
    student = with_adapters(make_model("causal-lm", 2, seed=1), LORA)
    source = Ema(0.95, warm_up=False)
    layer = student.get_base_model().model.layers[0].self_attn.q_proj
    product = layer.get_delta_weight("default").detach().clone()
    with torch.no_grad():
        layer.lora_B["default"].weight.zero_()
    source.begin(student)
    assert source.average is not None
    before = source.average.model.layers[0].self_attn.q_proj.weight.clone()
    torch.testing.assert_close(before, layer.base_layer.weight)
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(
            with_adapters(make_model("causal-lm", 2, seed=1), LORA)
            .get_base_model()
            .model.layers[0]
            .self_attn.q_proj.lora_B["default"]
            .weight
        )
    for step in range(10):
        source.after_step(student, step + 1)
    moved = source.average.model.layers[0].self_attn.q_proj.weight - before
    torch.testing.assert_close(moved, (1 - 0.95**10) * product)
    theirs = {one.data_ptr() for one in student.parameters()}
    own = {name for name, one in source.average.named_parameters() if one.data_ptr() not in theirs}
    assert own == {f"model.layers.{at}.self_attn.{name}_proj.weight" for at in (0, 1) for name in "qv"}
    assert source.saved_state().keys() >= own
    assert not any("mlp" in name for name in source.saved_state())


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_splits_change_nothing(kind: str, tmp_path: Path) -> None:
    """An average that is moved by micro-batches depends on how a step is split."""
    averages = []
    for size in (8, 4):
        made = trainer(tmp_path / str(size), kind, max_steps=4, **split(size))
        made.train()
        averages.append(dict(made.teacher.named_parameters()))
    for name, one in averages[0].items():
        torch.testing.assert_close(one, averages[1][name], rtol=1e-9, atol=1e-12)


class Allocated(TorchDispatchMode):
    """Notes the bytes of every tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.data_ptr() for one in args if isinstance(one, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.data_ptr() not in before:
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_one_more_copy_of_the_weights() -> None:
    """A second copy, for a moment in every step, is what decides whether the student fits."""
    student = make_model("causal-lm", 2, seed=1)
    source = Ema(0.9)
    source.begin(student)
    places = [one.data_ptr() for one in source.average.parameters()]  # type: ignore[union-attr]
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in source.average.parameters()}  # type: ignore[union-attr]
    theirs = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in student.parameters()}
    assert sum(held.values()) == sum(theirs.values())
    assert held.keys().isdisjoint(theirs)
    with Allocated() as allocated:
        source.after_step(student, 1)
        source.begin(student)
    assert allocated.bytes == 0
    assert places == [one.data_ptr() for one in source.average.parameters()]  # type: ignore[union-attr]


def test_half_precision_is_averaged_in_float32() -> None:
    """A thousandth of a step is less than bfloat16 can tell: the average would never move."""
    student = make_model("classification", 1, seed=1, dtype=torch.bfloat16)
    source = Ema(0.999, warm_up=False)
    source.begin(student)
    before = copy.deepcopy(source.average)
    with torch.no_grad():
        for one in student.parameters():
            one.mul_(1.1)
    source.after_step(student, 1)
    assert source.average is not None
    moved = [not one.equal(other) for one, other in zip(source.average.parameters(), before.parameters(), strict=True)]  # type: ignore[union-attr]
    assert {one.dtype for one in source.average.parameters()} == {torch.float32}
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("lora", [None, Lora(r=2, dropout=0.1, use_dora=True)])
def test_resumed_is_uninterrupted(lora: Lora | None, tmp_path: Path) -> None:
    """A resumed training whose average begins anew learns from another teacher, and nothing tells."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "dropout": 0.1, "lora": lora, **split(4)}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / TARGETS).exists()
    again = trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert model_fingerprint(again.model) == model_fingerprint(whole.model)
    assert model_fingerprint(again.teacher) == model_fingerprint(whole.teacher)
    assert model_fingerprint(whole.teacher) != model_fingerprint(whole.model)
    (checkpoint / TARGETS).unlink()
    with pytest.raises(UserError, match=TARGETS):
        trainer(tmp_path / "again", **settings).train(resume_from_checkpoint=str(checkpoint))


def test_a_skipped_step_moves_nothing_and_the_next_one_does(tmp_path: Path) -> None:
    """The average would be left behind by one step after every resume from a checkpoint with skipped steps."""
    rows = marked_rows(0, count=96)  # in the first of twelve steps
    settings = {"max_steps": 12, "on_nan": "skip", "save_strategy": "steps", "save_steps": 10, **split(8)}
    settings |= {"train_sampling_strategy": "sequential", "terms": (*TERMS, Marked())}
    whole = trainer(tmp_path / "whole", rows=rows, **settings)
    whole.train()
    assert whole.skipped >= 1
    again = trainer(tmp_path / "again", rows=rows, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert model_fingerprint(again.teacher) == model_fingerprint(whole.teacher)


def test_what_looks_inside_works(tmp_path: Path) -> None:
    """The average is a model like any other: hidden states of it can be compared."""
    made = trainer(tmp_path, max_steps=2, terms=[Hidden(layers=((1, 1),)), Labels()], **split(8))
    made.train()
    assert made.state.log_history


def test_a_run(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run that is reported again would have a teacher that began anew: the student itself."""
    student = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=3))}
    path = write_recipe(
        teacher={"name": "ema", "decay": 0.9},
        student=student,
        report={"latency": True},
        training={"num_train_epochs": 2},
    )
    assert "one more copy of the student's weights" in check(load_recipe(path))
    report = run(path)
    out = tmp_path / "out"
    average, trained = load_file(out / TARGETS), weights(out)
    assert average.keys() >= trained.keys()
    assert any(not average[name].equal(one) for name, one in trained.items())
    assert report.teacher.parameters == report.student.parameters
    assert report.teacher.latency is not None
    assert "average of the student's own weights" in report.settings["teacher_column"]
    assert "than the teacher" not in " ".join(report.verdict())
    again = run(path)
    assert again.teacher.metrics == report.teacher.metrics
    assert again.agreement == report.agreement
    unfinish(out)
    (out / TARGETS).unlink()
    run(path)  # trained again, from the beginning
    assert same(load_file(out / TARGETS), average)
    assert same(weights(out), trained)


@pytest.mark.parametrize("student", [{"name": "copy_layers", "layers": 2}, {"name": "from_config"}])
def test_a_student_of_its_own_average_is_refused(student: dict[str, Any], write_recipe: WriteRecipe) -> None:
    """There is nothing to copy before there is a student."""
    recipe = load_recipe(write_recipe(teacher={"name": "ema"}, student=student))
    with pytest.raises(UserError, match="no model to take layers or sizes from"):
        check(recipe)


def test_what_does_not_follow(tmp_path: Path) -> None:
    """Stored targets of an average are those of its first step; a student made later has no average yet."""
    with pytest.raises(UserError, match="changes while the student trains"):
        CachedTeacher(teacher=EmaTeacher())
    with pytest.raises(UserError, match="not `model_init`"):
        NotingTrainer(
            args=arguments(tmp_path), model_init=lambda: make_model("classification", 1, seed=1), teacher=Ema()
        )
