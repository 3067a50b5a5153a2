"""In which settings the recipes of several runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_distill.report.recipe_facts import public

# Settings of where a run is stored, what it is called and what is reported of it, which do not change the student.
NOT_SHOWN = ("training.output_dir", "training.run_name", "training.logging_dir", "training.project", "hub", "report")
# Sections in the order in which they are shown; the others follow.
SECTIONS = ("task", "data", "teacher", "student", "chain", "generations", "objectives", "stages", "training")


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, ...]]:
    """Return the keys whose values differ -> the value in each recipe as text; None where a recipe does not have it.

    Entries of a list are told apart by their names, not by their places: `objectives.kl.temperature`. A weight that an
    objective does not have is 1.

    >>> one = {"student": {"layers": 4}, "objectives": [{"name": "kl"}], "training": {"seed": 1, "output_dir": "a"}}
    >>> two = {"student": {"layers": 2}, "objectives": [{"name": "mse"}], "training": {"seed": 1, "output_dir": "b"}}
    >>> differing([one, two])
    {'student.layers': ('4', '2'), 'objectives.kl.weight': ('1', None), 'objectives.mse.weight': (None, '1')}
    """
    every = [dict(_flat(recipe)) for recipe in recipes]
    keys = sorted(dict.fromkeys(key for one in every for key in one), key=_section)
    shown = [dict(_flat(public(recipe))) for recipe in recipes]
    found = {}
    for key in keys:
        if any(key == place or key.startswith(f"{place}.") for place in NOT_SHOWN):
            continue
        if any(one.get(key) != every[0].get(key) for one in every):
            texts = tuple(one.get(key) for one in shown)
            # Two paths may end in the same name.
            found[key] = texts if len(set(texts)) > 1 else tuple(one.get(key) for one in every)
    return found


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
        yield above, ", ".join(map(_text, value))
    else:
        yield above, _text(value)


def _text(value: Any) -> str:
    """Return a plain value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
