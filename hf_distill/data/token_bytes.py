"""Tokens as bytes: which text a token of any tokenizer stands for, and where two tokenizers split a text alike.

Two vocabularies write the same text in different ways (`Ġthe`, `▁the`), and a character may be several tokens, so they
are compared by bytes, never by their own strings or by characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SentencePiece writes a space as this character.
SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# What tokens are tried on: letters, accents, other scripts, emoji, spaces that code has.
PROBES = (
    "the quick brown fox",
    "Naïve, (über) 12!",
    "北京 で",
    "Привет",
    "שלום",
    "👍🏽 e\u0301",
    "if x:\n\n    return\t1",
)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes | None, ...]:
    """Return the bytes that each token stands for, by its id; None for special tokens and numbers without a token.

    Args:
        tokenizer: A fast tokenizer that writes bytes (GPT-2, Llama 3, Qwen), or spaces as `▁` (Llama 2, Gemma).

    Raises:
        UserError: It is another kind of tokenizer, whose tokens do not say where spaces are.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    nodes = [*_nodes([state.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])]
    by_bytes = any(node.get("type") == "ByteLevel" for node in nodes)
    if not by_bytes and not any(SPACE in node.values() or {"String": SPACE} in node.values() for node in nodes):
        raise UserError(
            f"the tokens of {name} cannot be told as bytes. Wanted a fast tokenizer that writes bytes (as of GPT-2, "
            "Llama 3, Qwen), or spaces as ▁ (Llama 2, Gemma)."
        )
    added = tokenizer.added_tokens_decoder
    vocabulary = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    table = _byte_of_letter()
    for token, number in vocabulary.items():
        if number in special:
            continue
        if number in added:  # written as it is, be the others in bytes or not
            found[number] = token.encode()
        elif by_bytes:
            found[number] = _from_letters(token, table)
        else:
            one = _BYTE.fullmatch(token)
            found[number] = bytes.fromhex(one[1]) if one else token.replace(SPACE, " ").encode()
    known = tuple(found)
    _check(tokenizer, known, name)
    return known


def joined(known: Sequence[bytes | None], ids: Sequence[int]) -> bytes | None:
    """Return the bytes of some tokens together; None if one of them stands for no text."""
    parts = [known[number] if number < len(known) else None for number in ids]
    return None if None in parts else b"".join(part for part in parts if part is not None)


def spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[list[int], list[int]]:
    r"""Return the number of the span of every token of two tokenisations of a text, -1 for those in none.

    A span is the shortest text that tokens of both make up exactly. Spans are counted in the order of the text. Where
    the bytes of the two are different, as after a character that was cut, there are none any more.

    >>> spans([b"foo", b"bar", b"!", b"?"], [b"foob", b"ar", b"!", b"?"])
    ([0, 0, 1, 2], [0, 0, 1, 2])
    >>> spans([b"\xc3", b"\xa9", b"a"], [b"\xc3\xa9", b"b"])
    ([0, 0, -1], [0, -1])
    """
    both = b"".join(student), b"".join(teacher)
    differ = (place for place, (one, other) in enumerate(zip(*both, strict=False)) if one != other)
    same = next(differ, min(map(len, both)))
    ends = [list(accumulate(map(len, tokens))) for tokens in (student, teacher)]
    common = sorted({end for end in ends[0] if end <= same}.intersection(ends[1]))
    ours, theirs = (_numbers(one, common) for one in ends)
    return ours, theirs


def their_tokens(
    student: Sequence[bytes | None], teacher: Sequence[bytes | None], *, prefix: bool = False
) -> list[int]:
    """Return the student's token for every token of the teacher, -1 for those that it has none for.

    Of several tokens of the student that are the same bytes it is the first. A text of the teacher's may be the bytes
    of several of its tokens (`&`, `<0x26>`), which then have the same token of the student: their probabilities add up.

    Args:
        student: The bytes of the student's tokens, by id.
        teacher: Those of the teacher's.
        prefix: Where no token of the student is the same bytes, take the longest one with which they begin.

    >>> their_tokens([b"a", b"ab", b"b"], [b"abc", b"b", b"b", b"c"])
    [-1, 2, 2, -1]
    >>> their_tokens([b"a", b"ab", b"b"], [b"abc", b"b", b"b", b"c"], prefix=True)
    [1, 2, 2, -1]
    """
    known: dict[bytes, int] = {}
    for number, one in enumerate(student):
        if one:
            known.setdefault(one, number)
    longest = max(map(len, known), default=0)
    found = []
    for one in teacher:
        number = known.get(one, -1) if one else -1
        # What begins so is no text but the name of a special token; alone it is a byte like others.
        if prefix and one and number < 0 and one[:1] != b"\xff":
            parts = (known.get(one[:length], -1) for length in range(min(len(one) - 1, longest), 0, -1))
            number = next((part for part in parts if part >= 0), -1)
        found.append(number)
    return found


def nearest_tokens(student: Sequence[bytes | None], teacher: Sequence[bytes | None]) -> list[int]:
    """Return the student's token nearest to every token of the teacher by edit distance, -1 where none is near.

    It is the one of the same bytes; else one that a single byte more, less or other makes of it, the first of several.

    >>> nearest_tokens([b"cat", b"dog", b"hats"], [b"dog", b"hat", b"cats", b"horse"])
    [1, 0, 0, -1]
    """
    found = their_tokens(student, teacher)
    known: dict[bytes, int] = {}
    # A student's token without one byte, and with a gap in place of one: what is in no text stands for the gap.
    shorter: dict[bytes, int] = {}
    gaps: dict[bytes, int] = {}
    for number, one in enumerate(student):
        if one and one[:1] != b"\xff":
            known.setdefault(one, number)
            for place in range(len(one)):
                shorter.setdefault(one[:place] + one[place + 1 :], number)
                gaps.setdefault(one[:place] + b"\xff" + one[place + 1 :], number)
    for number, one in enumerate(teacher):
        if found[number] < 0 and one and one[:1] != b"\xff":
            places = range(len(one))
            near = [shorter.get(one)]
            near += [known.get(one[:place] + one[place + 1 :]) for place in places]
            near += [gaps.get(one[:place] + b"\xff" + one[place + 1 :]) for place in places]
            found[number] = min((other for other in near if other is not None), default=-1)
    return found


def is_space(one: bytes | None) -> bool:
    r"""Return whether a token is white space and nothing else.

    >>> is_space(b"\n  "), is_space(b" a"), is_space(None)
    (True, False, False)
    """
    return one is not None and one.isspace()


def _numbers(ends: Sequence[int], common: Sequence[int]) -> list[int]:
    """Return for each token how many common ends come before its end; -1 after the last common one."""
    found, number = [], 0
    for end in ends:
        while number < len(common) and common[number] < end:
            number += 1
        found.append(number if number < len(common) else -1)
    return found


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary within the state of a tokenizer."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner)


def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for: GPT-2's table."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _from_letters(token: str, table: dict[str, int]) -> bytes | None:
    """Return the bytes of a byte-level token; None if it has letters that are none."""
    letters = [table.get(letter, -1) for letter in token]
    return None if -1 in letters else bytes(letters)


def _check(tokenizer: PreTrainedTokenizerBase, known: Sequence[bytes | None], name: str) -> None:
    """Refuse a tokenizer whose tokens do not make up the text that they were made of.

    It may leave out characters that it does not know: texts with these are found when they are aligned.
    """
    for text in PROBES:
        found = joined(known, tokenizer(text, add_special_tokens=False)["input_ids"])
        rest = iter(b" " + text.encode())  # a text may begin with a space of its own
        if found is not None and not all(byte in rest for byte in found):
            raise UserError(
                f"the tokens of {name} do not make up the text {text!r} again, but {found!r}: it changes texts before "
                "it splits them. Choose another teacher or student."
            )
