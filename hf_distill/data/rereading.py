"""What a teacher with another tokenizer reads of a text that the student has written, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from hf_distill.data.alignment import END, TwoTokenizers, begun_together, is_special, one_to_one, text_of
from hf_distill.data.token_bytes import spans
from hf_distill.data.two_tokenizers import APART

# Some tokenizers put a space before every text. What they make of a text after one of these is as in its middle.
_BEFORE = ("", "\n", ":", ")")


@dataclass(frozen=True)
class Read:
    """A completion as the teacher reads it.

    Attributes:
        ids: The teacher's tokens.
        at: For each of the student's tokens, the teacher's position that predicts the same text, counted with its
            prompt; -1 for none.
        span: Number of the span of text of each of the student's tokens; -1 for none.
        their_span: The same of the teacher's tokens.
    """

    ids: list[int]
    at: list[int]
    span: list[int]
    their_span: list[int]


@dataclass(frozen=True, eq=False)
class Rereading:
    """Writes a student's completion in the teacher's tokens.

    The student's tokens are the truth: their bytes, one after the other, are the text. The teacher reads it up to the
    last complete character, and nothing after bytes that are none. Special tokens are paired as in `TwoTokenizers`;
    nothing after one that the teacher does not have is read. What it reads is compared as far as its bytes are the
    student's.

    Attributes:
        both: What the tokens of the two stand for.
        end: The teacher's token that ends a text; None if it has none.
        limit: Largest number of tokens that the teacher reads, prompt included; None for no limit.
    """

    both: TwoTokenizers
    end: int | None = None
    limit: int | None = None

    def __call__(self, ids: Sequence[int], prompt: int) -> Read:
        """Return what the teacher reads.

        Args:
            ids: The completion, in the student's tokens.
            prompt: Number of the teacher's own tokens before it; 0 if it has not read the prompt, and cannot say
                anything.
        """
        ours = [text_of(self.both.texts[0], one) for one in ids]
        read = self._ids(ours) if prompt else []
        if self.limit is not None:
            read = read[: max(0, self.limit - prompt)]
        theirs = [text_of(self.both.texts[1], one, b"t") for one in read]
        pair = spans(ours, theirs)
        at = [APART] * len(ours)
        for mine, other in begun_together(*pair, ours, theirs) if self.both.prefix else one_to_one(*pair):
            at[mine] = prompt + other - 1
        return Read(read, at, *pair)

    def _ids(self, texts: Sequence[bytes]) -> list[int]:
        """Return the teacher's tokens of the texts of the student's, up to where it can read them."""
        found: list[int] = []
        for special, run in groupby(texts, is_special):
            if special:
                for name in run:
                    number = self._special.get(name)
                    if number is None:
                        return found
                    found.append(number)
                continue
            text = b"".join(run)
            whole = complete(text)
            found += self._encoded(whole)
            if len(whole.encode()) < len(text):
                return found
        return found

    @cached_property
    def _special(self) -> dict[bytes, int]:
        """The teacher's special tokens, by what they stand for."""
        found: dict[bytes, int] = {}
        for number, text in enumerate(self.both.texts[1]):
            if text is not None and is_special(text):
                found.setdefault(text, number)
        return {**found, END: self.end} if self.end is not None and END in found else found

    @cached_property
    def _before(self) -> list[tuple[str, list[int]]]:
        return [(text, self._tokens(text)) for text in _BEFORE]

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.both.teacher(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        return found

    def _encoded(self, text: str) -> list[int]:
        """Return the tokens of a text in the middle of another one: those of its bytes, else of as many as can be."""
        wanted, best, most = text.encode(), list[int](), 0
        for before, first in self._before if text else ():
            ids = self._tokens(before + text)
            if ids[: len(first)] != first:
                continue
            ids = ids[len(first) :]
            found = b"".join(text_of(self.both.texts[1], one, b"t") for one in ids)
            if found == wanted:
                return ids
            same = _alike(found, wanted)
            if same > most:
                best, most = ids, same
        return best


def complete(text: bytes) -> str:
    r"""Return a text up to the first bytes that do not make a character, such as one that was cut.

    >>> complete("aé".encode()[:-1]), complete(b"\xa9 a")
    ('a', '')
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def _alike(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts have in common at their beginning."""
    differ = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differ, min(len(one), len(other)))
