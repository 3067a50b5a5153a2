"""Recipes changed at random: types swapped, keys misspelt, huge values, control characters, deep nesting."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

LONG = "x" * 100_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 10**30, -(10**30), "", " ", "no", "auto", "none", "1e-5"),
    *([], {}, [[]], {"name": None}, {"name": "kl"}, [1, "a", None], {"a": {"b": {"c": []}}}),
    *(
        "\x1b[2J\x1b]0;x\x07",
        "\u202eabc",
        "a\nb: c\n---\n",
        "\x00",
        "<img src=x onerror=alert(1)>",
        "{{ 7*7 }}",
        "$(id)",
    ),
    *("../../../etc/passwd", "/", "~", ".", "package:", "package:numpy/x", "a" * 300, LONG, "é" * 200, "\ufeffx"),
    *("json:loads", "no_module_here:X", "os:system", "evaluate/none", "https://me:pa55word@host/x.csv", "train[:0]"),
    *("train[:10%]+validation", "train[", "kl", "labels", "text-generation", "LABEL_0", ["a"] * 1000, "NaN", "-inf"),
)


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a recipe."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(recipe: Any, chance: random.Random) -> Any:
    """Change one thing in a recipe, in place; return it."""
    *above, last = chance.choice([*places(recipe)])
    here = recipe
    for key in above:
        here = here[key]
    kind = chance.randrange(10)
    if kind < 4:
        here[last] = copy.deepcopy(chance.choice(VALUES))
    elif kind == 4:
        here[last] = nested(chance.choice((2, 31, 40, 300)), chance.choice((list, dict)))
    elif kind == 5 and isinstance(here, dict):
        here[misspelt(str(last), chance)] = here.pop(last)
    elif kind == 6 and isinstance(here, dict):
        here[chance.choice(("token", "alpha", "name", "a.b", "", "x" * 5000, "\x1b[31m", "__class__"))] = 1
    elif kind == 7:
        del here[last]
    elif kind == 8:
        here[last] = str(here[last]) if not isinstance(here[last], str) else [here[last]]
    else:  # a value of another place
        *other, end = chance.choice([*places(recipe)])
        there = recipe
        for key in other:
            there = there[key]
        here[last] = copy.deepcopy(there[end])
    return recipe


def misspelt(key: str, chance: random.Random) -> str:
    at = chance.randrange(len(key) + 1)
    return chance.choice((key[:at] + key[at + 1 :], key[:at] + chance.choice("abz_-.[ \u202e") + key[at:], key.upper()))


def damaged(text: str, chance: random.Random) -> bytes:
    """Change the text of a recipe: bytes gone, repeated, swapped or put in."""
    raw = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw))
        end = at + chance.randint(1, 40)
        new: Any = chance.choice(
            (
                b"",
                bytes(raw[at:end]) * 2,
                b"\t",
                b"\x1b[2J",
                b"\xff",
                b"\x00",
                b"&a *a",
                b"{",
                b"]",
                b": ",
                b"!!python/x ",
            )
        )
        raw[at : end if not new else at] = new
    return bytes(raw)


def mutants(text: str, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` changed recipes, the same for the same seed; a third of them with their text damaged."""
    chance = random.Random(seed)
    recipe = YAML(typ="safe", pure=True).load(text)
    for index in range(count):
        if index % 3 == 2:
            yield damaged(text, chance)
            continue
        changed = copy.deepcopy(recipe)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            changed = mutate(changed, chance)
            if not changed:
                break
        yield json.dumps(changed, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
