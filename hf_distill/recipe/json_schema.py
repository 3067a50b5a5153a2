"""Write the JSON Schema of recipes, with which editors complete them: `python -m hf_distill.recipe.json_schema`.

It is generated from the dataclasses and tables that read a recipe, so the two always agree. Editors with the YAML
language server find it through a recipe's first line: `# yaml-language-server: $schema=recipe.schema.json`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from hf_distill.augmentations import AUGMENTATIONS
from hf_distill.completions.backends import BACKENDS
from hf_distill.mistakes import attributes
from hf_distill.objectives import OBJECTIVES, PRESETS
from hf_distill.recipe.plugins import PLUGIN
from hf_distill.recipe.reader import INSTEAD, REQUIRED, SECTIONS
from hf_distill.recipe.recipe import Generations, Link, Recipe, Stage
from hf_distill.recipe.training_section import AT_LEAST, CONFIG, FIXED, OF_CHAIN, OWNED, SHARED, training_arguments
from hf_distill.students import STUDENTS
from hf_distill.tasks import TASKS
from hf_distill.teachers import TEACHERS

Schema = dict[str, Any]

FILE = Path("recipes/recipe.schema.json")
PRESET = "The losses of another system, by its name; in place of `objectives`."
PLUGIN_PATTERN = f"^{PLUGIN.pattern.replace('?P<module>', '').replace('?P<name>', '')}$"


def recipe_schema() -> Schema:
    """Return the schema of a recipe (JSON Schema 2020-12)."""
    said = attributes(Recipe)
    properties: Schema = {
        "task": {**_entry(TASKS), "description": said["task"]},
        "data": _fields(SECTIONS["data"]),
        "teacher": {**_entry(TEACHERS), "description": said["teacher"]},
        "student": {**_STUDENT, "description": said["student"]},
        "chain": {"type": "array", "minItems": 1, "items": _link(), "description": said["chain"]},
        "generations": {
            "anyOf": [{"type": "integer", "minimum": 1}, _fields(Generations)],
            "description": said["generations"],
        },
        **_objectives(),
        "stages": {"type": "array", "minItems": 1, "items": _stage(), "description": said["stages"]},
        "training": {"$ref": "#/$defs/training", "required": ["output_dir"], "description": said["training"]},
        "tokenizer": {"type": "string", "description": said["tokenizer"]},
    }
    properties |= {key: _fields(cls) for key, cls in SECTIONS.items() if key != "data"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Made by python -m hf_distill.recipe.json_schema with transformers "
        f"{metadata.version('transformers')}.",
        "title": "hf_distill recipe",
        "type": "object",
        "additionalProperties": False,
        "required": [key.split(".")[0] for key in REQUIRED if key not in INSTEAD],
        "allOf": [{"oneOf": [{"required": [key]} for key in (key, *others)]} for key, others in INSTEAD.items()],
        "dependentSchemas": {"chain": {"not": {"required": ["generations"]}}},
        "properties": properties,
        "$defs": {
            "objective": _entry(OBJECTIVES),
            "student": _entry(STUDENTS),
            "single_teacher": _entry({name: cls for name, cls in TEACHERS.items() if not _holds_teachers(cls)}),
            "training": _training(),
        },
    }


def _objectives() -> Schema:
    """Return the schemas of `objectives` and `preset`, for a recipe or one of its stages."""
    return {
        "objectives": {
            "type": "array",
            "minItems": 1,
            "items": {"$ref": "#/$defs/objective"},
            "description": attributes(Recipe)["objectives"],
        },
        "preset": {"enum": list(PRESETS), "description": PRESET},
    }


def _stage() -> Schema:
    """Return the schema of a stage."""
    elsewhere = {"anyOf": [{"required": [key]} for key in SHARED]}
    training = {"$ref": "#/$defs/training", "not": elsewhere, "description": attributes(Stage)["training"]}
    whole = _fields(SECTIONS["completions"])
    own = {key: value for key, value in whole["properties"].items() if key != "backend"}  # one writes in all stages
    completions = {**whole, "properties": own, "description": attributes(Stage)["completions"]}
    return {
        "type": "object",
        "description": summary(Stage),
        "additionalProperties": False,
        "oneOf": [{"required": [key]} for key in ("objectives", "preset")],
        "properties": {**_objectives(), "training": training, "completions": completions},
    }


def _link() -> Schema:
    """Return the schema of a student of a chain: an entry, with losses and training arguments of its own beside it."""
    schema = _entry(STUDENTS)
    said = attributes(Link)
    elsewhere = {"anyOf": [{"required": [key]} for key in OF_CHAIN]}
    losses = {key: {**one, "description": said["objectives"]} for key, one in _objectives().items()}
    own = {**losses, "training": {"$ref": "#/$defs/training", "not": elsewhere, "description": said["training"]}}
    entries = [
        {**one, "properties": {**one["properties"], **own}} if "properties" in one else one for one in schema["anyOf"]
    ]
    return {**schema, "anyOf": entries}


def _entry(table: Mapping[str, type]) -> Schema:
    """Return the schema of an entry of a table: a name, or a mapping with a name and fields."""
    entries = [_fields(cls, name) for name, cls in table.items()]
    alone = [
        name
        for name, entry in zip(table, entries, strict=True)
        if entry["required"] == ["name"] and "anyOf" not in entry
    ]
    plugin = {"type": "string", "pattern": PLUGIN_PATTERN, "description": "A class of yours: module:Class."}
    outside: Schema = {"type": "object", "required": ["name"], "properties": {"name": plugin}}
    return {"anyOf": [*([{"enum": alone}] if alone else []), *entries, plugin, outside]}


# Fields of a teacher that hold other teachers.
_NESTED = {"teacher", "teachers"}
# A field of a teacher that holds students.
_STUDENTS = "peers"
# A student, which may hold another one.
_STUDENT = {"$ref": "#/$defs/student"}


def _fields(cls: type, name: str | None = None, within: tuple[type, ...] = ()) -> Schema:
    """Return the schema of a component's fields, described by its docstring.

    Args:
        cls: The component.
        name: Its name as an entry.
        within: The entries around it.
    """
    made = plain_schema(TypeAdapter(cls))
    said = attributes(cls)
    properties: Schema = {}
    if name is not None:
        properties["name"] = {"const": name, "description": summary(cls)}
    for key, value in made.get("properties", {}).items():
        described = {"description": said[key]} if key in said else {}
        held = inner_component(cls, key)
        properties[key] = {**({"anyOf": [_fields(held), {"type": "null"}]} if held else value), **described}
    required = [*(["name"] if name else []), *made.get("required", [])]
    if not properties.keys().isdisjoint(_NESTED):
        inner = _inner((*within, cls))
        if "teacher" in properties:
            properties["teacher"] = {**inner, "description": said["teacher"]}
        if "teachers" in properties:
            several = [
                {"type": "array", "minItems": 1, "items": inner},
                {"type": "object", "additionalProperties": inner},
            ]
            properties["teachers"] = {"anyOf": several, "description": said["teachers"]}
    if "student" in properties:
        properties["student"] = {**_STUDENT, "description": said["student"]}
    if "objectives" in properties:
        properties["objectives"] = {**_objectives()["objectives"], "description": said["objectives"]}
    if "augment" in properties:
        properties["augment"] = {**_entry(AUGMENTATIONS), "description": said["augment"]}
    if "backend" in properties:
        properties["backend"] = {**_entry(BACKENDS), "description": said["backend"]}
    if _STUDENTS in properties:
        properties[_STUDENTS] |= {"type": "array", "minItems": 1, "items": _STUDENT}
        properties[_STUDENTS].pop("anyOf", None)
    if "training" in properties:
        # A teacher's own training has the same keys, except its directory.
        properties["training"] |= {"$ref": "#/$defs/training", "not": {"required": ["output_dir"]}}
        properties["training"].pop("additionalProperties", None)
    one_of = [{"required": [key]} for key in getattr(cls, "needs_one_of", ())]
    return {
        "type": "object",
        "description": summary(cls),
        "additionalProperties": False,
        "required": required,
        **({"anyOf": one_of} if one_of else {}),
        "properties": properties,
    }


def inner_component(cls: Any, key: str) -> type | None:
    """Return the component that a field holds, or nothing in its place; None for any other field."""
    kinds = get_args(cls.__pydantic_fields__[key].annotation)
    found = [one for one in kinds if one is not type(None)]
    return found[0] if len(kinds) == 2 and len(found) == 1 and hasattr(found[0], "__pydantic_fields__") else None


def _inner(within: tuple[type, ...]) -> Schema:
    """Return the schema of an entry inside these: one teacher, a cached ensemble, or an ensemble of cached teachers."""
    single = {"$ref": "#/$defs/single_teacher"}
    if len(within) > 1:
        return single
    nested = {name: cls for name, cls in TEACHERS.items() if _holds_teachers(cls) and cls not in within}
    return {"anyOf": [single, *(_fields(cls, name, within) for name, cls in nested.items())]}


def _holds_teachers(cls: type) -> bool:
    return not _NESTED.isdisjoint(getattr(cls, "__pydantic_fields__", ()))


def _training() -> Schema:
    """Return the schema of training arguments, described by Transformers' help."""
    properties = {}
    for key, argument in training_arguments().items():
        if key in OWNED:
            continue
        schema = plain_schema(TypeAdapter(argument.type, config=CONFIG))
        if key in AT_LEAST:
            schema["minimum"] = AT_LEAST[key]
        if key in FIXED:
            schema = {"const": FIXED[key][0]}
        properties[key] = {**schema, "description": argument.help}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def summary(cls: type) -> str:
    """Return the first line of a class's docstring: what it is."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def plain_schema(adapter: TypeAdapter[Any]) -> Schema:
    """Return pydantic's schema of a type, without titles made of field names and without null as a default."""
    schema = adapter.json_schema()
    definitions = schema.pop("$defs", {})

    def tidy(value: Any) -> Any:
        if isinstance(value, list):
            return [tidy(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:  # insert the definition: references only work in the schema they were made for
            return tidy(definitions[value["$ref"].rpartition("/")[2]])
        return {
            key: tidy(item)
            for key, item in value.items()
            if not (key == "title" and isinstance(item, str)) and not (key == "default" and item is None)
        }

    tidied: Schema = tidy(schema)
    return tidied


def schema_text() -> str:
    """Return the content of the schema file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    target.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {target}")
