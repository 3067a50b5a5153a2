"""Look at the source of a class or function from outside, without running it: does it exist, which keys has it?"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.mistakes import join, unknown_key

_OURS = __name__.partition(".")[0]
_LARGEST = 2**20


def find_file(module: str) -> Path | None:
    """Return the source file of an installed module; None if it is not there, or has none. Nothing is imported."""
    path: Any = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    file = Path(spec.origin) if spec and spec.origin else None
    return file if file is not None and file.suffix == ".py" and file.is_file() else None


def _spec(name: str, path: Any) -> ModuleSpec | None:
    # Not importlib.util.find_spec, which imports the packages around a module.
    for finder in sys.meta_path:
        with suppress(Exception):
            if (found := finder.find_spec(name, path)) is not None:
                return found
    return None


@dataclass(frozen=True)
class _Class:
    """What the source says of a class.

    Attributes:
        fields: Its keys, and whether each must be given.
        known: Whether these are all: bases may be in files that are not looked at.
        derived: Whether it derives from the wanted class; None if that is not known.
        decorated: Whether `@component`, or a decorator that may be it, stands above it.
    """

    fields: Mapping[str, bool]
    known: bool
    derived: bool | None
    decorated: bool = True


def class_mistakes(
    file: Path, module: str, name: str, base: type, given: Mapping[str, Any], path: str
) -> Iterator[tuple[str, str]]:
    """Yield key path and message for what is wrong with an entry, as far as the source of its class says.

    Args:
        file: The source of the module.
        module: Its name.
        name: Name of the class.
        base: The class that it must derive from.
        given: The keys of the entry.
        path: Key path of the entry.
    """
    at = join(path, "name")
    try:
        tree = _parsed(file, module)
    except UserError as error:
        yield at, str(error)
        return
    found = _class(tree, name, base)
    if found is None:
        if not _binds(tree, name):
            yield at, f"'{module}:{name}' does not exist: the module has no such name."
        return
    if found.known and not found.derived:
        yield at, f"'{module}:{name}' is not a subclass of {base.__module__}.{base.__name__}."
    elif not found.decorated:
        yield (
            at,
            f"'{module}:{name}' is not a recipe entry. Put `@component` (from hf_distill.component) above the class.",
        )
    elif found.known:
        for key in given:
            if key not in found.fields:
                yield join(path, key), unknown_key(key, found.fields)
        for key, needed in found.fields.items():
            if needed and key not in given:
                yield join(path, key), "missing."


def function_mistake(file: Path, module: str, name: str) -> str | None:
    """Return what is wrong with a metric `module:function`, as far as its source says; None if nothing is."""
    try:
        tree = _parsed(file, module)
    except UserError as error:
        return str(error)
    if not _binds(tree, name):
        return f"'{module}:{name}' is not a function: wanted one in the module {module}."
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found or found[-1].decorator_list or found[-1].args.vararg:
        return None
    arguments = [*found[-1].args.posonlyargs, *found[-1].args.args]
    most, least = len(arguments), len(arguments) - len(found[-1].args.defaults)
    if any(least <= count <= most for count in (2, 3)):
        return None
    return (
        f"'{module}:{name}' must take (predictions, references) or (predictions, references, prompts): lists of texts."
    )


def _parsed(file: Path, module: str) -> ast.Module:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"cannot import '{module}': {file} is larger than {_LARGEST // 2**20} MB.")
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f" at {file}:{line}" if line else ""
        what = getattr(error, "msg", None) or str(error)
        raise UserError(f"cannot import '{module}' ({type(error).__name__}: {what}{where}).") from None
    except OSError as error:
        raise UserError(f"cannot import '{module}': {file} cannot be read ({error.strerror}).") from None


def _class(tree: ast.Module, name: str, base: type, inside: tuple[str, ...] = ()) -> _Class | None:
    """Return what the source says of one of its classes; None if it defines none of this name."""
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not nodes or name in inside:
        return None
    node = nodes[-1]
    bases = [_base(tree, one, base, (*inside, name)) for one in node.bases]
    fields = {key: needed for one in reversed(bases) for key, needed in one.fields.items()}
    fields |= dict(_own_fields(node))
    known = all(one.known for one in bases)
    derived = True if any(one.derived for one in bases) else (False if known else None)
    names = {ast.unparse(one).partition("(")[0].rpartition(".")[2] for one in node.decorator_list}
    return _Class(fields, known and names <= {"component"}, derived, bool(names))


def _own_fields(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(line.annotation):
            yield line.target.id, line.value is None


def _base(tree: ast.Module, node: ast.expr, wanted: type, inside: tuple[str, ...]) -> _Class:
    if isinstance(node, ast.Name) and (mine := _class(tree, node.id, wanted, inside)) is not None:
        return mine
    kind = _imported(tree, node)
    if kind is None:
        return _Class({}, False, None)
    made: Mapping[str, Any] = getattr(kind, "__pydantic_fields__", {})
    return _Class({key: bool(one.is_required()) for key, one in made.items()}, True, issubclass(kind, wanted))


def _imported(tree: ast.Module, node: ast.expr) -> type | None:
    """Return the class of this package, or `object` and the like, that a base names; None for any other."""
    written = ast.unparse(node)
    if written in ("object", "ABC", "abc.ABC"):
        return object
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and not line.level and (line.module or "").partition(".")[0] == _OURS:
            for one in line.names:
                if (one.asname or one.name) == written:
                    with suppress(ImportError, AttributeError):
                        found: Any = getattr(import_module(str(line.module)), one.name)
                        return found if isinstance(found, type) else None
    return None


def _binds(tree: ast.Module, name: str) -> bool:
    """Return whether a module may have a name: it defines, assigns or imports it somewhere, or imports all of another.

    A module that defines `__getattr__` may have any.
    """
    return any(one in (name, "*", "__getattr__") for node in ast.walk(tree) for one in _bound(node))


def _bound(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(one.asname or one.name).partition(".")[0] for one in node.names]
    return (node.id,) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ()
