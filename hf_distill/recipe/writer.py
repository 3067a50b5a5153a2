"""Write a `Recipe` as YAML that reads back to an equal one."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from ruamel.yaml import YAML

from hf_distill.augmentations import AUGMENTATIONS
from hf_distill.completions.backends import BACKENDS
from hf_distill.completions.section import Completions
from hf_distill.component import entry, settings
from hf_distill.formatting import is_secret, masked
from hf_distill.objectives import OBJECTIVES, Objective
from hf_distill.objectives.schedule import in_words, is_schedule
from hf_distill.recipe.recipe import Link, Recipe, Stage
from hf_distill.students import STUDENTS, Student
from hf_distill.tasks import TASKS
from hf_distill.teachers import TEACHERS


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML that reads back to an equal one; keys with default values are left out.

    Tokens and passwords are left out too, since the file is published with the student.
    """
    content = to_plain(recipe)
    if list(content["task"]) == ["name"]:
        content["task"] = content["task"]["name"]
    return to_yaml(content)


def to_plain(recipe: Recipe, *, whole: bool = False) -> dict[str, Any]:
    """Return a recipe as plain values, each entry a mapping with its name.

    Args:
        recipe: The recipe.
        whole: With the keys that have their default values, except those of `training`, which are not known here.
    """
    content: dict[str, Any] = {
        "task": _entry(recipe.task, TASKS, whole),
        "data": settings(recipe.data, whole=whole),
        "teacher": _entry(recipe.teacher, TEACHERS, whole),
        "student": student_entry(recipe.student, whole=whole),
        "chain": [_link(link, whole) for link in recipe.chain],
        "objectives": objective_entries(recipe.objectives, whole=whole),
        "stages": [_stage(stage, recipe, whole) for stage in recipe.stages],
        "training": dict(recipe.training),
    }
    if recipe.data.augment is not None:
        content["data"]["augment"] = _entry(recipe.data.augment, AUGMENTATIONS, whole)
    del content["objectives" if recipe.stages else "stages"], content["student" if recipe.chain else "chain"]
    if recipe.generations is not None:
        content["generations"] = settings(recipe.generations, whole=whole)
    if whole or recipe.tokenizer is not None:
        content["tokenizer"] = recipe.tokenizer
    for key in ("completions", "evaluation", "report", "export", "hub"):
        if changed := settings(getattr(recipe, key), whole=whole):
            content[key] = changed
    if "backend" in content.get("completions", {}):
        content["completions"]["backend"] = _entry(recipe.completions.backend, BACKENDS, whole)
    return content


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return plain values as the YAML of a recipe, in their order, without tokens and passwords."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(_plain(content), stream)
    return masked(stream.getvalue())


def objective_entries(objectives: Sequence[Objective], *, whole: bool = False) -> list[dict[str, Any]]:
    """Return objectives as the list of entries in a recipe; `whole` as of `to_plain`."""
    return [_entry(objective, OBJECTIVES, whole) for objective in objectives]


def student_entry(student: Student, *, whole: bool = False) -> dict[str, Any]:
    """Return the entry of a student in plain values, as a stored recipe has it; `whole` as of `to_plain`."""
    found: dict[str, Any] = _plain(_entry(student, STUDENTS, whole))
    return found


def _stage(stage: Stage, recipe: Recipe, whole: bool) -> dict[str, Any]:
    training = {**(recipe.training if whole else {}), **stage.training}
    own: dict[str, Any] = {"training": training} if training else {}
    if whole or stage.completions is not None:
        names = (name for name in Completions.__annotations__ if name != "backend")
        given = ((name, getattr(recipe.completions_in(stage), name)) for name in names)
        own["completions"] = {
            name: value for name, value in given if whole or value != getattr(recipe.completions, name)
        }
    return {"objectives": objective_entries(stage.objectives, whole=whole), **own}


def _link(link: Link, whole: bool) -> dict[str, Any]:
    own = {"objectives": objective_entries(link.objectives, whole=whole), "training": dict(link.training)}
    return {**student_entry(link.student, whole=whole), **{key: value for key, value in own.items() if value}}


def _entry(instance: Any, table: Mapping[str, type], whole: bool) -> dict[str, Any]:
    cls = type(instance)
    fields = entry(instance, whole=whole)
    if table.get(instance.name) is not cls:
        fields["name"] = f"{cls.__module__}:{cls.__qualname__}"
    return fields


def _plain(value: Any) -> Any:
    """Return a value from Python (paths, enumerations, tuples) in YAML's types."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): "..." if item and is_secret(str(key)) else _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def describe_entry(values: dict[str, Any]) -> str:
    """Return `kl (weight 0.5, temperature 2.0)` for an entry, `key value, ...` for another mapping.

    >>> describe_entry({"name": "cached", "teacher": {"name": "pretrained", "model": "big"}, "push": True})
    'cached (teacher pretrained (model big), push true)'
    """
    rest = ", ".join(f"{key} {shown(value)}" for key, value in values.items() if key != "name")
    if "name" not in values:
        return rest
    return f"{values['name']} ({rest})" if rest else str(values["name"])


def shown(value: Any) -> str:
    """Return a value as a recipe would give it; a long one is cut.

    >>> shown([1, None]), shown({"start": 4.0, "end": 1.0}), shown({"num_cycles": 0.5})
    ('[1, nothing]', '4 to 1 over the training', '(num_cycles 0.5)')
    """
    if isinstance(value, dict) and not is_schedule(value):
        return describe_entry(value) if "name" in value else f"({describe_entry(value)})"
    if isinstance(value, list | tuple):
        return _short(f"[{', '.join(map(shown, value))}]")
    if value is None:
        return "nothing"
    return _short(str(value).lower() if isinstance(value, bool) else in_words(value))


def _short(text: str, limit: int = 60) -> str:
    # Masked before it is cut, since no pattern matches half a token; line ends in the text become spaces.
    line = " ".join(masked(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
