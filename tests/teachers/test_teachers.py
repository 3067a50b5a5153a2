"""Teachers: what is loaded, in which state, and what cannot teach."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.teachers import PretrainedTeacher

TWO = Head(
    "AutoModelForSequenceClassification",
    {"num_labels": 2, "id2label": {0: "positive", 1: "negative"}, "pad_token_id": 0, "problem_type": "regression"},
)


def never(*_: Any) -> Any:
    raise AssertionError("a pretrained teacher is not trained")


def test_a_pretrained_teacher_is_as_it_was_saved(make_model: Any) -> None:
    """With dropout on, or with the student's label order written over its own, its targets are noise or wrong."""
    path = make_model("bert", labels=("negative", "positive"), hidden_dropout_prob=0.5)
    teacher = PretrainedTeacher(model=str(path))
    assert teacher.source == str(path)
    assert teacher.has_head
    assert teacher.config().id2label == {0: "negative", 1: "positive"}
    model = teacher.load(TWO, never)
    assert not model.training
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.problem_type is None
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("saved", "asked", "loaded"),
    [
        ("float32", "float32", torch.float32),
        ("bfloat16", "float32", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float32", "bfloat16", torch.bfloat16),
        ("float32", "float16", torch.float16),
    ],
)
def test_the_teacher_s_precision(saved: str, asked: Any, loaded: torch.dtype, make_model: Any, tmp_path: Path) -> None:
    """Half precision is asked for, never slipped in: Transformers 5 takes the checkpoint's unless told otherwise."""
    import transformers

    path = tmp_path / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(make_model("bert"))
    model.to(getattr(torch, saved)).save_pretrained(path)
    assert PretrainedTeacher(model=str(path), dtype=asked).load(TWO, never).dtype == loaded


def test_no_other_precision() -> None:
    """A dtype that torch does not know would fail after the data is read."""
    with pytest.raises(ValueError, match="dtype"):
        PretrainedTeacher(model="x", dtype="int8")  # type: ignore[arg-type]


def test_a_checkpoint_that_hides_its_missing_head(make_model: Any, tmp_path: Path) -> None:
    """A configuration can claim a head that the weights do not hold; loading is the last chance to see it."""
    path = Path(shutil.copytree(make_model("bert-bare"), tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(UserError, match="has no trained head for this task") as caught:
        PretrainedTeacher(model=str(path)).load(TWO, never)
    assert caught.value.key == "model"
    assert "classifier.bias, classifier.weight" in caught.value.mistakes[0]


def test_a_head_of_another_size_than_its_configuration_says(make_model: Any, tmp_path: Path) -> None:
    """Edited by hand, a configuration of three labels over a head of two would get a new, random head."""
    path = Path(shutil.copytree(make_model("bert"), tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (path / "config.json").write_text(json.dumps({**config, **labels}))
    with pytest.raises(UserError, match="would teach noise"):
        PretrainedTeacher(model=str(path)).load(TWO, never)


HEADS = {
    "AutoModelForSequenceClassification": ["bert", "roberta", "distilbert"],
    "AutoModelForTokenClassification": ["bert-tokens", "gpt2-lm"],
    "AutoModelForQuestionAnswering": ["bert-qa", "gpt2-lm"],
}


@pytest.mark.parametrize(("auto_class", "kind"), [(name, kind) for name, kinds in HEADS.items() for kind in kinds])
def test_a_head_that_was_saved_before_it_was_trained(
    auto_class: str, kind: str, make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`AutoModelForQuestionAnswering.from_pretrained("gpt2").save_pretrained(...)`: nothing is missing in what that
    wrote, and a student learns from a random head with not a word said."""
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(make_model(kind))
    teacher = PretrainedTeacher(model=str(tmp_path))
    model.save_pretrained(tmp_path)
    teacher.load(Head(auto_class), never)
    (warning,) = [record.message for record in caplog.records if record.name.startswith("hf_distill")]
    assert warning.startswith(f"{tmp_path}: every bias of its head is exactly 0 (")
    assert "fine-tuned" in warning
    caplog.clear()
    head = next(name for name, _ in reversed(list(model.named_parameters())) if name.endswith("bias"))
    with torch.no_grad():
        model.get_parameter(head)[0] = 1e-4  # one step of training
    model.save_pretrained(tmp_path)
    teacher.load(Head(auto_class), never)
    assert not [record for record in caplog.records if record.name.startswith("hf_distill")]


@pytest.mark.parametrize("kind", ["gpt2-lm", "bert-mlm"])
def test_language_models_are_not_suspected(kind: str, make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Their heads have no bias, or one that a published model may have left at 0."""
    auto_class = "AutoModelForMaskedLM" if kind == "bert-mlm" else "AutoModelForCausalLM"
    PretrainedTeacher(model=str(make_model(kind))).load(Head(auto_class), never)
    assert not [record for record in caplog.records if record.name.startswith("hf_distill")]
