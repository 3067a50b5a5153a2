"""What others build on: names, parameters and defaults, held to `public_api.txt`.

Run this file to write that one anew: `python tests/project/test_public_api.py`. What differs between it and
`public_api_released.txt`, which `make release` writes, has to be named in CHANGELOG.md under "Unreleased".
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).with_name("public_api.txt")
RELEASED = Path(__file__).with_name("public_api_released.txt")
REMEDY = (
    "If users are to see this, run `python tests/project/test_public_api.py`, and tell them in CHANGELOG.md under "
    "Unreleased, in one entry: `Name` and each `parameter` that changed; a name that goes under Changed or Removed."
)
# A parameter that so many names get, or lose, at once is told once.
SEVERAL = 4

# Packages whose `__all__` is what Python users import from.
PACKAGES = ("", "objectives", "teachers", "students", "tasks", "rows", "data", "models", "metrics")
# Names that docs/extending.md and docs/caching.md have their readers import from elsewhere.
NAMED = (
    "cache.cache.Cache",
    "cache.format.Kept.of",
    "cache.replay.TrainingData",
    "cache.requirements.states_of",
    "component.component",
    "errors.UserError",
    "report.report.Report",
    "rows.inferred.infer_layout",
    "tasks.language.PadTokens",
    "tasks.language.pad_token_id",
    "tasks.tokenising.tokenise",
)
# Classes that others subclass: what docs/extending.md says of them.
CONTRACTS = (
    "data.augmentation.Augmentation",
    "objectives.base.Objective",
    "objectives.base.RowObjective",
    "objectives.base.PreparedObjective",
    "objectives.base.Term",
    "objectives.feature_terms.FeatureTerm",
    "objectives.features.FeatureObjective",
    "objectives.features.StackObjective",
    "objectives.softened.Softened",
    "rows.base.RowLayout",
    "students.base.Student",
    "tasks.base.Task",
    "teachers.base.Teacher",
)
TABLES = ("objectives.OBJECTIVES", "objectives.PRESETS", "students.STUDENTS", "tasks.TASKS", "teachers.TEACHERS")


def find(path: str) -> Any:
    """Return what a dotted path below `hf_distill` names."""
    names = path.split(".") if path else []
    for depth in range(len(names), -1, -1):
        try:
            found: Any = import_module(".".join(["hf_distill", *names[:depth]]))
        except ModuleNotFoundError:
            continue
        for name in names[depth:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def written(value: object) -> str:
    """Return a default without what differs between versions of Python or between two starts."""
    if isinstance(value, Enum):
        return repr(value.value)
    return getattr(value, "__qualname__", type(value).__qualname__) if " at 0x" in repr(value) else repr(value)


def parameters(function: Callable[..., Any]) -> str:
    """Return the names, kinds and defaults of what a function or a constructor takes."""
    found = inspect.signature(function)
    plain = [
        one.replace(annotation=one.empty, default=one.empty if one.default is one.empty else _Default(one.default))
        for one in found.parameters.values()
        if one.name != "self"
    ]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


class _Default:
    def __init__(self, value: object) -> None:
        self.text = written(value)

    def __repr__(self) -> str:
        return self.text


def members(cls: type, described: set[str]) -> Iterator[str]:
    """Yield methods, properties and class attributes of a class that others subclass, as far as they are described."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name, value in sorted(vars(cls).items()):
        if name.startswith("_") or name not in described - fields:
            continue
        if isinstance(value, property):
            yield f"{name}: property"
        elif callable(getattr(cls, name)):
            yield name + parameters(getattr(cls, name))
        else:
            yield f"{name} = {written(value)}"
    # Those without a value must be given one.
    for name in sorted(inspect.get_annotations(cls)):
        if name in described - fields and not hasattr(cls, name):
            yield f"{name}: wanted"


def own_arguments() -> Iterator[str]:
    """Yield the training arguments that are ours, or have a default of ours."""
    from transformers import TrainingArguments

    from hf_distill import DistillationArguments

    theirs = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(DistillationArguments):
        if field.name not in theirs or theirs[field.name] != field.default:
            yield f"DistillationArguments.{field.name} = {written(field.default)}"


def options() -> Iterator[str]:
    """Yield what the command line takes."""
    from hf_distill.cli import COMMANDS, OWN_WORDS, parser

    for action in parser()._actions:
        names = ", ".join(action.option_strings) or f"{action.metavar or action.dest} (nargs={action.nargs})"
        yield f"hf-distill {names}"
    yield from (f"hf-distill {command} ..." for command in (*COMMANDS, *OWN_WORDS))


def public() -> Iterator[str]:
    """Yield a line for everything that others build on."""
    for package in PACKAGES:
        for name in sorted(find(package).__all__):
            path = f"{package}.{name}".lstrip(".")
            value = getattr(find(package), name)
            if name == "DistillationArguments":  # which takes what `TrainingArguments` takes, and these
                yield from own_arguments()
            else:
                yield path + (parameters(value) if callable(value) else "")
    for path in NAMED:
        yield path + parameters(find(path))
    described = set(re.findall(r"\w+", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))
    for path in CONTRACTS:
        yield from (f"{path}.{member}" for member in members(find(path), described))
    for path in TABLES:
        for key, value in find(path).items():
            yield f"{path}[{key!r}]: {', '.join(getattr(one, '__name__', one.name) for one in _each(value))}"
    yield from options()


def _parts(line: str) -> tuple[str, dict[str, str]]:
    """Return the path in a line of `public_api.txt`, and parameter -> how it is taken; a value has the name ""."""
    if line.startswith("hf-distill "):
        return line, {}
    path, mark, rest = re.fullmatch(r"([\w.]+(?:\['[\w-]+'\])?)(?:(\(| = |: )(.*))?", line, re.DOTALL).groups("")  # type: ignore[union-attr]
    if mark != "(":
        return path, {"": rest} if rest else {}
    depth, texts = 0, [""]
    for sign in rest.removesuffix(")"):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            texts.append("")
        else:
            texts[-1] += sign
    named = [text.strip() for text in texts if text.strip() not in ("", "*", "/")]
    return path, {text.partition("=")[0].lstrip("*"): text for text in named}


def _name(path: str) -> str:
    """Return by what name users know a path: the last one of it."""
    inside = re.search(r"\['([\w-]+)'\]$", path)
    return inside[1] if inside else path.removeprefix("hf-distill ").removesuffix(" ...").split(", ")[-1].split(".")[-1]


def untold(before: list[str], now: list[str], unreleased: str) -> list[str]:
    """Return what differs between two public APIs and no entry of the changelog names.

    Args:
        before: Lines of the API of the last release.
        now: Lines of today's.
        unreleased: What stands under "Unreleased" in the changelog.
    """
    entries = [
        (section.partition("\n")[0].strip(), {word for span in spans for word in re.findall(r"-*\w[\w-]*", span)})
        for section in unreleased.split("\n### ")
        for entry in re.split(r"^[-*] ", section, flags=re.MULTILINE)[1:]
        if (spans := re.findall(r"`([^`]+)`", entry))
    ]
    old, new = dict(map(_parts, before)), dict(map(_parts, now))
    changed: dict[str, set[str]] = {}
    for path in old.keys() | new.keys():
        one, other = old.get(path), new.get(path)
        if one is None or other is None:
            changed[path] = set()  # it came, or went: its name is enough
        elif one != other:
            changed[path] = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {""}
    common = Counter(parameter for parameters in changed.values() for parameter in parameters)
    found = []
    for path, parameters in sorted(changed.items()):
        alone = {parameter for parameter in parameters if common[parameter] < SEVERAL}
        needed = [{_name(path), *alone}] if alone or not parameters else []
        needed += [{parameter} for parameter in parameters - alone]
        # What is gone may be named where it was new.
        places = {place for place, _ in entries} if path in new else {"Changed", "Removed"}
        for words in needed:
            if not any(words <= said for place, said in entries if place in places):
                found.append(f"{path}: {', '.join(f'`{word}`' for word in sorted(words))}")
    return list(dict.fromkeys(found))


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_the_public_api_is_what_it_was() -> None:
    """A parameter that is renamed on the way breaks scripts, plugins and recipes of others, and no test of ours."""
    now = list(public())
    kept = KEPT.read_text(encoding="utf-8").splitlines()
    changes = [
        line for line in difflib.unified_diff(kept, now, lineterm="", n=0) if not line.startswith(("---", "+++", "@@"))
    ]
    if changes:
        pytest.fail("\n".join(["The public API changed:", *changes, REMEDY]), pytrace=False)


def unreleased() -> str:
    """Return what stands under "Unreleased" in the changelog."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.partition("## [Unreleased]")[2].partition("\n## [")[0]


def test_what_changed_since_the_last_release_is_in_the_changelog() -> None:
    """`public_api.txt` is written anew with one command: users would find a parameter gone, and no word about it."""
    before, now = (path.read_text(encoding="utf-8").splitlines() for path in (RELEASED, KEPT))
    if missing := untold(before, now, unreleased()):
        lines = ["CHANGELOG.md does not say under Unreleased, in one entry each:", *missing]
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize(
    ("now", "entry", "missing"),
    [
        ("distill(recipe, *, restart=False)", "", []),
        ("distill(recipe, *, restart=True)", "- Runs are faster.", ["distill: `distill`, `restart`"]),
        ("distill(recipe, *, restart=True)", "- `distill`.\n- `restart`.", ["distill: `distill`, `restart`"]),
        ("distill(recipe, *, restart=True)", "- `distill` has\n  `restart=True`.", []),
        ("distill(recipe)", "- `distill(restart=...)` is gone.", []),
        ("distill(recipe, *, restart=False, of=('a', 'b'))", "- `distill` takes `of`.", []),
        ("", "### Added\n\n- `distill`.", ["distill: `distill`"]),
        ("", "### Added\n\n- `x`.\n\n### Removed\n\n- `distill`.", []),
        ("distill(recipe, *, restart=False)\nobjectives.OBJECTIVES['kl']: KL", "- `KL`.", ["OBJECTIVES['kl']: `kl`"]),
        ("distill(recipe, *, restart=False)\nhf-distill -q, --quiet", "- `--quiet` is new.", []),
        ("distill(recipe, *, restart=False)\nhf-distill env ...", "- `hf-distill env`.", []),
        ("distill(recipe, *, restart=False)\n" + "\n".join(f"c.C{i}(b)" for i in range(4)), "- All take `b`.", []),
    ],
)
def test_what_counts_as_told(now: str, entry: str, missing: list[str]) -> None:
    """A rule that any text satisfies holds nothing, and one that asks for every class by name is switched off."""
    before = ["distill(recipe, *, restart=False)", *(f"c.C{i}(a)" for i in range(4) if "c.C" in now)]
    told = entry.replace("`b`", "`b` in place of `a`")
    assert [one.removeprefix("objectives.") for one in untold(before, now.splitlines(), told)] == missing


if __name__ == "__main__":
    KEPT.write_text("".join(f"{line}\n" for line in public()), encoding="utf-8")
