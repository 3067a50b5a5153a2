"""What `transformers.TrainingArguments` declares, read from its source: importing it takes seconds.

Whoever writes a recipe waits for the names and types of the training arguments at every mistake. They stand in the text
of one module; importing that module imports torch and half of what is installed around it.
"""

from __future__ import annotations

import ast
import builtins
import typing
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """One argument.

    Attributes:
        annotation: Its type. An enumeration of Transformers is one of the same name and values.
        choices: The words it takes, where they are listed.
    """

    annotation: Any
    choices: list[str] | None


def declarations() -> dict[str, Declaration | None]:
    """Return what each argument is declared as, in order; None for one that only the imported class can tell.

    Empty where the source is not there or has another shape than is known here: the class has to be asked.
    """
    folder = package_folder()
    try:
        tree = _parse(folder, "training_args")
        owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    except (OSError, SyntaxError, StopIteration):
        return {}
    if owner.bases:  # which may declare more
        return {}
    names = _Names(folder, tree)
    return {
        node.target.id: _declaration(node, names)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def package_folder() -> Path:
    """Return where Transformers is installed, without importing it."""
    spec = find_spec("transformers")
    return Path(next(iter(spec.submodule_search_locations or ()), "") if spec else "")


def _parse(folder: Path, module: str) -> ast.Module:
    return ast.parse((folder / f"{module}.py").read_bytes())


def _declaration(node: ast.AnnAssign, names: _Names) -> Declaration | None:
    try:
        # No builtins: what stands there is a type, made of names that are looked up in `names`.
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
    """What names in an annotation mean: Python's own types, and enumerations of Transformers."""

    def __init__(self, folder: Path, tree: ast.Module) -> None:
        super().__init__({**vars(builtins), **vars(typing)})
        self.folder = folder
        self.tree = tree

    def __missing__(self, name: str) -> Any:
        self[name] = Enum(name, _members(self._definition(name)))
        return self[name]

    def _definition(self, name: str) -> ast.ClassDef:
        """Find a class in the module, or in the one of the same package that it is imported from."""
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
        TypeError: It is another class.
    """
    if not any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in definition.bases):
        raise TypeError(definition.name)
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in definition.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
