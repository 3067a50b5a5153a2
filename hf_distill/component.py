"""The decorator that makes a class a recipe entry: a frozen, keyword-only, strictly checked dataclass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Class = TypeVar("Class")

# Strict: `weight: "0.5"` is a mistake, not a number; YAML already tells numbers, texts and booleans apart.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def component(cls: type[Class]) -> type[Class]:
    """Make `cls` a recipe entry.

    `{name: kl, temperature: 2}` in a recipe and `KLDivergence(temperature=2)` in Python then build the same
    object through the same checks. Nothing heavy may happen in a component's constructor: reading a
    recipe must stay free.
    """
    return dataclass(frozen=True, kw_only=True, config=STRICT)(cls)


def entry(instance: Any) -> dict[str, Any]:
    """Return the recipe entry that builds `instance`: its name and the fields that differ from the default.

    >>> from hf_distill.objectives import KLDivergence
    >>> entry(KLDivergence(temperature=4.0))
    {'name': 'kl', 'temperature': 4.0}
    """
    values = {
        field.name: getattr(instance, field.name)
        for field in fields(instance)
        if field.init and getattr(instance, field.name) != field.default
    }
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"name": instance.name, **plain}
