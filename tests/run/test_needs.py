"""What objectives need and teachers give: `--check`, the run and the trainer refuse the same with the same words."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from hf_distill import load_recipe
from hf_distill.cache.replay import Replay
from hf_distill.data.loading import load_splits
from hf_distill.errors import UserError
from hf_distill.models.layers import States
from hf_distill.models.match import mistakes
from hf_distill.models.needs import Gives, Needs, TaskFacts
from hf_distill.models.target_model import LiveModel
from hf_distill.objectives import OBJECTIVES, KLDivergence, Schedule
from hf_distill.objectives.base import Objective
from hf_distill.run.checks import check_plan
from hf_distill.run.dry_run import check
from hf_distill.run.pairing import open_pair
from hf_distill.run.preparation import check_prepared, prepare
from hf_distill.teachers.cached import planned
from hf_distill.training.checks import check_objectives
from hf_distill.training.labelled import is_labelled

WriteRecipe = Callable[..., Path]

ROWS: list[dict[str, Any]] = [
    {
        "text": text,
        "other": "the film was dull",
        "label": label,
        "score": score,
        "p": 0.25,
        "q": 0.75,
        "x": -1.0,
        "y": 2.0,
    }
    for text, label, score in [("a great film", "positive", 0.5), ("a dull film", "negative", 0.25)] * 4
]
# Task -> kind of model, label names, columns.
TASKS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "text-classification": ("bert", ("negative", "positive"), {"text": "text", "label": "label"}),
    "regression": ("bert", ("score",), {"text": "text", "label": "score"}),
    "unlabelled": ("bert", ("negative", "positive"), {"text": "text"}),
    "text-generation": ("llama-lm", ("negative", "positive"), {"text": "text"}),
    "sentence-similarity": ("bert", ("negative", "positive"), {"text": "text", "text_pair": "other"}),
    "texts": ("bert", ("negative", "positive"), {"text": "text"}),
}
SAME = {"regression": "text-classification", "unlabelled": "text-classification", "texts": "sentence-similarity"}
STORED = {"live": {}, "cached": {}, "states": {"layers": [1]}, "top": {"top": 4}, "drawn": {"top": 4, "tail": 2}}
KINDS = {
    "text-classification": ("live", "cached", "states", "logits", "probabilities"),
    "regression": ("live", "cached"),
    "unlabelled": ("live", "probabilities"),
    "text-generation": ("live", "top", "drawn", "states"),
    "sentence-similarity": ("live", "cached"),
    "texts": ("live",),
}


class Model(nn.Module):
    """As much of a model as is asked before its weights are looked at."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def said(ask: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return what is refused: the setting of the objective, and the line."""
    try:
        ask()
    except UserError as error:
        own = error.key.removeprefix("objectives[0]")
        places = [(re.search(r"objectives\[0\](\.\w+)?: ", line), line) for line in error.mistakes]
        return [(place[1] or "", line[place.end() :]) if place else (own, line) for place, line in places]
    return []


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in KINDS.items() for kind in kinds])
def test_all_three_refuse_the_same(
    task: str, kind: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """What one of them lets pass fails after an hour, or trains on something else without a word."""
    model, labels, columns = TASKS[task]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*columns.values(), "p", "q", "x", "y"], extrasaction="ignore")
        table.writeheader()
        table.writerows(ROWS)
    own = {"name": "pretrained", "model": str(make_model(model, layers=4, labels=labels, seed=1))}
    teacher: dict[str, Any] = {"name": "cached", "teacher": own, **STORED.get(kind, {})}
    if kind in ("logits", "probabilities"):
        teacher = {
            "name": "given",
            "columns": {kind: ["x", "y"] if kind == "logits" else ["p", "q"]},
            "labels": list(labels),
        }
    recipe = load_recipe(
        write_recipe(
            task=SAME.get(task, task),
            teacher=own if kind == "live" else teacher,
            student={"name": "pretrained", "model": str(make_model(model, layers=2, labels=labels))},
            data={
                "path": str(tmp_path / "rows.csv"),
                "columns": columns,
                "splits": {"train": "train", "eval": "train"},
            },
            objectives=["kl"],
            report={"baseline": False, "latency": False},
        )
    )
    pair = open_pair(recipe)
    splits = load_splits(recipe.data, recipe.task.roles, recipe.teacher.reads)
    prepared, given = prepare(recipe, pair, splits)
    for name, made in OBJECTIVES.items():
        objective: Any = made()
        one = replace(recipe, objectives=(objective,))

        source: Any = LiveModel(Model(pair.teacher))
        if given is not None:
            source = given[1]
        elif kind != "live":
            stored = planned(recipe.teacher, recipe.task, (objective,), pair)
            source = Replay(pair.teacher, stored, "key")
        trainer = SimpleNamespace(
            objectives=(objective,),
            model=Model(pair.student),
            layout=prepared.layout,
            train_dataset=prepared.train,
            known_rows=prepared.train,
            completions=recipe.completions,
        )
        labelled = is_labelled(prepared.train, prepared.layout)
        refused = said(partial(check_plan, one, pair)) or said(partial(check_prepared, one, prepared))
        assert said(partial(check_objectives, trainer, source, labelled=labelled)) == refused[:1], name
        # What a teacher does not give is refused for every objective that needs it, and for no other.
        gives = replace(recipe.teacher.gives(recipe.task, (objective,), pair), whose="x")
        if not refused:
            assert not [*mistakes(objective.needs(pair.student, pair.teacher), gives, recipe.task.facts(prepared))]
    if task == "text-classification" and kind == "states":  # the whole way, once
        path = write_recipe(task=task, teacher=teacher, objectives=["attention"])
        with pytest.raises(UserError, match=r"objectives\[0\]: 'attention' looks into the teacher"):
            check(load_recipe(path))


def _all_of_shared(needs: Needs) -> bool:
    """Whether it needs all classes that both models have; one of the teacher's own takes these from the model."""
    return needs.classes == "all" and not needs.own_vocabulary


LESS: dict[str, tuple[Callable[[Needs], bool], dict[str, Any]]] = {
    "no logits": (lambda needs: needs.classes is not None, {"classes": None}),
    "the likeliest classes": (_all_of_shared, {"classes": "top"}),
    "drawn classes": (lambda needs: _all_of_shared(needs) or needs.classes == "top", {"classes": "drawn"}),
    "another temperature": (
        lambda needs: bool(needs.temperatures) and (needs.classes is not None or needs.written),
        {"temperature": 3.0},
    ),
    "probabilities": (lambda needs: needs.exact_logits, {"exact_logits": False}),
    "fewer classes": (
        lambda needs: _all_of_shared(needs) or needs.likeliest is not None,
        {"classes": "top", "top": 0},
    ),
    "no hidden states": (lambda needs: bool(needs.states), {"states": ()}),
    "another layer": (lambda needs: bool(needs.states), {"states": (States(0, "mean"),)}),
    "no attention": (lambda needs: needs.attentions, {"attentions": False}),
    "no model": (lambda needs: needs.inside or (needs.written and not needs.rows), {"model": False}),
    "no derivatives": (lambda needs: needs.derivatives, {"derivatives": False}),
    "tokens of its own": (lambda needs: needs.by_token, {"own_tokens": True}),
}


@pytest.mark.parametrize("less", LESS)
def test_a_teacher_that_gives_less_is_refused(less: str, make_model: Any) -> None:
    """A part that is missing must not be taken for zeros, or for another part that is there."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(make_model("bert"))
    needed, without = LESS[less]
    whole = Gives.everything()
    every: list[Objective] = [made() for made in OBJECTIVES.values()]
    for objective in (*every, KLDivergence(temperature=Schedule(start=3.0, end=1.0))):
        needs = objective.needs(config, config)
        assert hash(needs) == hash(objective.needs(config, config))
        assert not [*mistakes(needs, whole, TaskFacts())]
        found = [*mistakes(needs, replace(whole, **without), TaskFacts())]
        assert bool(found) == (needs.teacher and needed(needs)), objective.name
        assert all(objective.name in one.text or one.key for one in found)
