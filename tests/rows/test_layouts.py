"""Which logits count, read from two models: a wrong guess trains without an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from invariants.cases import VOCABULARY, make_model
from torch import nn

from hf_distill.models.inspection import base_model
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.inferred import infer_layout
from hf_distill.rows.spans import SpanRows
from hf_distill.rows.tokens import TargetRows, TokenRows

LAYOUTS: dict[str, RowLayout] = {
    "classification": ExampleRows(kind="classes", width=3),
    "multi-label": ExampleRows(kind="binary", width=3),
    "regression": ExampleRows(kind="values", width=2),
    "token-classification": TokenRows(),
    "masked-lm": TokenRows(),
    "causal-lm": TokenRows(shift=True),
    "causal-lm-gpt2": TokenRows(shift=True),
    "sequence-to-sequence": TargetRows(),
    "sequence-to-sequence-t5": TargetRows(),
    "question-answering": SpanRows(),
}


def named(kind: str, names: list[str]) -> Any:
    model = make_model(kind, 1, seed=0)
    model.config.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))
    return model


def tokenizer(size: int) -> Any:
    return SimpleNamespace(get_vocab=lambda: {f"t{index}": index for index in range(size)})


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layout_of_a_model(kind: str) -> None:
    """Logits of a causal model are compared with the next token, those of a masked one with their own."""
    student, teacher = make_model(kind, 1, seed=0), make_model(kind, 2, seed=0)
    assert infer_layout(student, teacher) == LAYOUTS[kind]
    assert infer_layout(student, None) == LAYOUTS[kind]


def test_one_label_is_a_value() -> None:
    """Transformers takes a head of one label for a regression, and so must we: a softmax over one class is constant."""
    model = make_model("classification", 1, seed=0)
    model.config.num_labels = 1
    assert infer_layout(model, None) == ExampleRows(kind="values", width=1)


def test_peft_model() -> None:
    """The class of the wrapper says nothing about the head."""
    import peft

    model = make_model("causal-lm", 1, seed=0)
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert base_model(lora) is model
    assert base_model(model) is model
    assert infer_layout(lora, make_model("causal-lm", 2, seed=0)) == TokenRows(shift=True)


def test_labels_in_another_order() -> None:
    """Two fine-tuned models rarely agree on what class 0 is; compared by number they teach the opposite."""
    ours, theirs = named("classification", ["no", "maybe", "yes"]), named("classification", ["YES", "no", "maybe"])
    assert infer_layout(ours, theirs) == ExampleRows(width=3, teacher_columns=(1, 2, 0))
    placeholders = make_model("classification", 1, seed=0)
    assert infer_layout(placeholders, theirs) == ExampleRows(width=3)
    same = ["O", "PER", "LOC"]
    assert infer_layout(named("token-classification", same), named("token-classification", same)) == TokenRows()
    reverse = named("token-classification", same[::-1])
    assert infer_layout(named("token-classification", same), reverse) == TokenRows(teacher_columns=(2, 1, 0))


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
def test_labels_that_do_not_fit(kind: str) -> None:
    """Heads of equal width about different things would be compared without an error."""
    with pytest.raises(ValueError, match=r"label names differ: wanted \[a, b, c\].*has \[a, b, d\]"):
        infer_layout(named(kind, ["a", "b", "c"]), named(kind, ["a", "b", "d"]))
    with pytest.raises(ValueError, match="the student's head has 3 labels, the teacher's 2"):
        infer_layout(named(kind, ["a", "b", "c"]), named(kind, ["a", "b"]))


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_padded_vocabularies(kind: str) -> None:
    """Columns past the vocabulary are no tokens: with random weights they hold a part of the teacher's probability."""
    student, teacher = make_model(kind, 1, seed=0), make_model(kind, 1, seed=0)
    shift = kind == "causal-lm"
    assert infer_layout(student, teacher, tokenizer(37)) == TokenRows(shift=shift, classes=37)
    assert infer_layout(student, teacher, SimpleNamespace(tokenizer=tokenizer(37))).classes == 37  # type: ignore[attr-defined]
    teacher.config.vocab_size = VOCABULARY + 24
    assert infer_layout(student, teacher, tokenizer(99)) == TokenRows(shift=shift, classes=VOCABULARY)
    for no_tokenizer in (None, SimpleNamespace(size=224)):  # an image processor knows no tokens
        with pytest.raises(ValueError, match=r"heads have 40 and 64 columns.*`processing_class`"):
            infer_layout(student, teacher, no_tokenizer)


def bart(head: Any) -> Any:
    shape = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20, "max_position_embeddings": 8}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    return head(transformers.BartConfig(**shape, **heads))


def test_encoder_decoder_rows_are_the_targets() -> None:
    """BART is listed among the masked language models: taken for one, a summary would be compared with its input."""
    student, teacher = (bart(transformers.BartForConditionalGeneration) for _ in range(2))
    layout = infer_layout(student, teacher, tokenizer(17))
    assert layout == TargetRows(classes=17)
    ids, targets = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 2, -100, -100]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": targets}
    with pytest.raises(ValueError, match=r"needs decoder_input_ids; found input_ids, attention_mask, labels"):
        # As long as the target: BART then reads the source in place of what was said before.
        layout.select(student(input_ids=ids).logits, None, batch)
    with pytest.raises(ValueError, match=r"needs labels.*DataCollatorForSeq2Seq\(tokenizer, model=student\)"):
        layout.units({"input_ids": ids})
    batch["decoder_input_ids"] = torch.tensor([[2, 7, 1, 1]])
    rows = layout.select(torch.randn(1, 4, 20), None, batch)
    assert (tuple(rows.student.shape), rows.labels.tolist()) == ((2, 17), [7, 2])
    units = layout.units(batch)
    assert {name: units[name].tolist() for name in ("row", "label", "example", "token")} == {
        "row": [2], "label": [2], "example": [1], "token": [4],  # tokens: the encoder's
    }  # fmt: skip


def test_unknown_heads_are_refused() -> None:
    """A guess about which logits count would be a loss on the wrong ones."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    images = transformers.ViTForImageClassification(transformers.ViTConfig(**shape))
    for model in (images, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=rf"logits of {type(model).__name__} count.*`layout=`"):
            infer_layout(model, None)


def test_layout_does_not_touch_the_models() -> None:
    """Reading must not write: the student's configuration is saved with it."""
    student = make_model("causal-lm", 1, seed=0)
    before = student.config.to_dict()
    infer_layout(student, make_model("causal-lm", 2, seed=0), tokenizer(37))
    assert student.config.to_dict() == before
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
