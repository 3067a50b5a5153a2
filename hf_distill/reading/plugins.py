"""Classes from outside that a recipe names, `module:Class`: imported, and found to be entries of its tables."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any, TypeVar

from hf_distill.errors import UserError

Part = TypeVar("Part")

PLUGIN = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def import_entry(module: str, name: str, base: type[Part]) -> type[Part]:
    """Return a class from a module.

    Args:
        module: Its dotted name.
        name: Of the class.
        base: What it must be a subclass of.

    Raises:
        UserError: The module cannot be imported, or what has the name is no entry.
    """
    try:
        outside = import_module(module)
    except Exception as error:  # whatever the module does on import: to the recipe's author it is one line
        reason = next(iter(str(error).splitlines()), "")
        what = f"cannot import '{module}' ({type(error).__name__}: {reason})."
        raise UserError(f"{what} The module must be installed or on PYTHONPATH.") from error
    found: Any = getattr(outside, name, None)
    if fault := _unfit(found, base):
        raise UserError(f"'{module}:{name}' {fault}")
    entry: type[Part] = found
    return entry


def _unfit(found: Any, base: type) -> str | None:
    """Return why what was imported cannot be an entry of `base`'s table; None if it can."""
    if found is None:
        return "does not exist: the module has no such name."
    if not isinstance(found, type) or not issubclass(found, base):
        return f"is not a subclass of {base.__module__}.{base.__name__}."
    if "__pydantic_validator__" not in vars(found):
        return "is not a recipe entry. Put `@component` (from hf_distill.component) above the class."
    if inspect.isabstract(found):
        missing: Any = getattr(found, "__abstractmethods__", ())
        return f"is abstract: it does not define {', '.join(sorted(missing))}."
    if not isinstance(getattr(found, "name", None), str):
        return "has no name. Add `name: ClassVar[str] = ...` to the class."
    return None
