"""The tables of keys and of formulas in docs/, made from docstrings: `python -m hf_distill.recipe.docs_tables`.

A table stands between two comments, and all between them is written anew:

    <!-- table: teacher.pretrained -->
    <!-- end -->

What can be named: a section (`data`), an entry (`teacher.pretrained`), several entries in one table (`tasks`,
`objectives.kl,js`), `sections`, `arguments` and `formulas`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hf_distill.augmentations import AUGMENTATIONS
from hf_distill.completions.backends import BACKENDS
from hf_distill.data.pseudo_labels import PseudoLabels
from hf_distill.data.selecting import Select
from hf_distill.data.transfer import Transfer
from hf_distill.export.options import CalibrationOptions
from hf_distill.mistakes import attributes
from hf_distill.objectives import OBJECTIVES, Objective
from hf_distill.objectives.features import StackObjective
from hf_distill.objectives.schedule import Schedule
from hf_distill.objectives.softened import Softened
from hf_distill.recipe.json_schema import plain_schema, recipe_schema, summary
from hf_distill.recipe.reader import SECTIONS
from hf_distill.recipe.recipe import Generations, Link, Stage
from hf_distill.recipe.training_section import CONFIG, OWN, training_arguments
from hf_distill.students import STUDENTS
from hf_distill.students.base import Student
from hf_distill.students.sized import SizedStudent
from hf_distill.tasks import TASKS
from hf_distill.teachers import TEACHERS

FILES = (Path("docs/recipe.md"), Path("docs/loss.md"))
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DEFAULT = re.compile(r" ?Default: (.+)\.$")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
ENTRIES: dict[str, Mapping[str, type]] = {
    "augment": AUGMENTATIONS,
    "backend": BACKENDS,
    "tasks": TASKS,
    "teacher": TEACHERS,
    "student": STUDENTS,
    "objectives": OBJECTIVES,
}
# What stands in a table of its own, because many entries have it.
ALONE: dict[str, type] = {
    **SECTIONS,
    "data.pseudo_labels": PseudoLabels,
    "data.select": Select,
    "stages": Stage,
    "chain": Link,
    "generations": Generations,
    "schedule": Schedule,
    "data.transfer": Transfer,
    "export.calibration": CalibrationOptions,
    "every_student": Student,
    "cost": SizedStudent,
    "every_objective": Objective,
    "distributions": Softened,
    "layers": StackObjective,
}
# Fields that are not in the table of their class.
WITHOUT: dict[str, Iterable[str]] = {
    "distributions": ("weight", "group_weights"),
    "layers": ("weight", "group_weights"),
    "cost": attributes(Student),
    "chain": ("student",),
}
SHARED = {
    "student": attributes(SizedStudent).keys(),
    "objectives": attributes(Softened).keys() | attributes(StackObjective).keys(),
}


def written(text: str) -> str:
    """Return a document with its tables written anew."""
    return TABLE.sub(lambda found: f"{found[1]}{_table(found[2])}\n{found[3]}", text)


def _table(what: str) -> str:
    kind, _, names = what.partition(".")
    if what == "sections":
        properties = recipe_schema()["properties"]
        return _lines(("section", ""), ((f"[`{key}`](#{key})", one["description"]) for key, one in properties.items()))
    if what == "formulas":
        return _lines(("name", "in Python", "formula", "unit", "paper"), map(_formula, OBJECTIVES.values()))
    if what == "arguments":
        return _lines(("key", "values", "default", ""), _arguments())
    if what in ALONE:
        return _lines(("key", "values", "default", ""), key_rows(ALONE[what], WITHOUT.get(what, ())))
    table = ENTRIES[kind]
    if names in table:
        return _lines(("key", "values", "default", ""), key_rows(table[names], SHARED.get(kind, ())))
    chosen = names.split(",") if names else list(table)
    return _lines(("name", "key", "values", "default", ""), _named({name: table[name] for name in chosen}, kind))


def _lines(heads: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    cells = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(one.replace('|', chr(92) + '|') for one in row)} |" for row in cells)


def _named(classes: Mapping[str, type], kind: str) -> Iterator[list[str]]:
    """Yield a row for each entry, with what it is, and one for each of its keys."""
    said: dict[tuple[str, ...], str] = {}
    for name, cls in classes.items():
        yield [f"`{name}`", "", "", "", summary(cls)]
        # A temperature of something else than a softmax over classes is the entry's own.
        own = () if issubclass(cls, Softened) else ("temperature",)
        for row in key_rows(cls, set(SHARED.get(kind, ())).difference(own)):
            before = said.setdefault((row[0], row[3]), name)
            yield ["", *row[:3], row[3] if before == name else f"as for `{before}`"]


def key_rows(cls: Any, without: Iterable[str] = ()) -> Iterator[list[str]]:
    """Yield key, values, default and help of each field."""
    schema, said = plain_schema(TypeAdapter(cls)), attributes(cls)
    for key, field in cls.__pydantic_fields__.items():
        if key in without:
            continue
        text = said[key]
        told = DEFAULT.search(text)
        default = field.get_default(call_default_factory=True)
        shown = (
            "required" if field.is_required() else told[1] if told else f"`{_yaml(getattr(default, 'name', default))}`"
        )
        values = "" if key in ("augment", "backend", "teacher", "objectives") else _values(schema["properties"][key])
        yield [f"`{key}`", values, shown, DEFAULT.sub("", text)]


def _arguments() -> Iterator[list[str]]:
    """Yield the training arguments that Transformers does not have."""
    from hf_distill.training_args import DistillationArguments

    arguments, fields = training_arguments(), DistillationArguments.__dataclass_fields__
    for key in OWN:
        schema = plain_schema(TypeAdapter(arguments[key].type, config=CONFIG))
        yield [f"`{key}`", _values(schema), f"`{_yaml(fields[key].default)}`", arguments[key].help]


def _formula(cls: type[Objective]) -> list[str]:
    """Return the row of an objective: name, class, formula, what the sum is divided by, and where it was published."""
    paper = ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", cls.paper)
    return [f"`{cls.name}`", f"`{cls.__name__}`", cls.formula(), cls().unit, paper]


def _values(schema: Mapping[str, Any]) -> str:
    """Say what a value may be.

    >>> _values({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'whole number, at least 1'
    """
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{_yaml(one)}`" for one in schema.get("enum", [schema.get("const")]))
    if {"start", "end"} <= schema.get("properties", {}).keys():
        return "a [schedule](#schedules)"
    words = {"boolean": "`true`, `false`", "integer": "whole number", "number": "number", "string": "text"}
    words |= {"array": "list", "object": "mapping"}
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema]
    return ", ".join((words[schema["type"]], *said))


def _yaml(value: Any) -> str:
    """Return a default as a recipe would give it, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and value:
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]) if sys.argv[1:] else FILES:
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {file}")
