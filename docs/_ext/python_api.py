"""The Python reference: the names that `tests/project/test_public_api.py` holds still, each with its docstring."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging

from hf_distill.mistakes import attributes
from hf_distill.recipe.docs_tables import key_rows

logger = logging.getLogger(__name__)
TESTS = Path(__file__).parents[2] / "tests" / "project"
# Page -> packages whose `__all__` it shows; `extending` shows what else docs/extending.md builds on.
PAGES: dict[str, tuple[str, ...]] = {
    "trainer": ("",),
    "objectives": ("objectives",),
    "teachers": ("teachers",),
    "students": ("students",),
    "tasks": ("tasks",),
    "rows": ("rows",),
    "data": ("data",),
    "models": ("models", "metrics"),
    "extending": (),
}


@cache
def _kept() -> ModuleType:
    """Return the test that holds the public names."""
    spec = importlib.util.spec_from_file_location("test_public_api", TESTS / "test_public_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(page: str) -> dict[str, Any]:
    """Return path -> object of what a page shows, in the order of the package's list."""
    kept = _kept()
    if page == "extending":
        paths = dict.fromkeys([*kept.CONTRACTS, *kept.NAMED])
        shown = [value for other in PAGES if other != page for value in names(other).values()]
        found = {f"hf_distill.{path}": kept.find(path) for path in paths}
        return {path: value for path, value in found.items() if not any(value is one for one in shown)}
    found = {}
    for package in PAGES[page]:
        for name in kept.find(package).__all__:
            path = ".".join(filter(None, ("hf_distill", package, name)))
            found[path] = getattr(kept.find(package), name)
    return found


def page(name: str) -> Callable[[], str]:
    """Return the function that writes a page's text."""
    return lambda: "\n".join(_entry(path, value) for path, value in names(name).items())


def _entry(path: str, value: Any) -> str:
    if inspect.isclass(value):
        lines = [f".. autoclass:: {path}", "   :members:"]
        lines += [] if issubclass(value, Exception) else ["   :show-inheritance:"]
    elif inspect.isroutine(value):
        lines = [f".. auto{'method' if inspect.ismethod(value) else 'function'}:: {path}"]
    else:
        return _constant(path, value)
    if not inspect.getdoc(value):
        logger.warning("public name without a docstring: %s", path, type="api")
    return "\n".join([f"## {path.rpartition('.')[2]}", "", "```{eval-rst}", *lines, "```", ""])


def _constant(path: str, value: Any) -> str:
    if isinstance(value, Mapping):
        told = "Name in a recipe and what it stands for: " + ", ".join(f"``{name}``" for name in value) + "."
    elif get_args(value):
        told = "One of " + ", ".join(f"``{one}``" for one in get_args(value)) + "."
    else:
        told = f"Here ``{value}``."
    block = "\n".join(["```{eval-rst}", f".. py:data:: {path}", "", f"   {told}", "```"])
    return f"## {path.rpartition('.')[2]}\n\n{block}\n"


def _describe(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Give each field of a recipe entry, inherited ones too, its values and default, as docs/recipe.md does."""
    if what != "class" or not hasattr(value, "__pydantic_fields__"):
        return
    start = next((number for number, line in enumerate(lines) if line.strip() == "Attributes:"), len(lines))
    end = next((n for n in range(start + 1, len(lines)) if lines[n][:1].strip()), len(lines))
    told = [f"    {key}: {text} ({said})" for key, text, said in _fields(value)]
    lines[start:end] = ["", "Attributes:", *told, ""] if told else []


def _in_one_line(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Take the docstring of a property as that of a method: napoleon thinks that a type stands before its colon."""
    if what == "property":
        lines[:] = GoogleDocstring(inspect.getdoc(value) or "", app.config, app, "method").lines()


def _fields(cls: type) -> list[tuple[str, str, str]]:
    helps = attributes(cls)
    found = []
    for quoted, values, default, _ in key_rows(cls):
        said = ", ".join(filter(None, (values, "required" if default == "required" else f"default {default}")))
        key = quoted.strip("`")
        found.append((key, helps[key], re.sub(r"\[(.+?)\]\(.+?\)", r"\1", said)))
    return found


def _shorten(app: Sphinx, what: str, name: str, value: Any, *rest: Any) -> tuple[str, str] | None:
    """Show the constructor of a class of settings with its defaults; the types are in its list of fields."""
    if what != "class" or not is_dataclass(value):
        return None
    if value.__name__ == "DistillationArguments":
        own = [line.partition(".")[2].replace(" = ", "=") for line in _kept().own_arguments()]
        return f"(output_dir, *, {', '.join(own)}, **training_arguments)", ""
    return _kept().parameters(value).replace("<factory>", "..."), ""


def _resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element) -> nodes.Node | None:
    """Show a type that has no entry as it is, if there is such a type; else Sphinx warns."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    return text if _exists(target) else None


@cache
def _exists(target: str) -> bool:
    parts = target.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        for part in parts[depth:]:
            found = getattr(found, part, None)
        return found is not None
    return parts[0] in _written()


@cache
def _written() -> Mapping[str, str]:
    """Return the names that files of the package define or import, those for types too -> where."""
    found: dict[str, str] = {}
    for path in (Path(__file__).parents[2] / "hf_distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update({alias.asname or alias.name: path.name for alias in node.names})
            elif isinstance(node, ast.ClassDef):
                found[node.name] = path.name
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                found[getattr(target, "id", "")] = path.name
    return found


def connect(app: Sphinx) -> None:
    """Connect what makes docstrings and types readable."""
    app.connect("autodoc-process-docstring", _describe, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _in_one_line, priority=600)  # after it
    app.connect("autodoc-process-signature", _shorten)
    app.connect("missing-reference", _resolve)
