"""Read the fields of `transformers.TrainingArguments` from its source code, since importing it takes seconds.

Names and types of the training arguments are needed to report any mistake in a recipe. They are in the source of one
module; importing that module would also import torch and many other packages.
"""

from __future__ import annotations

import ast
import builtins
import typing
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# Where `DistillationArguments` is.
OWN = Path(__file__).parents[1] / "training_args.py"


class Declaration(NamedTuple):
    """One argument.

    Attributes:
        annotation: Its type. For an enumeration of Transformers, a new one with the same name and values.
        choices: The words it accepts; None if they are not listed.
    """

    annotation: Any
    choices: list[str] | None


def declarations() -> dict[str, Declaration | None]:
    """Return the declaration of each argument, in order; None for one that only the imported class can tell.

    Empty if the source is missing or has an unknown structure: the class must then be imported.
    """
    folder = package_folder()
    try:
        tree = _parse(folder, "training_args")
        owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    except (OSError, SyntaxError, StopIteration):
        return {}
    if owner.bases:  # a base class may declare more
        return {}
    names = _Names(folder, tree)
    return {
        node.target.id: _declaration(node, names)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def default_values() -> dict[str, Any]:
    """Return the default of each argument of `DistillationArguments`; without those that are computed."""
    places = (package_folder() / "training_args.py", "TrainingArguments"), (OWN, "DistillationArguments")
    found: dict[str, Any] = {}
    for file, name in places:
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError):
            return {}
        owner = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        for node in (node for one in owner for node in one.body if isinstance(node, ast.AnnAssign)):
            if isinstance(node.target, ast.Name):
                found.pop(node.target.id, None)
                found.update((node.target.id, ast.literal_eval(value)) for value in _plain_default(node.value))
    return found


def _plain_default(value: ast.expr | None) -> list[ast.expr]:
    """Return the default in a declaration if it is a plain value; else nothing."""
    if isinstance(value, ast.Call):
        value = next((item.value for item in value.keywords if item.arg == "default"), None)
    if isinstance(value, ast.UnaryOp):  # a negative number
        return [value] if isinstance(value.operand, ast.Constant) else []
    return [value] if isinstance(value, ast.Constant) else []


def package_folder() -> Path:
    """Return the folder of the installed Transformers, without importing it."""
    spec = find_spec("transformers")
    return Path(next(iter(spec.submodule_search_locations or ()), "") if spec else "")


def _parse(folder: Path, module: str) -> ast.Module:
    return ast.parse((folder / f"{module}.py").read_bytes())


def _declaration(node: ast.AnnAssign, names: _Names) -> Declaration | None:
    try:
        # Evaluated without builtins: an annotation consists of names, which are looked up in `names`.
        code = compile(ast.Expression(node.annotation), "training_args.py", "eval")
        annotation = eval(code, {"__builtins__": {}}, names)
        return Declaration(annotation, _choices(node.value))
    except (NameError, OSError, SyntaxError, TypeError, ValueError):
        return None


def _choices(value: ast.expr | None) -> list[str] | None:
    """Return the `choices` in the metadata of `field(...)`.

    Raises:
        ValueError: They are computed.
    """
    arguments = value.keywords if isinstance(value, ast.Call) else []
    for metadata in (item.value for item in arguments if item.arg == "metadata"):
        pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
        for key, words in pairs:
            if isinstance(key, ast.Constant) and key.value == "choices":
                return list(ast.literal_eval(words))
    return None


class _Names(dict[str, Any]):
    """Name -> type for annotations: Python's own types, and enumerations of Transformers."""

    def __init__(self, folder: Path, tree: ast.Module) -> None:
        super().__init__({**vars(builtins), **vars(typing)})
        self.folder = folder
        self.tree = tree

    def __missing__(self, name: str) -> Any:
        self[name] = Enum(name, _members(self._definition(name)))
        return self[name]

    def _definition(self, name: str) -> ast.ClassDef:
        """Return the definition of a class from the module, or from the module that it is imported from."""
        sources = [
            node.module
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and node.level == 1 and name in [alias.name for alias in node.names]
        ]
        for tree in (self.tree, *(_parse(self.folder, source) for source in sources if source)):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return node
        raise KeyError(name)


def _members(definition: ast.ClassDef) -> dict[str, str]:
    """Return names and values of an enumeration of words.

    Raises:
        TypeError: The class is not an enumeration of words.
    """
    if not any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in definition.bases):
        raise TypeError(definition.name)
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in definition.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
