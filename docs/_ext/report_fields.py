"""The keys of report.json, from the classes that it is written of."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from hf_distill.mistakes import attributes
from hf_distill.report.files import DERIVED
from hf_distill.report.report import Report
from hf_distill.report.results import ModelResult

# Keys that are computed when the file is written -> what holds their description.
COMPUTED: dict[type, tuple[str, ...]] = {Report: ("verdict", *DERIVED), ModelResult: ("undefined",)}
TYPES = {
    "str": "text",
    "float": "number",
    "Value": "number",
    "int": "whole number",
    "bool": "true, false",
    "Any": "any",
}


def markdown() -> str:
    """Return a table for the report, and one for each class of values in it."""
    return "\n".join(_section(cls) for cls in _classes())


def _classes() -> list[type]:
    """Return the report and every class of values below it, each after the one that has it."""
    found: list[type] = [Report]
    for cls in found:
        found += [inner for field in dataclasses.fields(cls) for inner in _inner(cls, field) if inner not in found]
    return found


def _inner(cls: type, field: dataclasses.Field[Any]) -> Iterator[type]:
    owners = [vars(sys.modules[base.__module__]) for base in cls.__mro__ if base is not object]
    for name in re.findall(r"\w+", str(field.type)):
        value = next((owner[name] for owner in owners if name in owner), None)
        if inspect.isclass(value) and dataclasses.is_dataclass(value):
            yield value


def _section(cls: type) -> str:
    title = "The file" if cls is Report else cls.__name__
    inner = {one.__name__ for one in _classes()}
    helps = attributes(cls)
    rows = [(field.name, _type(str(field.type), inner), helps.get(field.name, "")) for field in dataclasses.fields(cls)]
    rows += [(name, "", _said(getattr(cls, name))) for name in COMPUTED.get(cls, ())]
    lines = [f"| `{key}` | {kind} | {text} |" for key, kind, text in rows]
    return "\n".join(
        [f"## {title}", "", *([_said(cls), ""]), "| key | value | what it is |", "|---|---|---|", *lines, ""]
    )


def _said(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def _type(written: str, inner: set[str]) -> str:
    """Return a type in words.

    Examples: `Mapping[str, Value]` is "mapping of number", `tuple[Group, ...]` is "list of Group", with a link.
    """
    written = written.removesuffix(" | None")
    if (found := re.fullmatch(r"(?:tuple|Sequence|list)\[(.*?)(?:, \.\.\.)?\]", written)) is not None:
        return f"list of {_type(found[1], inner)}"
    if (found := re.fullmatch(r"Mapping\[str, (.*)\]", written)) is not None:
        return f"mapping of {_type(found[1], inner)}"
    if written in inner:
        return f"[{written}](#{written.lower()})"
    return TYPES.get(written, "text")
