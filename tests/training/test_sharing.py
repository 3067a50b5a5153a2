"""Frozen weights that student and teacher have in common: held once while a student trains, and never changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.loading import Head
from hf_distill.models.lora import Lora
from hf_distill.models.sharing import own, share_frozen
from hf_distill.students import CopyLayers
from hf_distill.students.freezing import freeze

ROWS = Dataset.from_dict({"input_ids": [[2, 7, 8, 3], [2, 9, 10, 3]] * 4, "labels": [0, 1] * 4})


def opened(make_model: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(make_model("bert", layers=4))


def places(model: Any) -> list[int]:
    return [one.data_ptr() for one in model.parameters()]


def training(student: Any, teacher: Any, tmp_path: Path, **given: Any) -> DistillationTrainer:
    arguments = {"output_dir": str(tmp_path), "max_steps": 4, "learning_rate": 1e-2, "weight_decay": 0.5}
    arguments |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "save_strategy": "no", "report_to": "none"}
    args = DistillationArguments(**{**arguments, **given.pop("args", {})})
    return DistillationTrainer(student, args, teacher=teacher, train_dataset=ROWS, **given)


def with_adapters(teacher: Any) -> Any:
    return Lora(r=4, target_modules=["query", "dense"]).wrap(copy.deepcopy(teacher))


def half_frozen(teacher: Any) -> Any:
    settings = {"num_labels": 2, "id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    student = CopyLayers(layers=[0, 2]).make(teacher, Head("AutoModelForSequenceClassification", settings))
    return freeze(student, ["embeddings", "layers.0-1"])


@pytest.mark.parametrize("make", [with_adapters, half_frozen])
def test_the_teacher_costs_no_second_copy_and_stays_as_it_is(make_model: Any, tmp_path: Path, make: Any) -> None:
    """The base would be in memory twice; or the teacher would learn with the student, and agree with it in the end."""
    teacher = opened(make_model)
    student, before = make(teacher), model_fingerprint(teacher)
    frozen = {name: one.clone() for name, one in student.named_parameters() if not one.requires_grad}

    class Looks(TrainerCallback):
        once = -1

        def on_step_end(self, *_: Any, **__: Any) -> None:
            mine = {*places(student)}
            self.once = sum(one.numel() for one in teacher.parameters() if one.data_ptr() in mine)

    looks = Looks()
    training(student, teacher, tmp_path, callbacks=[looks]).train()
    # All of the base of adapters; of copied layers those that are copied, and frozen.
    whole = sum(one.numel() for one in teacher.parameters())
    wanted = whole if make is with_adapters else sum(one.numel() for one in frozen.values())
    assert looks.once == wanted
    assert model_fingerprint(teacher) == before
    assert all(torch.equal(one, frozen[name]) for name, one in student.named_parameters() if name in frozen)
    assert not {*places(student)} & {*places(teacher)}  # whatever is done with one now


def test_the_same_training_with_and_without_sharing(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of the teacher that is taken for another one would give other targets."""
    ends = []
    for share in (True, False):
        teacher = opened(make_model)
        torch.manual_seed(0)
        student = with_adapters(teacher)
        if not share:
            monkeypatch.setattr("hf_distill.training.sharing.share_frozen", lambda *_: [])
        training(student, teacher, tmp_path / str(share)).train()
        ends.append(student.state_dict())
    assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())


def test_weights_that_are_unfrozen_in_the_middle_leave_the_teacher(make_model: Any, tmp_path: Path) -> None:
    """Gradual unfreezing with an optimizer of all weights would train the teacher too."""
    teacher = opened(make_model)
    student, before = half_frozen(teacher), model_fingerprint(teacher)
    first = student.bert.encoder.layer[0].output.dense.weight.clone()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    class Unfreezes(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                student.requires_grad_(True)

    training(student, teacher, tmp_path, callbacks=[Unfreezes()], optimizers=(optimizer, None)).train()
    assert not torch.equal(student.bert.encoder.layer[0].output.dense.weight, first)
    assert model_fingerprint(teacher) == before


def test_a_checkpoint_is_not_written_into_the_teacher(make_model: Any, tmp_path: Path) -> None:
    """Loading a checkpoint copies into the weights: with other ones in it, the teacher would become that student."""
    teacher = opened(make_model)
    student = half_frozen(teacher)
    training(student, teacher, tmp_path, args={"save_strategy": "steps", "save_steps": 2}).train()
    other = opened(make_model)
    with torch.no_grad():
        for one in other.parameters():
            one.mul_(1.5)
    before = model_fingerprint(other)
    training(half_frozen(other), other, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert model_fingerprint(other) == before


def test_only_equal_frozen_weights_are_shared_each_with_one(make_model: Any) -> None:
    """One other value, another dtype, or a weight that is trained: sharing would change a model. Biases of zero would
    become one parameter."""
    teacher, student = opened(make_model), opened(make_model)
    student.requires_grad_(False)
    student.bert.pooler.requires_grad_(True)
    with torch.no_grad():
        student.classifier.weight[1, 5] += 1
        student.bert.encoder.layer[0].attention.self.key.bfloat16()
    shared = share_frozen(student, [teacher])
    names = {id(one): name for name, one in student.named_parameters()}
    assert {names[id(one.ours)] for one in shared}.isdisjoint(
        {"classifier.weight", "bert.pooler.dense.weight", "bert.encoder.layer.0.attention.self.key.weight"}
    )
    assert len({*places(teacher)}) == len(places(teacher))
    assert len(places(teacher)) - len(shared) == 5
    own(shared)
    assert not {*places(student)} & {*places(teacher)}


def test_two_teachers_with_the_same_weights_are_apart_again(make_model: Any) -> None:
    """An ensemble's members would stay one, and training one of them later would change the other."""
    teachers = [opened(make_model), opened(make_model)]
    student = opened(make_model)
    student.requires_grad_(False)
    shared = share_frozen(student, teachers)
    assert places(teachers[0]) == places(teachers[1])
    own(shared)
    assert len({*places(student), *places(teachers[0]), *places(teachers[1])}) == 3 * len(places(student))
