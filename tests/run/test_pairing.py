"""Pairs of models: whatever would make one batch mean two things is refused before a weight is loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared import refused

from hf_distill.data.section import Data
from hf_distill.models.pair import Pair
from hf_distill.objectives import KLDivergence
from hf_distill.recipe.recipe import Recipe
from hf_distill.run.pairing import open_pair
from hf_distill.students import CopyLayers, FromConfig, PretrainedStudent, Student
from hf_distill.tasks import TASKS
from hf_distill.teachers import FinetunedTeacher, PretrainedTeacher, Teacher


def recipe(teacher: Teacher | Path, student: Student | Path, **sections: Any) -> Recipe:
    data = sections.pop("data", {})
    return Recipe(
        task=TASKS[sections.pop("task", "text-classification")](),
        data=Data(path="unread.csv", **data),
        teacher=teacher if isinstance(teacher, Teacher) else PretrainedTeacher(model=str(teacher)),
        student=student if isinstance(student, Student) else PretrainedStudent(model=str(student)),
        objectives=(KLDivergence(),),
        training={"output_dir": "unused"},
        **sections,
    )


def pair(*models: Any, **sections: Any) -> Pair:
    return open_pair(recipe(*models, **sections))


def mistake(*models: Any, **sections: Any) -> str:
    """Return the one line, key first, that a pair is refused with."""
    _, line = refused(lambda: pair(*models, **sections))
    return line


def copy(source: Path, to: Path, *, without: str | None = None, **config: Any) -> Path:
    """Return a copy of a model with another configuration, or without some of its files."""
    directory = Path(shutil.copytree(source, to))
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    for file in directory.glob(without) if without else ():
        file.unlink()
    return directory


# ---- Heads -----------------------------------------------------------------------------------------------------------


def test_which_heads_count(make_model: Any) -> None:
    """Only a head that was trained has an order of labels worth matching."""
    named, bare = make_model("bert"), make_model("bert-bare")
    found = pair(named, bare)
    assert found.teacher_head is found.teacher
    assert found.student_head is None
    found = pair(FinetunedTeacher(model=str(bare)), named)
    assert found.teacher_head is None
    assert found.student_head is not None
    copied = pair(named, CopyLayers(layers=2))
    assert copied.student_head is None
    assert copied.student.num_hidden_layers == 2


def test_a_teacher_without_a_trained_head(make_model: Any) -> None:
    """A random head teaches noise with perfect agreement of loss and curve; found before the data is read."""
    for kind, name in (("bert-bare", "BertModel"), ("bert-tokens", "BertForTokenClassification")):
        line = mistake(make_model(kind), make_model("bert"))
        assert line.startswith(f"teacher.model: this checkpoint is a {name}: it has no trained head for the task")
        assert "teacher: {name: finetuned, model: ...}" in line


def test_label_names_of_two_heads(make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Two heads of the same size and other classes fit by shape alone."""
    teacher = make_model("bert", labels=("negative", "positive"))
    pair(teacher, make_model("bert", labels=("POSITIVE", "negative")))
    line = mistake(teacher, make_model("bert", labels=("ham", "spam")))
    assert line.startswith(
        "student.model: label names differ: wanted [ham, spam], but the teacher has [negative, positive]"
    )
    assert "Start from a checkpoint without a head for this task" in line
    line = mistake(teacher, make_model("bert", labels=("a", "b", "c")))
    assert line.startswith("student.model: its head has 3 outputs, the teacher's 2.")
    assert not caplog.records


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


def test_the_same_vocabulary_is_enough(make_model: Any) -> None:
    """BERT and DistilBERT share a vocabulary under two classes of tokenizer."""
    found = pair(make_model("bert"), make_model("distilbert"))
    assert len(found.tokenizer) == found.teacher.vocab_size


def test_vocabularies_that_differ(make_model: Any) -> None:
    """Where each token is compared the same number is another word: the student learns to answer to gibberish."""
    words = ["film", "great"]
    masked = [make_model("bert-mlm", vocab=order) for order in (words, words[::-1])]
    line = mistake(*masked, task="fill-mask")
    assert line.endswith("Choose a student of the teacher's family, or student: {name: copy_layers, ...}.")
    assert "('great' is number 5 in one and 6 in the other). fill-mask compares the models token by token" in line
    tagged = mistake(make_model("bert-tokens"), make_model("roberta"), task="token-classification")
    assert "token-classification compares the models token by token" in tagged


def test_a_classifier_and_its_teacher_keep_their_own_tokenizers(make_model: Any) -> None:
    """They are compared by text; refused, RoBERTa could teach no BERT."""
    bert, roberta = make_model("bert"), make_model("roberta")
    found = pair(roberta, bert)
    assert found.teacher_tokenizer is not None
    assert [type(one).__name__ for one in (found.tokenizer, found.teacher_tokenizer)] == [
        "BertTokenizer",
        "RobertaTokenizer",
    ]
    assert pair(bert, make_model("distilbert")).teacher_tokenizer is None
    decoders = pair(make_model("gpt2"), make_model("llama"))
    assert decoders.teacher_tokenizer is not None
    assert decoders.tokenizer.pad_token == "</s>"
    assert decoders.teacher_tokenizer.pad_token == "<|endoftext|>"


def test_each_model_is_checked_against_its_own_tokenizer(make_model: Any, tmp_path: Path) -> None:
    """RoBERTa's tokens in BERT's embedding are an index error, or a lookup of something else, that nobody asked for."""
    bert, roberta = make_model("bert"), make_model("roberta")
    small = copy(roberta, tmp_path / "small", vocab_size=20)
    line = mistake(small, bert)
    assert line.startswith("teacher.model: the tokenizer has a token number ")
    assert line.endswith(
        "but the model's vocabulary ends at 19. Name the tokenizer that belongs to the model: tokenizer: ..."
    )
    assert mistake(roberta, copy(bert, tmp_path / "bert", vocab_size=20)).startswith("student.model: the tokenizer has")
    # The shorter of all limits holds for both: they read the same part of a text, about.
    short = copy(roberta, tmp_path / "short", max_position_embeddings=34)
    assert pair(short, bert).max_length == 32
    assert mistake(short, bert, data={"max_length": 40}).endswith("wanted at most 32.")


def test_layers_of_another_model_come_with_its_tokenizer(make_model: Any) -> None:
    """Layers of a BERT under a RoBERTa teacher would be fed RoBERTa's tokens, which fit into the table by chance."""
    bert, roberta = make_model("bert"), make_model("roberta")
    found = pair(roberta, CopyLayers(layers=2, model=str(bert)))
    assert found.teacher_tokenizer is not None
    assert type(found.tokenizer).__name__ == "BertTokenizer"
    assert pair(roberta, CopyLayers(layers=2)).teacher_tokenizer is None
    lm = CopyLayers(layers=2, model=str(make_model("gpt2-lm")))
    assert pair(make_model("llama-lm"), lm, task="text-generation").teacher_tokenizer is not None


def test_a_tokenizer_of_its_own_is_compared_with_both(make_model: Any) -> None:
    """`tokenizer:` does not make two vocabularies one."""
    bert, roberta = make_model("bert"), make_model("roberta")
    line = mistake(bert, bert, tokenizer=str(roberta))
    assert line.startswith("student.model: the vocabularies of tokenizer and student differ (")
    assert line.endswith("One tokenizer cannot be used for both. Leave out `tokenizer`: each model then uses its own.")
    assert mistake(bert, roberta, tokenizer=str(bert)).startswith(
        "student.model: the vocabularies of tokenizer and student differ ("
    )
    found = pair(bert, bert, tokenizer=str(make_model("distilbert")))
    assert type(found.tokenizer).__name__ == "DistilBertTokenizer"
    assert found.teacher_tokenizer is None
    assert mistake(bert, bert, tokenizer="./nowhere").startswith("tokenizer: no such file or directory")


def test_the_same_vocabulary_and_another_way_to_split(make_model: Any, tmp_path: Path) -> None:
    """Cased and uncased tokenizers may share a vocabulary; a teacher fed the other one's tokens is half blind."""
    import transformers

    def cased(kind: str) -> Path:
        path = copy(make_model(kind), tmp_path / kind)
        vocab = transformers.AutoTokenizer.from_pretrained(str(path)).get_vocab()
        transformers.BertTokenizer(vocab=vocab, do_lower_case=False, model_max_length=64).save_pretrained(path)
        return path

    masked = make_model("bert-mlm")
    line = mistake(masked, cased("bert-mlm"), task="fill-mask")
    assert line.startswith("student.model: student and teacher have the same vocabulary but split text differently")
    assert line.endswith("Say which tokenizer to use for both: tokenizer: ...")
    bert, other = make_model("bert"), cased("bert")
    found = pair(bert, other)
    assert found.teacher_tokenizer is not None
    assert found.teacher_tokenizer.tokenize("GREAT") == ["great"]
    assert found.tokenizer.tokenize("GREAT") != ["great"]
    chosen = pair(bert, other, tokenizer=str(bert))
    assert chosen.tokenizer.tokenize("GREAT") == ["great"]
    assert chosen.teacher_tokenizer is None


def test_a_student_built_from_a_configuration_takes_the_teacher_s_tokenizer(make_model: Any) -> None:
    """`from_config` takes over the teacher's vocabulary; the tokenizer beside the named configuration means nothing."""
    bert, roberta = make_model("bert"), make_model("roberta")
    found = pair(bert, FromConfig(model=str(roberta), overrides={"num_hidden_layers": 1}))
    assert type(found.tokenizer).__name__.startswith("Bert")


def test_weights_without_a_tokenizer(make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One tokenizer is enough, but that it is the right one is then only a hope, and said so."""
    bert = make_model("bert")
    bare = copy(bert, tmp_path / "bare", without="tokenizer*")
    with caplog.at_level(logging.WARNING, "hf_distill"):
        found = pair(bert, bare)
    assert found.tokenizer.tokenize("great") == ["great"]
    assert len(caplog.records) == 1
    assert "it cannot be checked whether that model uses the same tokens." in caplog.text
    assert mistake(bare, CopyLayers(layers=2)).startswith(f"teacher.model: '{bare}' has no tokenizer.")


def test_a_tokenizer_larger_than_the_embedding(make_model: Any, tmp_path: Path) -> None:
    """Added tokens without `resize_token_embeddings`: an index error at the first text that has one."""
    bert = make_model("bert")
    small = copy(bert, tmp_path / "small", vocab_size=50)
    line = mistake(bert, small)
    assert line.startswith("student.model: the tokenizer has a token number ")
    assert "but the model's vocabulary ends at 49" in line
    # Rows without a token are usual: models pad their embeddings to round sizes.
    pair(bert, copy(bert, tmp_path / "large", vocab_size=1024))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_get_a_padding_token(kind: str, make_model: Any) -> None:
    """Without one the first batch of two lengths fails."""
    tokenizer = pair(make_model(kind), CopyLayers(layers=2)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer(["great", "great film"], padding=True)["attention_mask"][0][-1] in (0, 1)


def test_nothing_to_pad_with(make_model: Any, tmp_path: Path) -> None:
    """A tokenizer with neither padding nor end of text is told now, not by the collator."""
    bert = copy(make_model("bert"), tmp_path / "bert")
    config = json.loads((bert / "tokenizer_config.json").read_text())
    (bert / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    assert mistake(bert, CopyLayers(layers=2)).startswith(
        "tokenizer: it has neither a padding token nor an end of text"
    )


# ---- Length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_the_longest_input_runs_and_one_more_is_refused(kind: str, make_model: Any, tmp_path: Path) -> None:
    """RoBERTa keeps two of its 66 positions for itself: 65 tokens are an index error, on some rows only."""
    import torch
    import transformers

    model = make_model(kind)
    # The tokenizer's own limit would hide the model's.
    path = copy(model, tmp_path / kind)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 10**30}))
    found = pair(path, CopyLayers(layers=2))
    assert found.max_length == 64
    assert mistake(path, CopyLayers(layers=2), data={"max_length": 65}) == (
        "data.max_length: 65 tokens are more than the models take; wanted at most 64."
    )
    assert pair(path, CopyLayers(layers=2), data={"max_length": 64}).max_length == 64
    ids = found.tokenizer("film " * 100, truncation=True, max_length=found.max_length, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 64)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        assert loaded(ids).logits.isfinite().all()
        if kind != "llama":  # rotary positions have no end
            with pytest.raises((IndexError, RuntimeError)):
                loaded(torch.cat((ids, ids[:, -1:]), 1))


def test_the_shorter_model_and_the_tokenizer_limit_the_input(make_model: Any, tmp_path: Path) -> None:
    """A student with 32 positions of a teacher with 64 takes 32."""
    bert = make_model("bert")
    short = copy(bert, tmp_path / "short", max_position_embeddings=32)
    assert pair(bert, short).max_length == 32
    assert mistake(bert, short, data={"max_length": 40}).endswith("wanted at most 32.")
    long = copy(bert, tmp_path / "long", max_position_embeddings=512)
    assert pair(long, long).max_length == 64  # the tokenizer's own
    assert pair(long, long, data={"max_length": 100}).max_length == 100
    assert pair(long, long, data={"max_length": 16}).max_length == 16


# ---- Places ----------------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(make_model: Any) -> None:
    """The line says whose model it is."""
    bert = make_model("bert")
    assert mistake(Path("/no/such/model"), bert).startswith("teacher.model: no such file or directory")
    assert mistake(bert, Path("/no/such/model")).startswith("student.model: no such file or directory")


def test_code_of_a_tokenizer_runs_only_where_allowed(make_model: Any, tmp_path: Path) -> None:
    """`trust_remote_code` of an entry goes for its tokenizer too: code that runs unasked is the worst failure here."""
    path = copy(make_model("bert"), tmp_path / "mine")
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "tok.Mine"]}, "tokenizer_class": "Mine"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "tok.py").write_text("from transformers import BertTokenizer\nclass Mine(BertTokenizer):\n    pass\n")
    names = [
        type(pair(PretrainedTeacher(model=str(path), trust_remote_code=trust), CopyLayers(layers=2)).tokenizer).__name__
        for trust in (False, True)
    ]
    assert names[0] != "Mine"
    assert names[1] == "Mine"
