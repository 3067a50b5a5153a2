"""Which packages are installed: their versions, the bounds of hf_distill, its extras, and which cannot be imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "hf-distill"
# Named also where hf_distill runs from a directory without being installed, so that its requirements are not known.
ALWAYS = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "huggingface_hub", "numpy")
# Compiled, and cheap to import: a broken installation shows when they are imported, not in their metadata.
IMPORTED = ("numpy", "pyarrow", "safetensors", "tokenizers", "torch")


def version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed, or its metadata is damaged."""
    try:
        return metadata.version(package) or None
    except Exception:  # damaged metadata raises whatever its parser does
        return None


def required() -> list[tuple[Requirement, str]]:
    """Return what hf_distill asks for, with the extra that asks (empty: none does), as far as it applies here.

    The list is empty if hf_distill is not installed but runs from a directory, or `packaging` cannot be imported.
    """
    try:
        from packaging.requirements import Requirement

        found = [Requirement(text) for text in metadata.requires(NAME) or []]
        return [(one, extra) for one in found for extra in _extras(one)]
    except Exception:
        return []


def _extras(requirement: Requirement) -> Iterator[str]:
    """Yield the extra to which a requirement belongs, if its marker holds here; empty for none."""
    marker = requirement.marker
    name = re.search(r"extra == ['\"]([^'\"]+)", str(marker))
    extra = name[1] if name else ""
    if marker is None or marker.evaluate({"extra": extra}):
        yield extra


def packages() -> dict[str, str | None]:
    """Return name -> version of what hf_distill needs; None if it is not installed."""
    return {
        name: version(name) for name in dict.fromkeys([*ALWAYS, *(one.name for one, extra in required() if not extra)])
    }


def extras() -> dict[str, dict[str, str | None]]:
    """Return extra -> name -> version of its packages; those of developers are left out."""
    found: dict[str, dict[str, str | None]] = {}
    for one, extra in required():
        if extra and extra != "dev" and not one.extras:
            found.setdefault(extra, {})[one.name] = version(one.name)
    return found


def problems() -> Iterator[str]:
    """Yield a line for each package that is missing, outside of its bound, or cannot be imported."""
    for one, extra in required():
        there = version(one.name)
        if there is None and not extra:
            yield f"{one.name} is not installed; hf_distill needs {one.name}{one.specifier}"
        elif there is not None and extra != "dev" and not one.specifier.contains(there, prereleases=True):
            yield f"{one.name} {there} is installed; hf_distill needs {one.specifier}"
    for name in IMPORTED:
        module, error = imported(name)
        if module is None and version(name):
            yield f"{name} cannot be imported: {error}"


def imported(name: str) -> tuple[Any, str]:
    """Return a module, or None and in a line why it cannot be imported."""
    try:
        return import_module(name), ""
    except Exception as error:  # a broken package raises anything: OSError of a library, AttributeError of a version
        return None, f"{type(error).__name__}: {error}"
