"""The decorator that makes a class a recipe entry: a frozen, keyword-only, strictly checked dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import wraps
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform  # in typing from Python 3.11 on

from hf_distill.errors import FieldError

Class = TypeVar("Class")

# Strict: `weight: "0.5"` is a mistake, since YAML has separate types for numbers, texts and booleans.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, field))
def component(cls: type[Class]) -> type[Class]:
    """Make `cls` a recipe entry.

    `{name: kl, temperature: 2}` in a recipe and `KLDivergence(temperature=2)` in Python then build the same object
    with the same checks and the same messages (`FieldError`). A component's constructor must not load or compute
    anything heavy: reading a recipe must stay fast.
    """
    # pydantic's decorator has a type of its own, which mypy does not know as a class without pydantic's plugin.
    made = cast("type[Class]", dataclass(frozen=True, kw_only=True, config=STRICT)(cls))
    made.__init__ = _with_our_messages(made.__init__)  # type: ignore[method-assign]
    return made


def _with_our_messages(construct: Callable[..., None]) -> Callable[..., None]:
    @wraps(construct)
    def constructed(self: Any, *unnamed: Any, **fields: Any) -> None:
        cls = type(self)
        owner = getattr(cls, "name", cls.__name__)
        if unnamed:
            first = next(iter(cls.__pydantic_fields__), "field")
            found = f"wanted keyword arguments, as in {cls.__name__}({first}=...); found {len(unnamed)} positional."
            raise FieldError(owner, [("", found)])
        try:
            construct(self, **fields)
        except ValidationError as error:
            from hf_distill.mistakes import explain

            raise FieldError(owner, list(explain(error, fields, "", cls))) from None

    return constructed


def settings(instance: Any, *, whole: bool = False) -> dict[str, Any]:
    """Return the fields of a component as a recipe would give them.

    Args:
        instance: The component.
        whole: All fields; by default those that differ from their default.
    """
    values = {
        # Not `dataclasses.fields`, which does not see the default factories of pydantic's `Field`.
        name: getattr(instance, name)
        for name, info in type(instance).__pydantic_fields__.items()
        if whole or getattr(instance, name) != info.get_default(call_default_factory=True)
    }
    return {key: _written(value, whole) for key, value in values.items()}


def _written(value: Any, whole: bool) -> Any:
    if (fields := getattr(type(value), "__pydantic_fields__", None)) is not None:  # a component inside another one
        named = hasattr(value, "name") and "name" not in fields
        return entry(value, whole=whole) if named else settings(value, whole=whole)
    if isinstance(value, dict):
        return {key: _written(item, whole) for key, item in value.items()}
    return [_written(item, whole) for item in value] if isinstance(value, tuple | list) else value


def entry(instance: Any, *, whole: bool = False) -> dict[str, Any]:
    """Return the recipe entry that builds `instance`: its name, and fields as `settings` returns them.

    >>> from hf_distill.objectives import KLDivergence
    >>> entry(KLDivergence(temperature=4.0))
    {'name': 'kl', 'temperature': 4.0}
    """
    return {"name": instance.name, **settings(instance, whole=whole)}
