"""The decorator that makes a class a recipe entry: a frozen, keyword-only, strictly checked dataclass."""

from __future__ import annotations

from dataclasses import field
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform  # in typing from Python 3.11 on

Class = TypeVar("Class")

# Strict: `weight: "0.5"` is a mistake, not a number; YAML already tells numbers, texts and booleans apart.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, field))
def component(cls: type[Class]) -> type[Class]:
    """Make `cls` a recipe entry.

    `{name: kl, temperature: 2}` in a recipe and `KLDivergence(temperature=2)` in Python then build the same
    object through the same checks. Nothing heavy may happen in a component's constructor: reading a
    recipe must stay free.
    """
    # Without pydantic's mypy plugin its decorator has a type of its own.
    return cast("type[Class]", dataclass(frozen=True, kw_only=True, config=STRICT)(cls))


def settings(instance: Any) -> dict[str, Any]:
    """Return the fields of a component that differ from their default, as a recipe would give them."""
    values = {
        # Not `dataclasses.fields`: it does not see the default factories that pydantic's `Field` declares.
        name: getattr(instance, name)
        for name, info in type(instance).__pydantic_fields__.items()
        if getattr(instance, name) != info.get_default(call_default_factory=True)
    }
    return {key: _written(value) for key, value in values.items()}


def _written(value: Any) -> Any:
    if hasattr(type(value), "__pydantic_fields__"):  # a component inside another one
        return entry(value) if hasattr(value, "name") else settings(value)
    return [_written(item) for item in value] if isinstance(value, tuple | list) else value


def entry(instance: Any) -> dict[str, Any]:
    """Return the recipe entry that builds `instance`: its name and the fields that differ from the default.

    >>> from hf_distill.objectives import KLDivergence
    >>> entry(KLDivergence(temperature=4.0))
    {'name': 'kl', 'temperature': 4.0}
    """
    return {"name": instance.name, **settings(instance)}
