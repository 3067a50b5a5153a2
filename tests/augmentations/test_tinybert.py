"""TinyBERT's augmentation: its words, its copies, and what is stored, with a tiny real masked language model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from prepared import dataset, refused

from hf_distill.augmentations import TinyBertAugmentation
from hf_distill.augmentations.stop_words import stop_words
from hf_distill.augmentations.word_vectors import WordVectors
from hf_distill.data import augmentation
from hf_distill.data.augmentation import augmented

# Of pieces: zebra, xylophone. Stop words: the, was, and, with. Neither: "3d", ".", "!".
TEXTS = [
    "the film was great and the zebra awful .",
    "dull plot !",
    "a 3d xylophone with charming scene cast and clever story .",
    "the the was .",
]


@pytest.fixture(scope="module")
def masked(make_model: Any) -> Path:
    path: Path = make_model("bert-mlm", layers=2)
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Word vectors: a zebra is nearest to a horse, then to a donkey."""
    file = tmp_path_factory.mktemp("vectors") / "tiny.txt"
    file.write_text("horse 1 0.1\nzebra 1 0\ndonkey 2 0.5\nmoon 0 1\n")
    return file


def published(model: Any, tokenizer: Any, near: dict[str, list[str]], texts: list[str], how: Any) -> list[list[str]]:
    """Algorithm 1 of Jiao et al. (2020) for one sentence after the other, as slowly as it is written there."""
    import torch

    made = []
    for text in texts:
        chance, words, candidates = Random(f"{how.seed}\0{text}"), text.split(), {}
        for place, word in enumerate(words):
            if not set(word) <= set("abcdefghijklmnopqrstuvwxyz") or word in stop_words():
                continue
            candidates[place] = near.get(word, [word])
            if len(tokenizer.tokenize(word)) == 1:
                before = tokenizer.tokenize(" ".join(words[:place]))
                pieces = [*before, "[MASK]", *tokenizer.tokenize(" ".join(words[place + 1 :]))]
                first = ["[CLS]", *pieces, "[SEP]"]
                second = [*tokenizer.tokenize(text), "[SEP]"]
                ids = torch.tensor([tokenizer.convert_tokens_to_ids(first + second)])
                segments = torch.tensor([[0] * len(first) + [1] * len(second)])
                with torch.no_grad():
                    logits = model(input_ids=ids, token_type_ids=segments).logits[0, 1 + len(before)]
                likely = tokenizer.convert_ids_to_tokens(logits.argsort(descending=True)[: how.candidates].tolist())
                whole = [one for one in likely if not one.startswith("##") and one not in tokenizer.all_special_tokens]
                candidates[place] = whole or [word]
        found = [text]
        for _ in range(how.copies):
            copy = list(words)
            for place, some in candidates.items():
                new = chance.choice(some)
                if chance.random() < how.p:
                    copy[place] = new
            if " ".join(copy) not in found:
                found.append(" ".join(copy))
        made.append(found[1:])
    return made


def test_copies_are_those_of_the_published_algorithm(masked: Path, vectors: Path) -> None:
    """Batches, padding or a shifted mask could give candidates of other words; the rows would look as good."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    how = TinyBertAugmentation(model=str(masked), copies=8, candidates=6, embeddings=str(vectors), seed=3)
    rewrite, _ = how.open()
    found = [[row["text"] for row in rows] for rows in rewrite([{"text": text} for text in TEXTS])]
    near = {"zebra": ["horse", "donkey", "moon"]}
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(masked).eval(), AutoTokenizer.from_pretrained(masked)
    assert found == published(model, tokenizer, near, TEXTS, how)
    assert any("horse" in text for text in found[0])
    assert "xylophone" in found[2][0]  # no vector: it stays
    assert found[3] == []  # stop words only


def test_what_is_not_replaced_stays_letter_by_letter(masked: Path) -> None:
    """Joining tokens by spaces would teach models with other tokenizers `don ' t`, and drop capitals."""
    how = TinyBertAugmentation(model=str(masked), copies=3, p=1.0)
    rewrite, _ = how.open()
    (rows,) = rewrite([{"text": "The film  (3D), isn't DULL!"}])
    for row in rows:
        assert row["text"].startswith("The ")
        assert "  (3D), isn't " in row["text"]
        assert row["text"].endswith("!")


def test_pairs_are_rewritten_one_text_after_the_other(masked: Path) -> None:
    """The two texts could be rewritten at once, or the second beside the old first one: not what was published."""
    how = TinyBertAugmentation(model=str(masked), copies=4)
    rewrite, _ = how.open()
    given = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    (rows,) = rewrite([given])
    first = [row for row in rows if row["text_pair"] == given["text_pair"]]
    second = rows[len(first) :]
    assert len(first) == len({row["text"] for row in first}) == 4
    assert {row["text"] for row in second} == {first[-1]["text"]}
    assert len(second) == 4


def test_a_long_text_is_cut_and_its_end_stays(masked: Path) -> None:
    """A text that does not fit twice, or not even once, could crash the model or lose its end."""
    how = TinyBertAugmentation(model=str(masked), copies=2, p=1.0)
    rewrite, _ = how.open()
    for words in (40, 80):  # of at most 64 tokens
        (rows,) = rewrite([{"text": " ".join(["film", "dull"] * (words // 2))}])
        assert rows
        for row in rows:
            assert len(row["text"].split()) == words
            assert row["text"].split()[0] != "film" or row["text"].split()[1] != "dull"
    assert row["text"].endswith("film dull film dull")  # beyond what the model reads


def test_rows_are_made_once_and_only_for_new_texts(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run, and every process of a run, would ask the model anew; a damaged file could be taken for rows."""
    from hf_distill.augmentations.masked_words import MaskedWords

    monkeypatch.setattr(augmentation, "PART", 2)
    asked: list[int] = []
    real = MaskedWords.of
    monkeypatch.setattr(MaskedWords, "of", lambda self, texts: asked.append(len(texts)) or real(self, texts))
    how, lines = TinyBertAugmentation(model=str(masked), copies=3), []
    make = partial(augmented, say=lines.append, root=tmp_path)
    rows = dataset(text=TEXTS)
    first = make(rows, how)
    assert asked == [2, 2]
    again = make(rows, how)
    assert again.to_list() == first.to_list()
    assert again._fingerprint == first._fingerprint
    more = make(dataset(text=[*TEXTS, "a fresh one"]), how)
    assert more.to_list()[: len(first)] == first.to_list()
    assert asked == [2, 2, 1]
    assert len(lines) == 2
    file = next(tmp_path.glob("*/*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    assert make(rows, how).to_list() == first.to_list()
    other = make(rows, TinyBertAugmentation(model=str(masked), copies=3, seed=1))
    assert other.to_list() != first.to_list()


def test_the_nearest_words_have_the_largest_cosine(vectors: Path, tmp_path: Path) -> None:
    """Vectors that are not of length 1 would make frequent words nearest to all others."""
    from scipy.spatial.distance import cosine

    chance = np.random.default_rng(0)
    rows = chance.normal(size=(30, 5)) * chance.uniform(0.1, 10, (30, 1))
    file = tmp_path / "words.txt"
    lines = [f"w{index} {' '.join(map(str, row))}" for index, row in enumerate(rows)]
    file.write_text("30 5\n" + "\n".join(lines) + "\n")  # word2vec's header
    found = WordVectors.read(file).nearest("w7", 4)
    assert found == [f"w{index}" for index in np.argsort([cosine(rows[7], row) for row in rows])[1:5]]
    assert WordVectors.read(vectors).nearest("Zebra", 2) == ["Horse", "Donkey"]
    assert WordVectors.read(vectors).nearest("unicorn", 2) == []


def test_what_cannot_make_rows_is_refused(tiny_bert: Path, make_model: Any, tmp_path: Path) -> None:
    """A random head would replace words by noise; a file of something else would be read as vectors."""
    key, line = refused(TinyBertAugmentation(model=str(tiny_bert)).check)
    assert key == "model"
    assert "BertForSequenceClassification" in line
    assert refused(TinyBertAugmentation(model=str(tiny_bert), embeddings="nowhere.txt").check)[0] == "embeddings"
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("a 1 2\nb 1\n")
    key, line = refused(WordVectors.read, wrong)
    assert key == "embeddings"
    assert "line 2" in line
