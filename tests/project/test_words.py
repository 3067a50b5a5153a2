"""The words of the package: docstrings that say something by themselves, and one meaning for each name of a class."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hf_distill"
# Rooms and files whose docstrings are still to be rewritten. Only ever shorten this list.
UNDONE: tuple[str, ...] = ()
RIDDLES = {
    "only refers to another docstring": re.compile(r"\A(See|As) [^\n]*\Z"),
    "'Likewise'": re.compile(r"\bLikewise\b"),
    "'is no' instead of 'is not a'": re.compile(
        r"(?<!here )\b(is|are|was|were) no (?!better|longer|more|less|faster|smaller)[a-z]"
    ),
}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def riddles(path: Path) -> list[str]:
    """Return a line for each docstring of a file that a reader cannot understand by itself."""
    return [
        f"{name_of(path)}:{line}: {what}"
        for line, text in docstrings(path)
        for what, pattern in RIDDLES.items()
        if pattern.search(text)
    ]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


FILES = sorted(PACKAGE.rglob("*.py"))
DONE = [path for path in FILES if not name_of(path).startswith(UNDONE)]


def test_a_docstring_says_it_itself() -> None:
    """`See X` and `Likewise` send a reader through the package; "is no" is a riddle to many who read English."""
    assert len(DONE) > 100
    assert [line for path in DONE for line in riddles(path)] == []


def test_a_class_name_has_one_meaning() -> None:
    """Two classes of one name in two rooms: a reader, and an editor's search, find the wrong one."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in DONE]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, number in names.items() if number > 1] == []
