"""Vocabularies that differ in special tokens alone: what is compared, exactly, and what is still refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inductor import ON_LOGITS, Inductor
from runs import run, weights
from scipy.special import log_softmax
from torch import Tensor, nn

from hf_distill.data.vocabularies import left_out
from hf_distill.errors import UserError
from hf_distill.models.heads import OutputHead
from hf_distill.models.projection import Side
from hf_distill.objectives import KLDivergence, Labels, Ranking, ReverseKL, RowObjective
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.rows.inferred import infer_layout
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.chunked.compiled import Compiler
from hf_distill.training.chunked.rows import HeadRows

# The student knows ids 0 to 39, the teacher 0 to 37 (and two rows of padding more); 4 and 17 are others to it.
OWN, THEIRS, APART = 40, 38, (4, 17, 38, 39)
SHARED = [number for number in range(OWN) if number not in APART]
LABELS = torch.tensor([4, 5, 39, -100, 17, 30, 0])
LAYOUT = TokenRows(classes=OWN, left_out=APART)


def logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student = torch.randn(1, len(LABELS), 44, dtype=torch.float64) * 3
    return student.requires_grad_(), torch.randn(1, len(LABELS), THEIRS, dtype=torch.float64) * 3


def selected() -> tuple[Tensor, Rows]:
    student, teacher = logits()
    attended = torch.ones(1, len(LABELS))
    return student, LAYOUT.select(student, teacher, {"labels": LABELS[None], "attention_mask": attended})


def test_the_divergence_is_over_what_both_have() -> None:
    """Mass on a token that the other model reads as another one is no mass on it; renormalised, it is left out."""
    student, rows = selected()
    kept = LABELS != -100
    ours, theirs = (one.detach()[0][kept].numpy()[:, SHARED] for one in logits())
    p, q = log_softmax(theirs / 2, -1), log_softmax(ours / 2, -1)
    expected = 4 * (np.exp(p) * (p - q)).sum()
    value = KLDivergence(temperature=2.0).sums(rows)
    assert float(value.detach().sum()) == pytest.approx(expected, rel=1e-12)
    value.sum().backward()
    assert student.grad is not None
    # The gradient by hand, and none to what is left out.
    wanted = 2 * (np.exp(q) - np.exp(p))
    assert np.allclose(student.grad[0][kept].numpy()[:, SHARED], wanted, atol=1e-12)
    assert float(student.grad[..., APART].abs().max()) == float(student.grad[..., OWN:].abs().max()) == 0.0
    agree = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    assert float(rows.agreement().sum()) == agree


def test_labels_are_among_all_the_student_s_own() -> None:
    """A label that the teacher does not know is still what comes next: a student has to learn its own tokens."""
    _, rows = selected()
    known = LABELS != -100
    ours = log_softmax(logits()[0].detach()[0].numpy()[:, :OWN], -1)
    expected = -ours[known.numpy(), LABELS[known].numpy()].sum()
    assert float(Labels().sums(rows).detach().sum()) == pytest.approx(expected, rel=1e-12)


# Of tokens that the student drew: tests/objectives/test_own_samples.py.
@pytest.mark.parametrize("name", [name for name, one in ON_LOGITS.items() if one.unit != "written"])
def test_every_objective_sees_the_shared_columns(name: str) -> None:
    """One that reads the columns as they stand compares a token with its neighbour."""
    objective = ON_LOGITS[name]()
    _, rows = selected()
    place = {number: index for index, number in enumerate(SHARED)}
    known = [label for label in LABELS.tolist() if label != -100]
    labels = torch.tensor([place.get(label, -100) for label in known])
    ours, theirs = (one.detach()[0][LABELS != -100][:, SHARED] for one in logits())
    if objective.needs_teacher:
        expected = objective.rows(ours, theirs, labels).sum()
        assert float(objective.sums(rows).detach().sum()) == pytest.approx(float(expected), rel=1e-12)


@pytest.fixture
def inductor(pieces: Any, monkeypatch: pytest.MonkeyPatch) -> Inductor:
    """Blocks of two rows; in place of Inductor, what runs the traced graph as it is."""
    import torch._inductor

    stand_in = Inductor()
    monkeypatch.setattr(torch._inductor, "compile", stand_in)
    pieces(44, 4, 2)
    return stand_in


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_few_rows_at_a_time(compiled: bool, sparse: bool, inductor: Inductor) -> None:
    """The head's own way to logits has to leave out the same columns, of the student, the teacher and a cache."""
    torch.manual_seed(0)
    hidden, theirs = torch.randn(len(LABELS), 8) * 2, torch.randn(len(LABELS), 8) * 2
    mine, other = nn.Linear(8, 44), nn.Linear(8, THEIRS)
    shared = LAYOUT.shared(torch.device("cpu"))
    objectives: list[RowObjective] = [KLDivergence(temperature=2.0), Labels(), Ranking(), ReverseKL()]
    coefficients = torch.tensor([0.5, 0.3, 0.1, 0.1])
    teacher: Any = Side(OutputHead(other), theirs, torch.float32, OWN, shared)
    if sparse:
        objectives, coefficients = objectives[:2], coefficients[:2]
        teacher = SparseRows.of(teacher.logits().detach(), 9, temperature=2.0)

    def grown(sums: Tensor) -> Tensor:
        mine.zero_grad()
        (sums.sum(0) * coefficients).sum().backward()
        assert mine.weight.grad is not None
        return mine.weight.grad.clone()

    example = torch.arange(len(LABELS)) % 3
    student = Side(OutputHead(mine), hidden, torch.float32, OWN)
    made = HeadRows(student, teacher, LABELS, example, 3, Compiler() if compiled else None, shared)
    sums = made.sums_in_chunks(objectives, coefficients)
    found = sums.detach(), grown(sums), made.agreement()
    dense = teacher if sparse else other(theirs).detach()[:, SHARED]
    rows = Rows(mine(hidden)[:, :OWN], dense, LABELS, example, 3, shared=shared)
    sums = torch.stack([objective.sums(rows) for objective in objectives], -1)
    for one, wanted in zip(found, (sums.detach(), grown(sums), rows.agreement()), strict=True):
        torch.testing.assert_close(one, wanted)
    assert bool(inductor.blocks) == compiled


# ---- Which vocabularies ----------------------------------------------------------------------------------------------


def tokenizer(words: list[str], **special: str) -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", **special)


WORDS = ["<unk>", "</s>", "<|box|>", "a", "great", "film", "is", "dull", "the", "plot", "very", "moving", "and", "it"]
WORDS.append("was")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (WORDS, ()),
        ([*WORDS, "[PAD]", "<extra_0>"], (15, 16)),
        ([WORDS[0], WORDS[1], "<think>", *WORDS[3:]], (2,)),
        ([*WORDS, "longer"], None),
        ([*WORDS[:3], "an", *WORDS[4:]], None),
        ([*WORDS[:3], "<new>", *WORDS[3:]], None),  # all words after it have moved
        (WORDS[:-1], None),
    ],
)
def test_which_tokens_may_differ(other: list[str], expected: tuple[int, ...] | None) -> None:
    """Ordinary tokens that differ make the teacher read another text, and all of its answers are about that one."""
    assert left_out(tokenizer(WORDS), tokenizer(other)) == expected
    assert left_out(tokenizer(other), tokenizer(WORDS)) == expected


def test_as_many_as_one_in_a_hundred() -> None:
    """Half a vocabulary of control tokens is another vocabulary."""
    many = [f"<extra_{number}>" for number in range(17)]
    assert left_out(tokenizer(WORDS), tokenizer([*WORDS, *many])) is None
    words = [*WORDS, *map(str, range(2000))]
    assert left_out(tokenizer(words), tokenizer([*words, *many])) == tuple(range(len(words), len(words) + 17))


def save(directory: Path, words: list[str], layers: int, **special: str) -> Path:
    import transformers

    made = tokenizer(words, **special)
    config = transformers.LlamaConfig(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5, eos_token_id=1,
        bos_token_id=1, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(layers)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    made.save_pretrained(directory)
    return directory


def recipe_of(write_recipe: Callable[..., Path], tmp_path: Path, texts: list[str], **sections: Any) -> Path:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return write_recipe(
        task="text-generation",
        data={"path": {"train": str(data), "validation": str(data)}},
        teacher={"name": "pretrained", "model": str(tmp_path / "teacher")},
        student={"name": "pretrained", "model": str(tmp_path / "student")},
        **sections,
    )


TEXTS = ["a great film", "the plot is moving and dull", "it was very great", "film"] * 4


def test_a_student_with_an_added_padding_token(
    write_recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The padding token is past the end of the teacher's embeddings: an index out of range at the first step. A cache
    numbers the tokens that both have, and one off it would train as quietly."""
    model = {"name": "pretrained", "model": str(save(tmp_path / "teacher", WORDS, 2))}
    save(tmp_path / "student", [*WORDS[:2], "<think>", *WORDS[3:], "[PAD]"], 1, pad_token="[PAD]")
    found = []
    for name, teacher in (
        ("live", model),
        ("cached", {"name": "cached", "teacher": model, "top": 99, "precision": "float32"}),
    ):
        path = recipe_of(write_recipe, tmp_path, TEXTS, training={"output_dir": str(tmp_path / name), "max_steps": 3})
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": teacher}))
        with caplog.at_level(logging.WARNING, "hf_distill"):
            report = run(path)
        found.append((weights(tmp_path / name), report.agreement, report.student.metrics["perplexity"]))
    assert "differ in special or unused tokens: <think> / <|box|> (2), [PAD] (15)" in caplog.text
    assert "mean something else to the teacher" not in caplog.text
    (live, *figures), (cached, *others) = found
    assert others == pytest.approx(figures, rel=1e-5)
    for key, weight in live.items():
        torch.testing.assert_close(cached[key], weight, rtol=1e-4, atol=1e-5)


def test_tokens_of_the_data_that_the_teacher_does_not_have(
    write_recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is another to the teacher is said; one past the end of its embeddings ends in an index out of range."""
    save(tmp_path / "teacher", WORDS, 2)
    save(tmp_path / "student", [*WORDS[:2], "<think>", *WORDS[3:], "[PAD]"], 1, pad_token="[PAD]")
    with pytest.raises(UserError, match=r"example 1 of the train split.*has the token '\[PAD\]' \(15\)"):
        run(recipe_of(write_recipe, tmp_path, ["a film", "a [PAD] film"]))
    with caplog.at_level(logging.WARNING, "hf_distill"):
        run(recipe_of(write_recipe, tmp_path, ["<think> a film", "it was"] * 4), "training.max_steps=1")
    assert "4 of 28 tokens of the train split mean something else to the teacher" in caplog.text


def test_masked_language_models(make_model: Any, tmp_path: Path) -> None:
    """A token that the teacher does not have must not stand for a hidden one: an index past its embeddings."""
    from datasets import Dataset
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from hf_distill.tasks import FillMask, Setup

    path = make_model("bert-mlm")
    own = AutoTokenizer.from_pretrained(path)
    ours, theirs = len(own), AutoModelForMaskedLM.from_pretrained(path)
    own.add_special_tokens({"additional_special_tokens": ["[ONE]"], "pad_token": "[TWO]"})
    data = Dataset.from_dict({"text": ["a great film", "the plot"] * 40})
    setup = Setup(own, configs=(theirs.config,) * 2, max_length=16, left_out=(ours, ours + 1))
    prepared = FillMask(mask_share=0.9).prepare({"train": data, "eval": data}, setup)
    assert prepared.layout == TokenRows(classes=ours + 2, left_out=(ours, ours + 1))
    batch = prepared.collator([{**row} for row in prepared.train])
    assert int(batch["input_ids"].max()) < ours
    theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_models_without_a_recipe(tmp_path: Path) -> None:
    """A label past the end of the teacher's head was an index out of range in Python."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    teacher, student = save(tmp_path / "teacher", WORDS, 2), save(tmp_path / "student", [*WORDS, "[PAD]"], 1)
    models = [AutoModelForCausalLM.from_pretrained(one) for one in (student, teacher)]
    layout = infer_layout(*models, AutoTokenizer.from_pretrained(student))
    assert layout == TokenRows(shift=True, classes=16, left_out=(15,))
