"""The JSON Schema of recipes: `hf_distill/recipe/json_schema.py`."""

from __future__ import annotations

import json
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from hf_distill.errors import UserError
from hf_distill.objectives import OBJECTIVES, PRESETS
from hf_distill.objectives.presets import ON_OWN_TEXTS
from hf_distill.recipe.json_schema import recipe_schema
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.training_section import OWNED

ROOT = Path(__file__).parents[2]
FILE = ROOT / "recipes" / "recipe.schema.json"
RECIPES = sorted(path for path in (ROOT / "recipes").glob("**/*.yaml") if "accelerate" not in path.parts)


@cache
def validator() -> jsonschema.Draft202012Validator:
    """The schema as an editor applies it."""
    return jsonschema.Draft202012Validator(recipe_schema())


def test_the_file_is_up_to_date() -> None:
    """Editors would complete keys that are gone and mark new ones as mistakes. Remedy: make schema."""
    made, held = recipe_schema(), json.loads(FILE.read_text(encoding="utf-8"))
    if made.pop("$comment") != held.pop("$comment"):  # another Transformers has other training arguments
        made["$defs"].pop("training")
        held["$defs"].pop("training")
    assert held == made


def test_it_is_a_schema() -> None:
    """A broken reference makes an editor ignore the whole file without a word."""
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    assert set(_references(recipe_schema())) == {f"#/$defs/{name}" for name in recipe_schema()["$defs"]}


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [found for value in schema.values() for found in _references(value)]
    return [found for item in schema for found in _references(item)] if isinstance(schema, list) else []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_fits_and_names_it(path: Path) -> None:
    """A recipe that reads well but is marked red in an editor teaches people to ignore the marks."""
    text = path.read_text(encoding="utf-8")
    up = "../" * (len(path.relative_to(ROOT / "recipes").parts) - 1)
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={up}recipe.schema.json"
    assert [error.message for error in validator().iter_errors(YAML(typ="safe", pure=True).load(text))] == []


def test_there_are_recipes() -> None:
    """The test above passes on an empty folder."""
    assert RECIPES


BASE: dict[str, Any] = {
    "task": "text-classification",
    "data": {"path": "x.csv"},
    "teacher": {"name": "pretrained", "model": "big"},
    "student": {"name": "pretrained", "model": "small"},
    "objectives": ["kl", {"name": "labels", "weight": 0.5}],
    "training": {"output_dir": "out"},
}


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, True),
        ({"objectives": [{"name": "kl", "temperature": 2}]}, True),
        ({"objectives": ["labels"]}, True),
        ({"task": {"name": "text-classification", "problem": "regression"}}, True),
        ({"teacher": {"name": "finetuned", "model": "x", "training": {"learning_rate": 1e-4}}}, True),
        ({"training": {"output_dir": "out", "bf16": "auto", "lr_scheduler_type": "cosine"}}, True),
        ({"training": {"output_dir": "out", "ddp_backend": None, "warmup_steps": 0.1}}, True),
        ({"report": {"baseline": True, "seeds": 3}}, True),
        ({"data": {"path": {"train": ["a", "b"]}, "columns": {"text": "sentence"}}}, True),
        ({"objectives": [{"name": "js", "teacher_share": 0.1}, {"name": "labels", "label_smoothing": 0.1}]}, True),
        ({"objectives": [{"name": "kl", "temperature": {"start": 4, "end": 1, "over": 0.5}}]}, True),
        ({"objectives": [{"name": "kl", "weight": {"start": 0, "end": 1, "shape": "cosine"}}]}, True),
        ({"objectives": [{"name": "kl", "weight": {"start": 0}}]}, False),
        ({"objectives": [{"name": "kl", "weight": {"start": 0, "end": 1, "shape": "lineal"}}]}, False),
        ({"objectives": [{"name": "kl", "weight": {"start": 0, "end": 1, "over": 0}}]}, False),
        ({"preset": "distillkit"}, False),
        ({"objectives": [{"name": "js", "teacher_share": 1.0}]}, False),
        ({"foo": 1}, False),
        ({"data": {}}, False),
        ({"data": "x.csv"}, False),
        ({"task": "text-clasification"}, False),
        ({"teacher": "pretrained"}, False),
        ({"teacher": {"name": "pretrained", "model": "x", "dtype": "fp16"}}, False),
        ({"teacher": {"name": "finetuned", "model": "x", "training": {"output_dir": "y"}}}, False),
        ({"objectives": []}, False),
        ({"objectives": "kl"}, False),
        ({"objectives": [{"name": "kl", "temprature": 2}]}, False),
        ({"objectives": [{"name": "kl", "temperature": 0}]}, False),
        ({"objectives": [{"name": "kl", "weight": "1"}]}, False),
        ({"objectives": [{"weight": 1}]}, False),
        ({"training": {}}, False),
        ({"training": {"output_dir": "out", "learning_rate": "fast"}}, False),
        ({"training": {"output_dir": "out", "seed": 1.5}}, False),
        ({"training": {"output_dir": "out", "eval_strategy": "epochs"}}, False),
        ({"training": {"output_dir": "out", "push_to_hub": True}}, False),
        ({"training": {"output_dir": "out", "use_liger_kernel": True}}, True),
        ({"training": {"output_dir": "out", "label_smoothing_factor": 0.1}}, False),
        ({"training": {"output_dir": "out", "compile_loss": "auto"}}, True),
        ({"training": {"output_dir": "out", "compile_loss": False}}, True),
        ({"training": {"output_dir": "out", "compile_loss": "off"}}, False),
        ({"training": {"output_dir": "out", "per_device_train_batch_size": 0}}, False),
    ],
)
def test_it_agrees_with_the_reader(change: dict[str, Any], right: bool, tmp_path: Path) -> None:
    """Two judges of one recipe: where they differ, the user is told a lie by one of them."""
    recipe = BASE | change
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe))  # YAML contains JSON
    assert validator().is_valid(recipe) is right
    try:
        load_recipe(path)
    except UserError:
        assert not right
    else:
        assert right


@pytest.mark.parametrize(("preset", "right"), [*((name, True) for name in PRESETS), ("distilkit", False), (5, False)])
def test_a_preset_in_place_of_objectives(preset: object, right: bool, tmp_path: Path) -> None:
    """An editor that asks for `objectives` beside a preset asks for a mistake."""
    recipe = {key: value for key, value in BASE.items() if key != "objectives"}
    assert not validator().is_valid(recipe)
    recipe["preset"] = preset
    assert validator().is_valid(recipe) is right
    path = tmp_path / "r.yaml"
    if preset in ON_OWN_TEXTS:
        recipe["completions"] = {"by": "student"}
        assert validator().is_valid(recipe)
    path.write_text(json.dumps(recipe))
    if right:
        assert load_recipe(path).objectives
    else:
        with pytest.raises(UserError):
            load_recipe(path)


@pytest.mark.parametrize(
    ("stages", "right"),
    [
        ([{"objectives": ["kl"]}], True),
        ([{"preset": "distillkit"}, {"objectives": ["labels"], "training": {"num_train_epochs": 2}}], True),
        ([], False),
        ({"objectives": ["kl"]}, False),
        ([{"training": {"num_train_epochs": 2}}], False),
        ([{"objectives": ["kl"], "preset": "distillkit"}], False),
        ([{"objectives": ["kl"], "epochs": 2}], False),
        ([{"objectives": ["kl"], "training": {"output_dir": "x"}}], False),
        ([{"objectives": ["kl"], "training": {"seed": 1}}], False),
        ([{"objectives": ["kl"], "training": {"learning_rate": "fast"}}], False),
    ],
)
def test_stages_in_place_of_objectives(stages: object, right: bool, tmp_path: Path) -> None:
    """The editor and the reader must agree on what a stage is, and that the top level then has no objectives."""
    recipe = {key: value for key, value in BASE.items() if key != "objectives"} | {"stages": stages}
    path = tmp_path / "r.yaml"
    for given, fits in ((recipe, right), (BASE | recipe, False)):
        assert validator().is_valid(given) is fits
        path.write_text(json.dumps(given))
        if fits:
            assert load_recipe(path).stages
        else:
            with pytest.raises(UserError):
                load_recipe(path)


def test_a_class_from_outside_fits() -> None:
    """Its fields are not known; marking them would forbid extensions in the editor."""
    mine = BASE | {"objectives": ["mine:Loss", {"name": "mine:Loss", "anything": 1}]}
    assert validator().is_valid(mine)


def test_every_key_is_described() -> None:
    """The descriptions are what an editor shows; they come from docstrings, whose form may change unnoticed."""
    schema = recipe_schema()
    for name in ("training", "tokenizer", "data", "report"):
        assert schema["properties"][name]["description"]
    kl = next(
        entry
        for entry in schema["$defs"]["objective"]["anyOf"]
        if entry.get("properties", {}).get("name", {}).get("const") == "kl"
    )
    assert "ranks the unlikely classes" in kl["properties"]["temperature"]["description"]
    undescribed = [key for key, value in schema["$defs"]["training"]["properties"].items() if not value["description"]]
    assert undescribed == []


def test_no_key_that_the_reader_refuses_is_offered() -> None:
    """Completing `push_to_hub` only for it to be refused."""
    offered = recipe_schema()["$defs"]["training"]["properties"]
    assert not set(offered) & set(OWNED)
    assert "learning_rate" in offered


def test_every_objective_is_offered() -> None:
    """A table entry that the schema leaves out is marked as a mistake."""
    entries = recipe_schema()["$defs"]["objective"]["anyOf"]
    assert set(OBJECTIVES) == {
        entry["properties"]["name"]["const"]
        for entry in entries
        if "const" in entry.get("properties", {}).get("name", {})
    }


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the remedy that the first test names."""
    target = tmp_path / "schema.json"
    monkeypatch.setattr(sys, "argv", ["json_schema", str(target)])
    runpy.run_module("hf_distill.recipe.json_schema", run_name="__main__")
    assert json.loads(target.read_text(encoding="utf-8")) == recipe_schema()
