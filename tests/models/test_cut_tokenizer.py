"""A tokenizer with fewer tokens: the texts that were counted are split as before, and any other stays the same text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import NEUTRAL, POSITIVE, WORDS
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_distill.errors import UserError
from hf_distill.models.cut_tokenizer import cut_tokenizer
from hf_distill.models.token_parts import Pieces

CORPUS = [
    "The film is a wonderful story, and the cast was great!",
    "Unbelievably tedious: the plot repeats, repeats and repeats itself ...",
    "naïve façade, 12 jumps - (über) and the unhappiest of endings",
    "whispering, whispers, whispered; the story of the storyteller",
] * 8
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def texts() -> list[str]:
    """Return texts of all kinds: pieces of words, other scripts, emoji, controls, spaces, what looks like tokens."""
    drawn = random.Random(0)
    others = ["é", "北京", "日本", "😀", "👩‍👩‍👧", "\u200b", "İ", "ﬁ", "<s>", "[CLS]", "##a", "▁", "Ġ"]
    parts = [*"abcXYZ  .,!\n\t", *others, *CORPUS[2].split()]
    made = ["".join(drawn.choices(parts, k=drawn.randint(0, 30))) for _ in range(300)]
    return [*made, *(" ".join(drawn.choices(WORDS, k=8)) for _ in range(50)), *CORPUS[:4], ""]


def byte_level() -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


def byte_fallback() -> Any:
    """Return what SentencePiece's BPE becomes: spaces as characters, and bytes for unknown characters."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *in_bytes], show_progress=False)
    backend.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    return backend


def unigram() -> Any:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    around = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return backend


def end_of_word() -> Any:
    """Return a tokenizer that marks the ends of words, as CLIP's and the first GPT's."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


MADE = {"byte level": byte_level, "bytes": byte_fallback, "unigram": unigram, "ends of words": end_of_word}


@pytest.fixture(params=[*MADE, "bert", "roberta", "llama", "t5"])
def whole(request: pytest.FixtureRequest, make_model: Any) -> Any:
    """A tokenizer, opened as a run opens it."""
    if request.param not in MADE:
        return AutoTokenizer.from_pretrained(make_model(request.param))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=MADE[request.param](), **names)


def cut_for(whole: Any, counted: list[str]) -> tuple[Any, list[int]]:
    """Return the tokenizer with the tokens that some texts use, and their ids in the whole one."""
    pieces = Pieces.of(whole)
    used = {number for ids in whole(counted)["input_ids"] for number in ids}
    kept = sorted(pieces.needed().union(*map(pieces.with_parts, used)))
    return cut_tokenizer(whole, kept), kept


def test_texts_that_were_counted_are_split_as_before_and_others_stay_the_same_text(whole: Any) -> None:
    """A merge or a character too few: the student reads other tokens than its teacher, or [UNK] for a rare word."""
    counted = [CORPUS[0], CORPUS[3], " ".join((*POSITIVE[:4], *NEUTRAL[:6]))]
    cut, kept = cut_for(whole, counted)
    assert len(cut) == len(kept) < len(whole)
    assert sorted(cut.get_vocab().values()) == list(range(len(kept)))
    assert [[kept[number] for number in ids] for ids in cut(counted)["input_ids"]] == whole(counted)["input_ids"]
    pairs = cut(counted[:2], counted[1:])["input_ids"]
    assert [[kept[number] for number in ids] for ids in pairs] == whole(counted[:2], counted[1:])["input_ids"]
    for text in texts():
        ids = cut(text)["input_ids"]
        before = whole(text)["input_ids"]
        assert cut.decode(ids) == whole.decode(before), text
        # A text of tokens that are all there is split as before.
        if set(before) <= set(kept):
            assert [kept[number] for number in ids] == before, text
    assert {name: whole.convert_tokens_to_ids(token) for name, token in whole.special_tokens_map.items()} == {
        name: kept[cut.convert_tokens_to_ids(token)] for name, token in cut.special_tokens_map.items()
    }


def test_a_cut_tokenizer_is_saved_and_loaded_as_it_was(whole: Any, tmp_path: Path) -> None:
    """Some classes make a tokenizer anew from its vocabulary: users would load another one than was trained."""
    whole.chat_template = "{{ messages[0]['content'] }}"
    whole.model_max_length, whole.padding_side = 33, "left"
    cut, _ = cut_for(whole, CORPUS[:1])
    cut.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts())["input_ids"] == cut(texts())["input_ids"]
    assert (loaded.chat_template, loaded.model_max_length) == (whole.chat_template, 33)
    assert (cut.padding_side, cut.pad_token) == ("left", whole.pad_token)
    assert type(loaded) is type(whole)


def test_all_tokens_make_the_same_tokenizer(whole: Any) -> None:
    """Nothing left out must change nothing."""
    cut = cut_tokenizer(whole, sorted(whole.get_vocab().values()))
    assert cut.get_vocab() == whole.get_vocab()
    assert cut(texts())["input_ids"] == whole(texts())["input_ids"]


def test_tokenizers_that_cannot_spell_are_refused(make_model: Any) -> None:
    """Without its word a tokenizer of whole words reads [UNK]."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "film": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="WordLevel"):
        Pieces.of(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    from transformers import ByT5Tokenizer

    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Pieces.of(ByT5Tokenizer())
