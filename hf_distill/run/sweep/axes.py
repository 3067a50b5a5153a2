"""Reads the words of a sweep: `key=[..]` gives values to try, `key=log(a,b)` a range, `key=value` an override."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hf_distill.errors import UserError
from hf_distill.formatting import readable
from hf_distill.recipe.document import Fault, parse

RANGE = re.compile(r"(?P<kind>[a-z]+)\((?P<low>[^,()]+),(?P<high>[^,()]+)\)")
KINDS = ("log", "uniform", "int")


@dataclass(frozen=True)
class Axis:
    """The values of one recipe key that a sweep tries.

    Attributes:
        key: The key, as on the command line.
        values: The values, if they are listed.
        kind: `log`, `uniform` or `int` for a range; empty for a list.
        low: Lower end of the range.
        high: Upper end, which may be drawn too.
    """

    key: str
    values: tuple[Any, ...] = ()
    kind: str = ""
    low: float = 0.0
    high: float = 0.0

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are checked before anything runs: all that are listed, or the ends of the range."""
        return self.values or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Return whether the sweep could try a value."""
        if self.values:
            return text_of(value) in map(text_of, self.values)
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def number(self) -> int | None:
        """How many values there are; None for a range without end."""
        if self.values:
            return len(self.values)
        return int(self.high - self.low) + 1 if self.kind == "int" else None

    def in_words(self) -> str:
        """Return the values, such as `log(1e-05, 0.001)` or `[1, 2]`."""
        if self.kind:
            return f"{self.kind}({self.low:g}, {self.high:g})"
        return f"[{', '.join(map(text_of, self.values))}]"


@dataclass(frozen=True)
class Words:
    """What the words of a sweep say.

    Attributes:
        given: Each word's key, with its axis, or the override as it is written; in their order, as a later override
            may change a part of what an earlier one has set.
    """

    given: tuple[tuple[str, Axis | str], ...] = ()
    axes: tuple[Axis, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the axes."""
        object.__setattr__(self, "axes", tuple(one for _, one in self.given if isinstance(one, Axis)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that vary."""
        return tuple(axis.key for axis in self.axes)

    @property
    def number(self) -> int | None:
        """How many different settings there are; None if a range has no end."""
        numbers = [axis.number for axis in self.axes]
        return None if None in numbers else prod(number or 0 for number in numbers)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether the sweep could try the values of a setting of the same keys."""
        return all(axis.holds(values[axis.key]) for axis in self.axes)

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """Return the overrides of the recipe for these values of the keys that vary."""
        return [one if isinstance(one, str) else f"{key}={text_of(values[key])}" for key, one in self.given]


def read_words(words: Sequence[str]) -> Words:
    """Return what the words after the recipe say.

    Args:
        words: `key=[1, 2]`, `key=log(1e-5, 1e-3)`, `key=uniform(0, 1)`, `key=int(1, 6)` or `key=value`.

    Raises:
        UserError: One line for each word that cannot be read, or if none has values to try.
    """
    given: list[tuple[str, Axis | str]] = []
    mistakes: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not key:
            mistakes.append(
                f"'{readable(word, limit=100)}': wanted key=[..], such as training.learning_rate=[1e-4,2e-4]."
            )
            continue
        try:
            one = _axis(key, text.strip()) if equals else None
        except UserError as error:
            mistakes += error.mistakes
            continue
        if lost := next((before for before, _ in given if _replaces(key, before)), None):
            again = "is given twice. Keep one" if lost == key else f"replaces what '{readable(lost)}' sets. Keep one"
            mistakes.append(f"'{readable(key)}' {again}.")
        given.append((key, word if one is None else one))
    if not mistakes and not any(isinstance(one, Axis) for _, one in given):
        mistakes.append(
            "a sweep needs values to try: wanted key=[..], such as objectives.0.temperature=[1,2,4]. For a single run: "
            "hf-distill RECIPE.yaml key=value"
        )
    if mistakes:
        raise UserError(*mistakes)
    return Words(tuple(given))


def _replaces(key: str, before: str) -> bool:
    """Return whether the value of a key takes the place of that of a key given before, however they are written.

    >>> [_replaces(key, "objectives[0].weight") for key in ("objectives.0.weight", "objectives", "objectives.1")]
    [True, True, False]
    """
    own, theirs = (re.findall(r"[^.\[\]]+", one) for one in (key, before))
    return theirs[: len(own)] == own


def _axis(key: str, text: str) -> Axis | None:
    """Return the values of a word; None if it is an override."""
    if (found := RANGE.fullmatch(text)) and (found["kind"] in KINDS or _are_numbers(found)):
        return _range(key, text, found)
    if not text.startswith("["):
        return None
    try:
        values, _ = parse(text)
    except Fault as fault:
        raise UserError(f"'{readable(key)}={readable(text, limit=100)}': {fault.faults[0][1]}") from None
    if not values:
        raise UserError(f"'{readable(key)}=[]': wanted values to try, such as [1,2,4].")
    different: dict[Any, Any] = {}
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        different.setdefault(value if is_number else text_of(value), value)  # 2 and 2.0 are one setting
    return Axis(key, tuple(different.values()))


def _are_numbers(found: re.Match[str]) -> bool:
    return all(math.isfinite(_number(found[name])) for name in ("low", "high"))


def _range(key: str, text: str, found: re.Match[str]) -> Axis:
    kind, low, high = found["kind"], _number(found["low"]), _number(found["high"])
    word = f"'{readable(key)}={readable(text, limit=100)}'"
    if kind not in KINDS:
        raise UserError(f"{word}: unknown range. Known: {', '.join(f'{one}(a,b)' for one in KINDS)}.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{word}: wanted two numbers, the smaller one first.")
    if kind == "log" and low <= 0:
        raise UserError(f"{word}: a logarithmic range begins above 0.")
    if kind == "int":
        if not (low.is_integer() and high.is_integer()):
            raise UserError(f"{word}: wanted two whole numbers.")
        return Axis(key, kind=kind, low=int(low), high=int(high))
    return Axis(key, kind=kind, low=low, high=high)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def text_of(value: Any) -> str:
    """Return a value as an override has it, which reads back to the same value.

    >>> text_of(1e-5), text_of("train[:100]"), text_of("1"), text_of([{"name": "kl"}]), text_of(True), text_of(None)
    ('1e-05', 'train[:100]', '"1"', '[{"name": "kl"}]', 'true', 'null')
    """
    if isinstance(value, str):
        try:
            plain = parse(value)[0] == value if value else False
        except Fault:
            plain = False
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
