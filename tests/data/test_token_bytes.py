"""Tokens as bytes: what they stand for in every kind of tokenizer, and where two of them split a text alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_distill.data.token_bytes import PROBES, is_space, joined, nearest_tokens, spans, their_tokens, token_bytes
from hf_distill.errors import UserError
from hf_distill.models.loading import open_tokenizer

TEXTS = [*PROBES, "foobar!", " deux  espaces ", "🤦🏼‍♂️ ﬁ ½"]


def byte_level() -> Any:
    """A vocabulary of single bytes, of which pairs are merged to `th`, `Ġt` and `ĠĠ`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("Ġ", "t"), ("Ġ", "Ġ")]
    vocabulary = {token: number for number, token in enumerate([*letters, *map("".join, merges), "<eos>"])}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def byte_fallback() -> Any:
    """A vocabulary as Gemma's: spaces as `▁`, characters it does not have in bytes; `&` and `<0x26>` are the same."""
    tokens = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "th", "▁t", "é", "&", "▁▁"]
    merges = [("t", "h"), ("▁", "t"), ("▁", "▁")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_make_up_the_text(make: Any, text: str) -> None:
    """Ends that are one byte off, as with characters counted for bytes, pair rows of different texts."""
    tokenizer = make()
    assert joined(token_bytes(tokenizer), tokenizer(text, add_special_tokens=False)["input_ids"]) == text.encode()


def test_special_tokens_stand_for_no_text() -> None:
    """An end of text aligned as the text `<eos>` would be compared with the tokens of `<`, `eos` and `>`."""
    for tokenizer in (byte_level(), byte_fallback()):
        known = token_bytes(tokenizer)
        assert [known[number] for number in tokenizer.all_special_ids] == [None] * len(tokenizer.all_special_ids)
        assert joined(known, [tokenizer.eos_token_id]) is None
        assert joined(known, [len(known)]) is None
    known, vocabulary = token_bytes(byte_fallback()), byte_fallback().get_vocab()
    assert known[vocabulary["&"]] == known[vocabulary["<0x26>"]] == b"&"


def test_a_tokenizer_that_begins_a_text_with_a_space(make_model: Any) -> None:
    """Llama 2's does: refused, or off by one, none of its students could be taught."""
    tokenizer = open_tokenizer(str(make_model("llama-lm")))
    ids = tokenizer("a great film", add_special_tokens=False)["input_ids"]
    assert joined(token_bytes(tokenizer), ids) == b" a great film"


def test_other_tokenizers_are_refused(tiny_bert: Path) -> None:
    """`##ing` does not say whether there was a space before: guessed, all ends after it would be wrong."""
    with pytest.raises(UserError, match="cannot be told as bytes"):
        token_bytes(open_tokenizer(str(tiny_bert)))
    lower = byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="do not make up the text"):
        token_bytes(lower)


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (["foo", "bar", "!"], ["foob", "ar!"], ([0, 0, 0], [0, 0])),
        ([b"\xc3", b"\xa9"], ["é"], ([0, 0], [0])),
        (["\n", "\n"], ["\n\n"], ([0, 0], [0])),
        (["a", "Train", "er"], ["a", "Trainer"], ([0, 1, 1], [0, 1])),
        (["a", b"\xf0\x9f"], ["a", "\ufffd"], ([0, -1], [0, -1])),  # a cut emoji, as it was decoded
        (["a", "b", "c"], ["a", "b"], ([0, 1, -1], [0, 1])),
        (["a", b"", "b"], ["ab"], ([0, 0, 0], [0])),
        ([], ["a"], ([], [-1])),
    ],
)
def test_spans_by_hand(ours: list[Any], theirs: list[Any], wanted: tuple[list[int], list[int]]) -> None:
    """A pair of different texts in one group compares probabilities of different things."""
    student, teacher = ([one if isinstance(one, bytes) else one.encode() for one in side] for side in (ours, theirs))
    assert spans(student, teacher) == wanted
    assert spans(teacher, student) == wanted[::-1]
    assert spans(student, student)[0] == list(range(len(student))) or b"" in student


def test_longest_prefixes_of_the_published_example() -> None:
    """Mapped to a shorter prefix, or to the first that is found, mass goes to a token that begins another text."""
    student, teacher = [b"a", b"ab", b"b"], [b"a", b"ab", b"abc", b"b", b"\xff"]
    assert their_tokens(student, teacher) == [0, 1, -1, 2, -1]
    assert their_tokens(student, teacher, prefix=True) == [0, 1, 1, 2, -1]
    p = [0.1, 0.3, 0.2, 0.25, 0.15]
    mass = [
        sum(one for one, to in zip(p, their_tokens(student, teacher, prefix=True), strict=True) if to == at)
        for at in (0, 1, 2, -1)
    ]
    assert mass == pytest.approx([0.1, 0.5, 0.25, 0.15])


def test_tokens_of_the_same_bytes_and_without_any() -> None:
    """Of two tokens `&` one would be dropped, a loss of 1 nat where the teacher is sure; None is equal to nothing."""
    assert their_tokens([None, b"&", b"&", b""], [b"&", b"&", None, b""]) == [1, 1, -1, -1]
    known, vocabulary = token_bytes(byte_fallback()), byte_fallback().get_vocab()
    to = their_tokens(token_bytes(byte_level()), known)
    assert to[vocabulary["&"]] == to[vocabulary["<0x26>"]] == byte_level().get_vocab()["&"]
    assert to[vocabulary["▁t"]] == byte_level().get_vocab()["Ġt"]
    assert to[vocabulary["é"]] == -1
    assert to[vocabulary["<eos>"]] == -1
    assert [is_space(one) for one in (b" ", b"\n\t", b"", None, b" a", b"\xff")] == [True, True, *[False] * 4]


def test_nearest_tokens_against_all_pairs() -> None:
    """A token that the search misses, or one that is further than it says, is another loss than is reported."""

    def distance(one: bytes, other: bytes) -> int:
        row = list(range(len(other) + 1))
        for place, byte in enumerate(one, 1):
            above, row[0] = row[0], place
            for column, letter in enumerate(other, 1):
                above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (byte != letter))
        return row[-1]

    rng = random.Random(0)
    every = [bytes(rng.choices(b"abc", k=rng.randint(1, 5))) for _ in range(120)]
    student, teacher = list(dict.fromkeys(every[:40])), every[40:]
    wanted = []
    for one in teacher:
        ranked = [(distance(one, other), number) for number, other in enumerate(student)]
        best = min(ranked)
        wanted.append(best[1] if best[0] <= 1 else -1)
    assert nearest_tokens(student, teacher) == wanted
    assert -1 in wanted
    assert nearest_tokens([None, b"\xff", b"\xff<end>"], [None, b"\xff<ends>", b"\xff<end>"]) == [-1, -1, 2]
