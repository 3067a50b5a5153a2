"""Recipe entries made in Python: `hf_distill/component.py`."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace
from typing import Any

import pytest

from hf_distill import UserError
from hf_distill.data.section import Data
from hf_distill.objectives import Hidden, KLDivergence, Labels, Relations, Schedule
from hf_distill.recipe.recipe import Recipe, ReportOptions
from hf_distill.students import CopyLayers, LoraStudent, OptimalBrainDamage
from hf_distill.tasks import TextClassification
from hf_distill.teachers import CachedTeacher, PretrainedTeacher

WRONG: dict[str, tuple[type, dict[str, Any], list[str]]] = {
    "unknown": (KLDivergence, {"temprature": 2}, ["kl.temprature: unknown key. Did you mean 'temperature'?"]),
    "another system's word": (KLDivergence, {"alpha": 0.5}, ["kl.alpha: unknown key. It is called 'weight' here."]),
    "bound": (KLDivergence, {"temperature": -1}, ["kl.temperature: wanted a number above 0, found -1."]),
    "type": (KLDivergence, {"weight": "0.5"}, ["kl.weight: wanted a number, found the text '0.5'. Remove the quotes."]),
    "another object": (KLDivergence, {"weight": [1]}, ["kl.weight: wanted a number, found a list."]),
    "no plain value": (Labels, {"weight": object}, ["labels.weight: wanted a number, found an object of type."]),
    "word": (
        Hidden,
        {"loss": "cosin"},
        ["hidden.loss: wanted 'mse' or 'cosine', found the text 'cosin'. Did you mean 'cosine'?"],
    ),
    "a rule": (Relations, {"of": ["keyz"]}, ["relations.of[0]: "]),
    "a part of a schedule": (
        KLDivergence,
        {"temperature": Schedule(start=0.0, end=1.0)},
        ["kl.temperature.start: wanted a number above 0, found 0."],
    ),
    "missing": (Schedule, {"start": 1.0}, ["Schedule.end: missing. Wanted: Value once `over` has passed."]),
    "several": (
        KLDivergence,
        {"weight": -1.0, "temprature": 2},
        [
            "kl.temprature: unknown key. Did you mean 'temperature'?",
            "kl.weight: wanted a number of at least 0, found -1.0.",
        ],
    ),
    "a section": (ReportOptions, {"baselin": True}, ["ReportOptions.baselin: unknown key. Did you mean 'baseline'?"]),
    "a teacher": (
        PretrainedTeacher,
        {"model": "x", "modle": "x"},
        ["pretrained.modle: unknown key. Did you mean 'model'?"],
    ),
    "a student": (
        CopyLayers,
        {"layers": "six"},
        ["copy_layers.layers: wanted a whole number or a list, found the text 'six'."],
    ),
    "a percentage": (
        CopyLayers,
        {"size": "50%"},
        ["copy_layers.size: wanted a number, found the text '50%'. Write 0.5."],
    ),
    "of an adapter": (LoraStudent, {"rank": 2}, ["lora.rank: unknown key. It is called 'r' here."]),
    "of the one inside": (
        OptimalBrainDamage,
        {"size": 0.5, "ratio": 0.5},
        ["optimal_brain_damage.size: unknown key. The share of "],
    ),
    "a recipe": (
        Recipe,
        {
            "task": TextClassification(),
            "data": "x.csv",
            "teacher": PretrainedTeacher(model="x"),
            "student": CopyLayers(layers=2),
            "training": {},
        },
        ["Recipe.data: wanted an object of Data, found the text 'x.csv'."],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_told_as_in_a_recipe(name: str) -> None:
    """Python users read five lines of pydantic about `function-after[_positive(), Schedule]` for one misspelt word."""
    cls, given, said = WRONG[name]
    with pytest.raises(UserError) as caught:
        cls(**given)
    found = sorted(str(caught.value).splitlines())
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True)), found
    assert caught.value.__suppress_context__, "nothing of pydantic stands above it"
    assert isinstance(caught.value, ValueError)


def test_fields_without_a_name_are_told() -> None:
    """`KLDivergence(2.0)`: is it the weight or the temperature? A reader of the call could not tell either."""
    with pytest.raises(UserError) as caught:
        KLDivergence(2.0)  # type: ignore[misc]
    wanted = "kl: wanted keyword arguments, as in KLDivergence(weight=...); found 1 positional."
    assert str(caught.value) == wanted


def test_a_class_keeps_what_dataclasses_have() -> None:
    """An editor shows the fields of a class by its signature; a Trainer copies and pickles its objects."""
    assert list(inspect.signature(KLDivergence).parameters) == [
        "weight",
        "group_weights",
        "temperature",
        "temperature_squared",
    ]
    objective = KLDivergence(weight=0.5)
    assert replace(objective, temperature=2.0) == KLDivergence(weight=0.5, temperature=2.0)
    assert copy.deepcopy(objective) == objective
    assert pickle.loads(pickle.dumps(objective)) == objective
    with pytest.raises(UserError, match=r"^kl\.temperature: wanted a number above 0, found 0\.$"):
        replace(objective, temperature=0)
    assert CachedTeacher(teacher=PretrainedTeacher(model="x")).teacher == PretrainedTeacher(model="x")
    assert Data(path="x.csv").splits["eval"] == "validation"
