"""Weights and temperatures that change while a model trains: `objectives/schedule.py`, and what recipes say of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hf_distill.errors import UserError
from hf_distill.objectives import KLDivergence, Labels, Schedule
from hf_distill.objectives.schedule import in_words
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.recipe import Recipe
from hf_distill.recipe.writer import dump_recipe

WHOLE = """\
task: text-classification
data: {path: x.csv}
teacher: {name: pretrained, model: big}
student: {name: pretrained, model: small}
objectives:
  - name: kl
    temperature: {start: 4, end: 1, over: 0.5}
    weight: SCHEDULE
  - {name: labels, weight: 0.5}
training: {output_dir: out}
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' current directory, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)


def load(schedule: str, *overrides: str) -> Recipe:
    Path("r.yaml").write_text(WHOLE.replace("SCHEDULE", schedule))
    return load_recipe("r.yaml", overrides)


def mistakes(schedule: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load(schedule, *overrides)
    return list(error.value.mistakes)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ({"over": 0.5}, {0: 4.0, 10: 3.4, 25: 2.5, 50: 1.0, 99: 1.0}),
        ({"over": 20}, {0: 4.0, 10: 2.5, 20: 1.0, 21: 1.0}),
        ({"shape": "cosine"}, {0: 4.0, 25: 1 + 3 * (1 + math.sqrt(0.5)) / 2, 50: 2.5, 100: 1.0}),
        ({"shape": "constant", "over": 0.1}, {0: 4.0, 9: 4.0, 10: 1.0, 100: 1.0}),
    ],
)
def test_values_on_the_way(schedule: dict[str, Any], values: dict[int, float]) -> None:
    """A schedule that is a step late, or runs in shares where steps were meant, trains another loss in silence."""
    made = Schedule(start=4.0, end=1.0, **schedule)
    # The slope is 3 over the length; of the cosine half a period, 1 + 3 (1 + cos(pi x)) / 2.
    assert {step: pytest.approx(value) for step, value in values.items()} == {
        step: made.at(step, 100) for step in values
    }


def test_a_recipe_reads_and_writes_schedules() -> None:
    """A schedule lost in the recipe saved beside the model would make a resumed run another one."""
    recipe = load("{start: 0, end: 1.5, over: 200, shape: cosine}")
    first = KLDivergence(
        temperature=Schedule(start=4.0, end=1.0, over=0.5),
        weight=Schedule(start=0.0, end=1.5, over=200.0, shape="cosine"),
    )
    assert recipe.objectives == (first, Labels(weight=0.5))
    Path("again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("again.yaml") == recipe
    assert "start" in dump_recipe(recipe)


def test_parts_of_a_schedule_can_be_overridden() -> None:
    """`objectives.0.temperature.start=8` must keep the rest of the schedule; where there is only a number, say so."""
    (changed, _) = load("1", "objectives.0.temperature.start=8").objectives
    assert changed == KLDivergence(temperature=Schedule(start=8.0, end=1.0, over=0.5))
    (changed, _) = load("1", "objectives.0.temperature=3").objectives
    assert changed == KLDivergence(temperature=3.0)
    assert mistakes("1", "objectives.0.weight.start=8") == [
        "override 'objectives.0.weight.start=8': objectives[0].weight is the whole number 1, which has no keys. Give "
        "it whole: objectives[0].weight={start: ...}."
    ]


WRONG = [
    ("{start: 1, ende: 2}", ["weight.end: missing. Wanted: Value once `over` has passed.",
                             "weight.ende: unknown key. Did you mean 'end'?"]),
    ("{}", ["weight.start: missing. Wanted: Value at the first step.",
            "weight.end: missing. Wanted: Value once `over` has passed."]),
    ("{start: 1, end: 2, steps: 5}", ["weight.steps: unknown key. It is called 'over' here."]),
    ("{start: 1, end: 2, foo: 5}", ["weight.foo: unknown key. Known: start, end, over, shape."]),
    ("{start: -1, end: 2}", ["weight.start: wanted a number of at least 0, found -1."]),
    ("{start: 1, end: -0.5}", ["weight.end: wanted a number of at least 0, found -0.5."]),
    ("{start: 1, end: 2, over: 0}", ["weight.over: wanted a number above 0, found 0."]),
    ("{start: 1, end: .inf}", ["weight.end: wanted a finite number, found the number inf."]),
    ("{start: '1', end: 2}", ["weight.start: wanted a number, found the text '1'. Remove the quotes."]),
    ("{start: 1, end: 2, shape: lineal}",
     ["weight.shape: wanted 'linear', 'cosine' or 'constant', found the text 'lineal'. Did you mean 'linear'?"]),
    ("[1, 2]", ["weight: wanted a number, found a list."]),
    ("-1", ["weight: wanted a number of at least 0, found -1."]),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "said"), WRONG, ids=[schedule for schedule, _ in WRONG])
def test_what_a_wrong_schedule_is_told(schedule: str, said: list[str]) -> None:
    """A number may be a mapping too: without care every mistake is told twice, in words of the other kind."""
    assert mistakes(schedule) == [f"r.yaml:8: objectives[0].{line}" for line in said]


def test_a_temperature_is_never_zero() -> None:
    """A schedule that ends at temperature 0 would divide by it in the last steps, hours after the start."""
    assert mistakes("1", "objectives.0.temperature.end=0") == [
        "override 'objectives.0.temperature.end=0': objectives[0].temperature.end: wanted a number above 0, found 0."
    ]
    with pytest.raises(ValueError, match="wanted a number above 0"):
        KLDivergence(temperature=Schedule(start=1.0, end=0.0))


def test_a_weight_that_is_above_zero_at_some_time_is_enough() -> None:
    """A warmed-up weight starts at 0, which is not "nothing to train on"; one that stays there is."""
    assert load("{start: 0, end: 1}", "objectives.1.weight=0")
    zero = mistakes("{start: 0, end: 0}", "objectives.1.weight=0")
    assert zero == [
        "r.yaml:5: objectives: every weight is 0, so there is nothing to train on. Give one a weight above 0."
    ]


def test_how_a_schedule_reads() -> None:
    """In --check and on the model card a mapping in braces would be read by nobody."""
    assert in_words({"start": 4.0, "end": 1.0}) == "4 to 1 over the training"
    assert in_words({"start": 1, "end": 0, "over": 0.25, "shape": "constant"}) == "1, then 0 after 25 % of the training"
    assert in_words({"start": 0.0, "end": 1.0, "over": 12000.0}) == "0 to 1 over 12,000 steps"
    assert in_words({"a": 1}) == "{'a': 1}"
    assert in_words("teacher") == "teacher"
