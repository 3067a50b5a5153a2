"""In which settings the recipes of several runs differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_distill.report.recipe_facts import public

# Settings of where a run is stored, what it is called and what is reported of it, which do not change the student.
NOT_SHOWN = ("training.output_dir", "training.run_name", "training.logging_dir", "training.project", "hub", "report")
# Sections in the order in which they are shown; the others follow.
SECTIONS = ("task", "data", "teacher", "student", "chain", "generations", "objectives", "stages", "training")


# Behind a value that a recipe does not give.
DEFAULT = " (default)"


def differing(
    recipes: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]] = ()
) -> dict[str, tuple[str | None, ...]]:
    """Return the keys whose values differ -> the value in each recipe as text; None where a recipe does not have it.

    Entries of a list are told apart by their names, not by their places: `objectives.kl.temperature`. A weight that an
    objective does not have is 1.

    Args:
        recipes: The recipes, as they were given.
        whole: The same with the value of every key, so that a key that one of them leaves out has its default; empty
            ones where that is not known.

    >>> one = {"student": {"layers": 4}, "objectives": [{"name": "kl"}], "training": {"seed": 1, "output_dir": "a"}}
    >>> two = {"student": {"layers": 2}, "objectives": [{"name": "mse"}], "training": {"seed": 1, "output_dir": "b"}}
    >>> differing([one, two])
    {'student.layers': ('4', '2'), 'objectives.kl.weight': ('1', None), 'objectives.mse.weight': (None, '1')}
    >>> differing([one, {**one, "data": {"max_length": 64}}], [{**one, "data": {"max_length": 128}}, {}])
    {'data.max_length': ('128 (default)', '64')}
    """
    whole = whole or [{}] * len(recipes)
    given = [_named(recipe) for recipe in recipes]
    every = [_Values.of(recipe, _named(full)) for recipe, full in zip(given, whole, strict=True)]
    shown = [_Values.of(public(recipe), public(_named(full))) for recipe, full in zip(given, whole, strict=True)]
    found = {}
    for key in sorted(_keys(every), key=_section):
        if len({one.get(key) for one in every}) > 1:
            texts = tuple(one.told(key) for one in shown)
            # Two paths may end in the same name.
            found[key] = texts if len({one.get(key) for one in shown}) > 1 else tuple(one.told(key) for one in every)
    return found


def leave_out(recipes: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether some recipe leaves out a key that another one has, so that its default would be needed."""
    every = [_Values.of(_named(recipe), {}) for recipe in recipes]
    return any(key not in one.given for key in _keys(every) for one in every)


@dataclass(frozen=True)
class _Values:
    """The values of one recipe as text, by flat key.

    Attributes:
        given: Those that it gives.
        known: Those that it has by default, too.
    """

    given: Mapping[str, str]
    known: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Mapping[str, Any], whole: Mapping[str, Any]) -> _Values:
        given = dict(_flat(recipe))
        return cls(given, {**dict(_flat(whole)), **given})

    def get(self, key: str) -> str | None:
        return self.known.get(key)

    def told(self, key: str) -> str | None:
        value = self.known.get(key)
        return value if value is None or key in self.given else f"{value}{DEFAULT}"


def _named(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe whose task is a mapping, as it is where it has settings."""
    task = recipe.get("task")
    return {**recipe, "task": {"name": task}} if isinstance(task, str) else recipe


def _keys(every: Sequence[_Values]) -> list[str]:
    """Return the keys that some recipe gives, in their order, and those above them that another has as a single value.

    Such as `temperature` where one recipe has a schedule, `temperature.start`, and another the default.
    """
    keys = dict.fromkeys(key for one in every for key in one.given if not _is_hidden(key))
    above = {key[: dot.start()] for key in keys for dot in re.finditer(r"\.", key)}
    values = {key: {one.known.get(key) for one in every} - {None, "null"} for key in above}
    return list(dict.fromkeys([*keys, *(key for key in sorted(above) if values[key])]))


def _is_hidden(key: str) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in NOT_SHOWN)


def _section(key: str) -> int:
    section = key.partition(".")[0]
    return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)


def _flat(value: Any, above: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{above}.{key}" if above else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        names: list[str] = []
        for place, item in enumerate(value):
            own = dict(item) if isinstance(item, Mapping) else {"": item}
            names.append(str(own.pop("name", place)))
            repeated = names.count(names[-1])
            name = names[-1] if repeated == 1 else f"{names[-1]}_{repeated}"
            if above.rpartition(".")[2] == "objectives":
                own.setdefault("weight", 1.0)
            yield from _flat(own or "yes", f"{above}.{name}")
    elif isinstance(value, (list, tuple)):
        yield above, ", ".join(map(_text, value)) or "[]"
    else:
        yield above, _text(value)


def _text(value: Any) -> str:
    """Return a plain value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
