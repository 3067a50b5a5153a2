"""Parse a recipe's YAML into plain data, with the line of every key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hf_distill.errors import UserError, first_line
from hf_distill.locations import sibling
from hf_distill.mistakes import describe, join
from hf_distill.recipe.origin import Origin

# Recipes are small. Above this size the cause is an alias that contains itself, or aliases of aliases.
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_BYTES = 2**18  # read in half a second, whatever is in it

TOO_LARGE = "too deep or too large for a recipe. Does an alias contain itself?"
TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """A recipe as plain data, with the origin of each key.

    `lines`, `overrides` and `hints` are those of `origin.Origin`.

    Attributes:
        given: All overrides, in their order.
        refused: Overrides that could not be applied, with a message for each.
    """

    file: str
    data: dict[str, Any]
    lines: dict[str, int]
    overrides: dict[str, str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def origin(self) -> Origin:
        """The origin of all keys."""
        return Origin(self.file, self.lines, self.overrides, self.hints)

    def messages(self, mistakes: Sequence[tuple[str, str]]) -> list[str]:
        """Return a line for each mistake, in the order of the file; those of overrides come last.

        Args:
            mistakes: Key path and message of each; the messages of `refused` are added.
        """
        origin = self.origin

        def place(path: str) -> tuple[int, int]:
            at = origin.nearest(path)
            if at in origin.overrides:
                return 1, self.given.index(origin.overrides[at])
            return 0, origin.lines.get(at, 1)

        found = [(place(path), f"{origin.locate(path)}: {what}") for path, what in mistakes]
        found += [((1, self.given.index(one)), f"override '{one}': {what}") for one, what in self.refused]
        return [line for _, line in sorted(found, key=itemgetter(0))]


class Fault(Exception):
    """One or more mistakes in a recipe's text.

    Args:
        faults: Line (from 1; 0 for the whole file) and message of each.
    """

    def __init__(self, *faults: tuple[int, str]) -> None:
        super().__init__(*faults)
        self.faults = faults


def read_document(path: str | Path) -> Document:
    """Read a recipe file.

    Raises:
        UserError: The file cannot be read or is not a YAML mapping.
    """
    return document_of(lambda: _text(Path(path)), str(path))


def document_of(read: Callable[[], str], file: str) -> Document:
    """Return a recipe from its text.

    Args:
        read: Returns the text.
        file: How messages call it.

    Raises:
        UserError: It cannot be read or is not a YAML mapping.
    """
    try:
        data, lines = parse(read())
        if not isinstance(data, dict):
            raise Fault((1, f"a recipe is a mapping (task: ..., data: ...), found {describe(data)}."))
    except Fault as fault:
        places = {line: f"{file}:{line}" if line else file for line, _ in fault.faults}
        raise UserError(*(f"{places[line]}: {what}" for line, what in sorted(fault.faults))) from None
    return Document(file, data, lines)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Fault((0, f"no such file (looked from {Path.cwd()}).{sibling(str(path))}")) from None
    except IsADirectoryError:
        raise Fault((0, "this is a directory. Name the recipe inside it.")) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise Fault((0, f"cannot be read: {reason}.")) from None
    if len(raw) > MAX_BYTES:
        raise Fault((0, f"larger than {MAX_BYTES // 2**10} KB, which is too large for a recipe."))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Fault((line, f"not UTF-8 text (byte 0x{raw[error.start]:02x}). Save the file as UTF-8.")) from None


def parse(text: str) -> tuple[Any, dict[str, int]]:
    """Return the plain data of one YAML document, and the line of every key path.

    The YAML nodes are converted here instead of by the library, to get their lines and so that no tag can construct an
    object.

    Raises:
        Fault: The text is not YAML 1.2, repeats a key, or holds more than plain values.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_size(text)
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        raise Fault(_reword(error)) from None
    except RecursionError:
        raise Fault((1, "nested too deeply.")) from None
    except YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = getattr(error, "reason", None) or first_line(error)
        raise Fault((line, f"not valid YAML: {reason}.")) from None
    if node is None:
        raise Fault((1, "empty."))
    walk = _Walk(yaml.constructor)
    data = walk.value(node, "", 0)
    if walk.faults:
        raise Fault(*walk.faults)
    return data, walk.lines


def _check_size(text: str) -> None:
    """Refuse a text that is too large or too deep, before nodes are built, which would take many seconds.

    Raises:
        Fault: The text is too large or too deep.
        YAMLError: The text is not YAML.
    """
    values = depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        values += isinstance(event, NodeEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        # A mapping's keys are nodes too.
        if values > 2 * MAX_VALUES or depth > 2 * MAX_DEPTH:
            raise Fault((event.start_mark.line + 1, TOO_LARGE))


class _Walk:
    """Turns YAML nodes into plain data."""

    def __init__(self, constructor: Any) -> None:
        self.lines: dict[str, int] = {}
        self.faults: list[tuple[int, str]] = []
        self.values = 0
        self.read = {
            "null": lambda node: None,
            "str": lambda node: node.value,
            "timestamp": lambda node: node.value,  # as in YAML 1.2: `revision: 2024-01-01` is text
            "bool": constructor.construct_yaml_bool,
            "int": constructor.construct_yaml_int,
            "float": constructor.construct_yaml_float,
        }

    def value(self, node: Node, path: str, depth: int) -> Any:
        """Return the data of `node`, and record the lines of all keys below it."""
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise Fault((node.start_mark.line + 1, TOO_LARGE))
        kind = str(node.tag).removeprefix(TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return self.mapping(node, path, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            items = []
            for index, item in enumerate(node.value):
                self.lines[join(path, index)] = item.start_mark.line + 1
                items.append(self.value(item, join(path, index), depth + 1))
            return items
        if not isinstance(node, ScalarNode) or kind not in self.read:
            return self.fault(node, path, f"has the tag '{kind}'. A recipe holds plain values only.")
        try:
            value = self.read[kind](node)
            str(value).encode()
        except (ValueError, KeyError, IndexError):  # `!!int x`, `!!int`; UnicodeEncodeError: half of a surrogate pair
            return self.fault(node, path, f"{node.value!a} cannot be read as {kind}.")
        return value

    def mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        """Return a mapping; keys must be text and unique."""
        data: dict[str, Any] = {}
        for key, item in node.value:
            if key.tag != f"{TAG}str":
                what = f" Put {key.value} in quotes." if isinstance(key, ScalarNode) else ""
                if key.value == "<<":
                    what = " '<<' (merge) is YAML 1.1 and not supported: write the keys out."
                self.fault(key, path, f"keys must be text.{what}")
                continue
            inner = join(path, key.value)
            if key.value in data:
                self.fault(key, inner, f"given twice, first on line {self.lines[inner]}. Keep one.")
                continue
            self.lines[inner] = key.start_mark.line + 1
            data[key.value] = self.value(item, inner, depth + 1)
        return data

    def fault(self, node: Node, path: str, what: str) -> None:
        """Record a mistake."""
        self.faults.append((node.start_mark.line + 1, f"{path}: {what}" if path else what))


def _reword(error: MarkedYAMLError) -> tuple[int, str]:
    """Return line and message of a syntax error, without the terms of a parser."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    opened = error.context_mark.line + 1 if error.context_mark else line
    problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        return line, "contains a tab. YAML is indented with spaces."
    if problem.startswith("mapping values"):
        return line, (
            "not valid YAML: a ':' is not allowed here. Is the indentation right, does the line above read "
            "'key: value' (with the space), and is text with ': ' in it in quotes?"
        )
    if problem.startswith("expected ',' or"):
        bracket = "[" if "']'" in problem else "{"
        return opened, f"not valid YAML: the '{bracket}' opened here is not closed, or a comma is missing in it."
    if problem.startswith("found unexpected end") or "scanning a quoted scalar" in str(error.context):
        return opened, "not valid YAML: the quote opened here is not closed."
    if problem.startswith("expected <block end>"):
        return line, (
            "not valid YAML: this does not fit the lines above. Is the indentation right, and are quotes and "
            "brackets in pairs?"
        )
    if problem.startswith("could not find expected ':'"):
        return line, "not valid YAML: text without a key. Is a ':' missing here or on the line above?"
    if "cannot start any token" in problem:
        return line, f"not valid YAML: text cannot start with {problem.split()[2]}. Put it in quotes."
    if "undefined alias" in problem:
        return line, f"not valid YAML: {problem.removeprefix('found ')}. Text that starts with '*' goes in quotes."
    if "another document" in problem:
        return line, "a second document starts at '---'. One file holds one recipe."
    problem = problem.replace("expected the node content, but", "a value was expected,").replace(
        "'<stream end>'", "the end"
    )
    return line, f"not valid YAML: {problem}."
