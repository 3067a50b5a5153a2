"""Recipes and files of data changed at random: types swapped, keys misspelt, huge values, bytes lost, deep nesting."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

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
    *(
        "planted_code:Loss",
        "planted_code:score",
        "json:loads",
        "no_module_here:X",
        "os:system",
        "evaluate/none",
        "https://me:pa55word@host/x.csv",
        "train[:0]",
    ),
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


def overridden(recipe: Any, chance: random.Random) -> list[str]:
    """Return overrides as on the command line: of keys that a recipe has, of misspelt ones, of anything."""
    made = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        key = "".join(f".{part}" for part in chance.choice([*places(recipe)]))[1:]
        kind = chance.randrange(8)
        if kind == 0:
            key = misspelt(key, chance)
        elif kind == 1:
            key += chance.choice((".x", ".0", "[0]", "[999999999]", ".name", "..", "=", " ", ".a" * 40))
        value = chance.choice(VALUES)
        made.append(chance.choice((f"{key}={json.dumps(value)}", f"{key}={value}", f"{key}", f"={value}", f"{value}")))
    return made


def damaged_bytes(raw: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Change a file of data: bytes gone, repeated, turned, put in; its end cut off; a part of another file in it."""
    made = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(made) + 1)
        end = min(len(made), at + chance.choice((1, 1, 4, 40)))
        kind = chance.randrange(8)
        if kind == 0:
            del made[at:end]
        elif kind == 1:
            made[at:at] = made[at:end] * chance.choice((1, 2, 50))
        elif kind == 2 and made:
            at = min(at, len(made) - 1)
            made[at] = (made[at] + chance.randrange(1, 256)) % 256
        elif kind == 3:
            made[at:end] = chance.choice(PIECES)
        elif kind == 4:
            made[at:at] = chance.choice(PIECES)
        elif kind == 5:
            del made[at:]
        elif kind == 6:
            other = chance.choice(others)
            made[at:end] = other[: chance.choice((1, 16, 100_000))]
        else:
            made[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
    return bytes(made)


PIECES = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b'"',
        b"'",
        b",",
        b"\t",
        b";",
        b"[",
        b"{",
        b"}",
        b"]",
    ),
    *(
        b"\xed\xa0\x80",
        b"\x1b[2J",
        "\u202e\u2028".encode(),
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"0x10",
        b"null",
    ),
    *(
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"\\ud800",
        b"\\u0000",
        b'"""',
        b",,,,",
        b"\n\n\n",
        b"-DOCSTART- -X- O O",
        b"#",
    ),
    *(
        b"PAR1",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"ARROW1",
        b"=cmd|'/c calc'!A1",
        b"</script>",
        b"x" * 70_000,
        b"\x80\x04.",
    ),
    *(b"True", b"2024-01-01", b"1" * 40, b'{"text": 1, "text": 2}', b"__proto__", b"\x1a"),
)
