"""Where the tokens of two tokenizers stand for the same text, by bytes: which of the teacher's belong to which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hf_distill.data.token_bytes import is_space, spans, token_bytes
from hf_distill.data.two_tokenizers import APART

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No text in UTF-8 has this byte: what follows it says which special token it is.
_NO_TEXT = b"\xff"
END = _NO_TEXT + b"<end>"
"""What a token that ends a text stands for, whatever it is called."""
_SPACES = b" \t\r\n"

# Segments of a tokenised text: where each begins and ends.
Segments = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Aligned:
    """One text as two tokenizers split it.

    Attributes:
        at: For each of the student's tokens, the teacher's position that predicts the same text; -1 for none.
        span: Number of the span of text of each of the student's tokens; -1 for none.
        their_span: The same of the teacher's tokens.
    """

    at: list[int]
    span: list[int]
    their_span: list[int]


@dataclass(frozen=True, eq=False)
class TwoTokenizers:
    """What the tokens of student and teacher stand for.

    Special tokens are paired by their role, never by how they are written: those that end a text with those that end
    one; others where both tokenizers have one of the same name.

    Attributes:
        student: The student's tokenizer.
        teacher: The teacher's.
        ends: Ids of the student that end a text.
        their_ends: Ids of the teacher that do.
        prefix: Whether rows are compared at every place where tokens of both begin, by the longest token of the student
            with which the teacher's begins; not only where one token of each is the same text.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase
    ends: frozenset[int] = frozenset()
    their_ends: frozenset[int] = frozenset()
    prefix: bool = False

    @cached_property
    def texts(self) -> tuple[tuple[bytes | None, ...], tuple[bytes | None, ...]]:
        """What each token stands for, by its id, of the student and of the teacher; None for nothing.

        Raises:
            UserError: The tokens of one of them do not say what they stand for.
        """
        sides = (self.student, self.ends), (self.teacher, self.their_ends)
        names = [_special(tokenizer) for tokenizer, _ in sides]
        ends = [
            frozenset(special[one] for one in own if one in special)
            for special, (_, own) in zip(names, sides, strict=True)
        ]
        by_name = ends[0] == ends[1]  # the same names for all: each goes with its own
        found = []
        for special, (tokenizer, own) in zip(names, sides, strict=True):
            known = list(token_bytes(tokenizer))
            for number, name in special.items():
                if number < len(known):
                    known[number] = _NO_TEXT + name.encode() if by_name or number not in own else END
            found.append(tuple(known))
        return found[0], found[1]

    @cached_property
    def vocabularies(self) -> tuple[list[bytes | None], list[bytes | None]]:
        """The same for a map of both: without special tokens that only one of them has."""
        ours, theirs = self.texts
        return list(ours), list(theirs)

    def align(
        self, ids: Sequence[int], their_ids: Sequence[int], segments: Segments, their_segments: Segments
    ) -> Aligned:
        """Return which tokens stand for the same text.

        Args:
            ids: The student's tokens.
            their_ids: The teacher's.
            segments: Which of them are the same text, a segment of the student for each of the teacher.
            their_segments: As `segments`.
        """
        made = Aligned([APART] * len(ids), [-1] * len(ids), [-1] * len(their_ids))
        first = 0
        for (start, stop), (their_start, their_stop) in zip(segments, their_segments, strict=False):
            ours = [text_of(self.texts[0], one) for one in ids[start:stop]]
            theirs = [text_of(self.texts[1], one, b"t") for one in their_ids[their_start:their_stop]]
            pair = _groups(ours, theirs)
            for places, found, offset in zip((made.span, made.their_span), pair, (start, their_start), strict=True):
                for place, group in enumerate(found):
                    places[offset + place] = group + first if group >= 0 else -1
            for mine, other in begun_together(*pair, ours, theirs) if self.prefix else one_to_one(*pair):
                if start + mine > 0 and their_start + other > 0:
                    made.at[start + mine] = their_start + other - 1
            first += max(pair[0], default=-1) + 1
        return made


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that stand for something else than text, by their ids."""
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    known: dict[int, str] = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {**known, **added}


def text_of(known: Sequence[bytes | None], number: int, whose: bytes = b"s") -> bytes:
    """Return what a token stands for; one that stands for nothing is like no token of the other tokenizer."""
    found = known[number] if number < len(known) else None
    return _NO_TEXT + whose + str(number).encode() if found is None else found


def is_special(text: bytes) -> bool:
    """Return whether what a token stands for is not text but the name of a special token."""
    return len(text) > 1 and text.startswith(_NO_TEXT)


def _groups(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[list[int], list[int]]:
    r"""Return the number of the span of every token, of both; -1 for tokens that are not in both texts.

    One of the texts may begin earlier than the other, as where the end of a prompt is part of its first token; or with
    white space, which a template may have removed, and with which some tokenizers begin every text. A token that is cut
    so is not the same in both.

    >>> _groups([b" a", b" b"], [b"a", b" b"])
    ([-1, 1], [-1, 1])
    >>> _groups([b"x", b" a", b" b"], [b" a", b" b"])
    ([-1, 0, 1], [0, 1])
    """
    both = b"".join(ours), b"".join(theirs)
    if both[0].endswith(both[1]) or both[1].endswith(both[0]):
        excess = [len(text) - min(map(len, both)) for text in both]
    else:
        spaces = [len(text) - len(text.lstrip(_SPACES)) for text in both]
        excess = [one - min(spaces) for one in spaces]
    sides = [_from(side, cut) for side, cut in zip((ours, theirs), excess, strict=True)]
    found = spans(*(tokens for _, tokens in sides))
    changed = {
        group
        for (gone, tokens), side, groups in zip(sides, (ours, theirs), found, strict=True)
        for token, before, group in zip(tokens, side[gone:], groups, strict=True)
        if token != before or not token
    }
    first, second = (
        [-1] * gone + [-1 if group in changed else group for group in groups]
        for (gone, _), groups in zip(sides, found, strict=True)
    )
    return first, second


def _from(tokens: Sequence[bytes], cut: int) -> tuple[int, list[bytes]]:
    """Return how many tokens are gone without the first `cut` bytes, and what is left of the others."""
    gone = 0
    while cut and gone < len(tokens) and len(tokens[gone]) <= cut:
        cut -= len(tokens[gone])
        gone += 1
    rest = list(tokens[gone:])
    return gone, [rest[0][cut:], *rest[1:]] if rest else rest


def one_to_one(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the places of two tokens that make up a span alone, one of the student and one of the teacher.

    >>> list(one_to_one([0, 1, 1, 2], [0, 1, 2]))
    [(0, 0), (3, 2)]
    """
    single = _single(theirs)
    yield from ((place, single[group]) for group, place in _single(ours).items() if group in single)


def begun_together(
    ours: Sequence[int], theirs: Sequence[int], our_texts: Sequence[bytes], their_texts: Sequence[bytes]
) -> Iterator[tuple[int, int]]:
    """Yield the places of the first tokens of each span, one of the student and one of the teacher.

    Not where one of them is white space alone: a part of the teacher's indentation would take the place of the
    student's own, which breaks the code that it writes.

    >>> list(begun_together([0, 1, 1, 2], [0, 1, 2], [b"a", b"b", b"c", b" "], [b"a", b"bc", b" "]))
    [(0, 0), (1, 1)]
    """
    firsts = [
        {group: place for place, group in reversed([*enumerate(groups)]) if group >= 0} for groups in (ours, theirs)
    ]
    for group, place in sorted(firsts[0].items()):
        other = firsts[1].get(group)
        if other is not None and not is_space(our_texts[place]) and not is_space(their_texts[other]):
            yield place, other


def _single(groups: Sequence[int]) -> dict[int, int]:
    """Return the place of each group that has one token."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        if group >= 0:
            places.setdefault(group, []).append(place)
    return {group: found[0] for group, found in places.items() if len(found) == 1}


def runs(learned: Iterable[bool]) -> list[tuple[int, int]]:
    """Return where each run of learned tokens begins and ends.

    >>> runs([False, True, True, False, True])
    [(1, 3), (4, 5)]
    """
    found: list[tuple[int, int]] = []
    start = None
    flags = [*learned, False]
    for place, flag in enumerate(flags):
        if flag and start is None:
            start = place
        if not flag and start is not None:
            found.append((start, place))
            start = None
    return found


def whole(known: Sequence[bytes | None], ids: Sequence[int], special: Collection[int]) -> list[tuple[int, int]]:
    """Return the text of a tokenised example as one segment: all but the special tokens before it."""
    start = next((place for place, one in enumerate(ids) if one not in special and known[one] is not None), len(ids))
    return [(start, len(ids))]
