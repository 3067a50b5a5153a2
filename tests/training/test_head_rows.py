"""Rows before the head: the same sums and gradients as from all logits at once, without ever making them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from invariants.cases import largest_difference, make_trainer, split, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from versions import CHECKPOINTING

from hf_distill.models.heads import OutputHead, open_head
from hf_distill.models.projection import Side
from hf_distill.objectives import (
    DecoupledKL,
    JensenShannon,
    KLDivergence,
    Labels,
    LogitsMSE,
    Ranking,
    ReverseKL,
    RowObjective,
)
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.chunked import rows as head_rows
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.chunked.rows import HeadRows

VOCABULARY = 97
TOKENS = 90
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.5,
}  # fmt: skip
STACKS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.5,
}  # fmt: skip
HEADS = {"head_dim": 8, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**COMMON),
    "llama, tied": transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**COMMON, **HEADS),
    "gemma2, soft cap": transformers.Gemma2Config(**COMMON, **HEADS, final_logit_softcapping=3.0),
    "cohere, logit scale": transformers.CohereConfig(**COMMON, logit_scale=0.25),
    "granite, logits scaling": transformers.GraniteConfig(**COMMON, logits_scaling=3.0),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "bert, transform and bias": transformers.BertConfig(**COMMON),
    "distilbert": transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=4, hidden_dim=48),
    "electra, narrow embeddings": transformers.ElectraConfig(**COMMON, embedding_size=16),
    "t5, scaled": transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, num_layers=1, num_heads=4, d_ff=48, decoder_start_token_id=0
    ),
    "bart, logits bias": transformers.BartConfig(**STACKS),
}
# What these do to their logits they do in bfloat16, and round a second time, where chunks are in float32 by then.
ROUNDED_AGAIN = ("gemma2, soft cap", "granite, logits scaling")
ENCODERS = ("bert", "distilbert", "electra")
OBJECTIVES: tuple[RowObjective, ...] = (
    KLDivergence(temperature=2.0),
    Labels(label_smoothing=0.1),
    ReverseKL(),
    JensenShannon(),
    DecoupledKL(temperature=2.0),
    Ranking(),
    LogitsMSE(),
)
COEFFICIENTS = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05, 0.1, 0.01]) / 7


@pytest.fixture(autouse=True)
def small_pieces(pieces: Any) -> None:
    """Chunks of five rows in blocks of two: no number of rows here divides by them."""
    pieces(VOCABULARY, 5, 2)


def make(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[name]
    if config.is_encoder_decoder:
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    elif name.startswith(ENCODERS):
        model = transformers.AutoModelForMaskedLM.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    if "final_logits_bias" in model._buffers:
        model._buffers["final_logits_bias"].normal_()
    for parameter in model.parameters():  # biases begin at 0, and a bias that is left out would not be missed
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def batch(model: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    labels = torch.randint(3, TOKENS, (3, 7))
    labels[0, :3] = labels[2] = -100
    labels[1, 2] = -1  # its label is not known
    inputs = {"input_ids": torch.randint(3, TOKENS, (3, 7)), "labels": labels}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, TOKENS, (3, 7))
    return inputs


def run(model: Any, inputs: dict[str, Tensor]) -> Any:
    return model(**{name: value for name, value in inputs.items() if name != "labels"})


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def compare(
    student: Any, teacher: Any, layout: TokenRows, autocast: bool = False, scale: float = 3.0
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Yield sums, agreement and gradients: from all logits at once, and in chunks."""
    inputs = batch(student)
    heads = Heads.open(student, {"teacher": teacher})
    assert heads is not None
    for in_chunks in (False, True):
        student.zero_grad()
        context = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
        if in_chunks:
            with heads.capturing():
                with torch.no_grad(), context:
                    run(teacher, inputs)
                with context:
                    run(student, inputs)
            rows: Rows = heads.rows(layout, inputs)
            assert isinstance(rows, HeadRows)
            sums = rows.sums_in_chunks(OBJECTIVES, COEFFICIENTS)
        else:
            with torch.no_grad(), context:
                theirs = run(teacher, inputs).logits
            with context:
                ours = run(student, inputs).logits
            rows = layout.select(ours, theirs, inputs)
            sums = torch.stack([objective.sums(rows) for objective in OBJECTIVES], -1)
        ((sums.sum(0) * COEFFICIENTS).sum() * scale).backward()  # such as a loss scale
        yield sums.detach(), rows.agreement(), gradients(student)


def relative(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    scale = max(float(one.abs().max()) for one in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / scale


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the length of the difference of all gradients together, relative to their length."""
    assert found.keys() == wanted.keys()
    differences, lengths = (
        torch.stack([one.double().square().sum() for one in parts])
        for parts in ([found[name].double() - wanted[name].double() for name in wanted], wanted.values())
    )
    return float((differences.sum() / lengths.sum()).sqrt())


@pytest.mark.parametrize("name", CONFIGS)
def test_sums_and_gradients_are_those_of_all_logits(name: str) -> None:
    """A bias, scale or cap of some architecture that is left out trains towards other targets, and nothing fails."""
    student, teacher = make(name, 1, torch.float64), make(name, 2, torch.float64)
    layout = TokenRows(shift=not (name.startswith(ENCODERS) or student.config.is_encoder_decoder), classes=TOKENS)
    (wanted, agreed, expected), (found, agreement, got) = compare(student, teacher, layout)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(agreement, agreed)
    assert relative(got, expected) < 1e-7  # some compute norms in float32 all the same


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision(name: str) -> None:
    """Under autocast the products are in bfloat16 on both ways, sums and softmax in float32. What the two ways round
    apart is the gradient of the head's weights, summed chunk by chunk: the model below it sees the same."""
    student, teacher = make(name, 1), make(name, 2)
    layout = TokenRows(shift=not (name.startswith(ENCODERS) or student.config.is_encoder_decoder), classes=TOKENS)
    (wanted, _, expected), (found, _, got) = compare(student, teacher, layout, autocast=True, scale=1.0)
    assert found.dtype == torch.float32
    if name in ROUNDED_AGAIN:
        (_, _, exact), _ = compare(student, teacher, layout, scale=1.0)
        torch.testing.assert_close(found, wanted, rtol=3e-2, atol=1e-2)
        assert distance(got, expected) < distance(expected, exact)
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
        assert distance(got, expected) < 5e-3


def head_gradients(way: str, weights: torch.dtype, product: torch.dtype) -> dict[str, Tensor]:
    """Return the gradients of 512 rows of 2,000 classes, whose numbers are all bfloat16 whatever `weights` is."""
    torch.manual_seed(0)
    rows, width, classes = 512, 128, 2000
    student, teacher = (torch.randn(classes, width) * 2 / width**0.5 for _ in range(2))
    hidden, theirs = torch.randn(rows, width), torch.randn(rows, width)
    near = (0.7 * student + 0.7 * teacher, 0.7 * hidden + 0.7 * theirs)  # what a teacher is, after some training
    sides = []
    for weight, states in ((student, hidden), near):
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = nn.Parameter(weight.bfloat16().to(weights))
        sides.append(Side(OutputHead(linear), states.bfloat16().to(weights).requires_grad_(), product))
    labels, example = torch.randint(0, classes, (rows,)), torch.zeros(rows, dtype=torch.long)
    made = HeadRows(sides[0], sides[1], labels, example, 1)
    terms, coefficients = (KLDivergence(temperature=2.0), Labels()), torch.full((2,), 0.5 / rows)
    if way == "all":
        plain = Rows(made.student, sides[1].logits().detach(), labels, example, 1)
        sums = torch.stack([term.sums(plain) for term in terms], -1)
    else:
        sums = made.sums_in_chunks(terms, coefficients)
    (sums.sum(0) * coefficients).sum().backward()
    made_of = {"hidden": sides[0].hidden, "weight": sides[0].head.linear.weight}
    return {name: one.grad for name, one in made_of.items() if one.grad is not None}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "half weights"])
@pytest.mark.parametrize("rows", [8, 64, 512])
def test_half_precision_of_the_head(weights: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is summed in bfloat16 loses a bit with every chunk: of 64 chunks, 6e-3 of it were noise."""
    monkeypatch.setitem(head_rows.CHUNK_BYTES, "cpu", 2000 * 2 * rows)
    monkeypatch.setattr(head_rows, "BLOCK_BYTES", 2000 * 4 * 8)
    chunked, plain = (head_gradients(way, weights, torch.bfloat16) for way in ("chunked", "all"))
    exact = head_gradients("all", torch.float64, torch.float64)
    assert distance(chunked, plain) < 5e-3
    assert chunked["weight"].dtype == weights
    for name in exact:
        rounded = distance({name: plain[name]}, {name: exact[name]})
        assert 1e-3 < rounded < 1e-2
        assert distance({name: chunked[name]}, {name: exact[name]}) < 1.4 * rounded
    assert torch.equal(chunked["hidden"], plain["hidden"])


def test_autocast_does_not_reach_the_sums() -> None:
    """A custom loop may have it on around everything. Some sums over classes are products to PyTorch, and would be
    rounded to three digits."""
    student, teacher = make("llama", 1), make("llama", 2)
    inputs, heads = batch(student), Heads.open(student, {"teacher": teacher})
    assert heads is not None
    found = []
    for autocast in (False, True):
        with heads.capturing():
            run(teacher, inputs)
            run(student, inputs)
        rows = heads.rows(TokenRows(shift=True), inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found.append(rows.sums_in_chunks(OBJECTIVES, COEFFICIENTS))
    assert torch.equal(*found)


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 2), (4, 4), (1000, 7), (1000, 1000)])
def test_pieces_do_not_matter(chunk: int, block: int, pieces: Any) -> None:
    """The last piece is shorter than the others: left out, or counted twice, it changes one run in ten."""
    pieces(VOCABULARY, chunk, block)
    student, teacher = make("llama", 1), make("llama", 2)
    (wanted, _, expected), (found, _, got) = compare(student, teacher, TokenRows(shift=True, classes=TOKENS))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert relative(got, expected) < 1e-6


def rows_of(hidden: Tensor, weight: Tensor) -> HeadRows:
    """Rows without a teacher, of a head with these weights."""
    linear = nn.Linear(1, 1, bias=False)
    linear._parameters["weight"] = weight  # type: ignore[assignment]
    side = Side(OutputHead(linear), hidden, hidden.dtype)
    return HeadRows(side, None, torch.arange(len(hidden)), torch.arange(len(hidden)), len(hidden))


@pytest.mark.parametrize("rows", [1, 255, 256, 263, 2000, 2048, 8192])
def test_chunks_are_alike(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last chunk of another size does not fit where the one before was: a fifth more memory at the peak."""
    monkeypatch.setitem(head_rows.CHUNK_BYTES, "cpu", 32 * 2**20)
    monkeypatch.setattr(head_rows, "BLOCK_BYTES", 2 * 2**20)
    chunk, block = rows_of(torch.empty(rows, 4), torch.empty(32000, 4)).pieces()
    number = -(-rows // chunk)
    assert chunk * 32000 * 4 <= head_rows.CHUNK_BYTES["cpu"]
    assert chunk % block == 0
    assert number == -(-rows // 256), "and no more of them than it takes"
    assert rows - (number - 1) * chunk > chunk - number * block


def test_the_gradient_of_the_weights_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as large as the head; held by anyone else, autograd makes a second one of it in every step."""
    weight, hidden = torch.randn(VOCABULARY, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    made: list[int] = []
    carry = head_rows._ChunkedPass._carry_back

    def remember(chunks: Any, *args: Any) -> None:
        carry(chunks, *args)
        made.append(chunks.gradients[1].data_ptr())

    monkeypatch.setattr(head_rows._ChunkedPass, "_carry_back", remember)
    rows_of(hidden, weight).sums_in_chunks((Labels(),), torch.ones(1)).sum().backward()
    assert weight.grad is not None
    assert {weight.grad.data_ptr()} == set(made)


def test_a_second_backward_pass_is_refused() -> None:
    """The gradient was scaled in place: handed out again it would be scaled twice."""
    weight, hidden = torch.randn(VOCABULARY, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    loss = rows_of(hidden, weight).sums_in_chunks((Labels(),), torch.ones(1)).sum() * 3
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Compute the loss again"):
        loss.backward()


def test_a_sparse_teacher() -> None:
    """Its rows are cut into the same pieces as the student's."""
    student, teacher = make("llama", 1), make("llama", 2)
    inputs, layout = batch(student), TokenRows(shift=True)
    places, head = layout.places(inputs), open_head(student)
    assert head is not None
    kept = SparseRows.of(places.pick(run(teacher, inputs).logits), 8, temperature=2.0)
    hidden = student.model(inputs["input_ids"]).last_hidden_state
    rows = HeadRows(Side(head, places.pick(hidden), torch.float32), kept, places.labels, places.example, 3)
    sums = rows.sums_in_chunks((KLDivergence(temperature=2.0),), torch.ones(1))
    plain = Rows(places.pick(run(student, inputs).logits), kept, places.labels, places.example, 3)
    torch.testing.assert_close(sums[:, 0], KLDivergence(temperature=2.0).sums(plain))
    assert torch.equal(rows.agreement(), plain.agreement())


def test_a_frozen_head_has_no_gradient() -> None:
    """Under LoRA the head is frozen: its gradient is a third of the head's work and a tensor as large as the head."""
    student, teacher = make("llama", 1), make("llama", 2)
    student.lm_head.requires_grad_(False)
    (_, _, expected), (_, _, got) = compare(student, teacher, TokenRows(shift=True))
    assert "lm_head.weight" not in got
    assert relative(got, expected) < 1e-6


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_no_tensor_of_all_logits_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place that makes them after all, and all the memory is gone: in training or in evaluation."""
    largest = {}
    for way in ("chunked", "all"):
        trainer = make_trainer("causal-lm", tmp_path, max_steps=1, prediction_loss_only=True, **split(8))
        if way == "all":
            monkeypatch.setattr(trainer, "_heads", None)
        with Largest() as found:
            trainer.train()
            trainer.evaluate()
        largest[way] = found.elements
    vocabulary = trainer.model.config.vocab_size
    assert largest["all"] in [8 * longest * vocabulary for longest in range(3, 15)]
    assert largest["chunked"] < largest["all"]


@pytest.mark.parametrize("kind", ["causal-lm", "masked-lm", "sequence-to-sequence"])
@pytest.mark.parametrize("settings", [{}, CHECKPOINTING], ids=["plain", "activation checkpointing"])
def test_training_is_that_of_all_logits(
    kind: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three optimiser steps of accumulated micro-batches, logs included, from rows and from all logits."""
    chunked = make_trainer(kind, tmp_path, num_train_epochs=1, **split(2), **settings)
    assert chunked._heads is not None
    plain = make_trainer(kind, tmp_path, num_train_epochs=1, **split(2), **settings)
    monkeypatch.setattr(plain, "_heads", None)
    one, other = train(chunked), train(plain)
    assert largest_difference(one, other) < 1e-12
    assert one.losses == pytest.approx(other.losses, rel=1e-12)
    for mine, theirs in zip(one.logs, other.logs, strict=True):
        for name in ("loss", "objective/kl", "objective/labels", "agreement"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6)
    ours, others = chunked.evaluate(), plain.evaluate()
    assert ours["eval_loss"] == pytest.approx(others["eval_loss"], rel=1e-12)


class Shifted(transformers.LlamaForCausalLM):
    """Does something to its logits that nobody knows of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output["logits"] = output["logits"].flip(-1)
        return output


def test_a_head_that_cannot_be_taken_apart_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken apart all the same, the model would be trained as another one; without a word, memory would be a riddle."""
    torch.manual_seed(0)
    odd = Shifted(transformers.LlamaConfig(**COMMON)).eval()
    assert open_head(odd) is None
    assert Heads.open(odd, {"teacher": make("llama", 2)}) is None
    assert open_head(make("llama", 1)) is not None
    trainer = make_trainer("causal-lm", tmp_path, max_steps=1)
    caplog.clear()
    monkeypatch.setattr(trainer.model.lm_head, "__class__", type("Adapted", (nn.Linear,), {}))
    trainer.layout = TokenRows(shift=True, classes=TOKENS)
    assert trainer._open_heads() is None
    (line,) = [
        record.getMessage() for record in caplog.records if "cannot be computed in chunks" in record.getMessage()
    ]
    assert "2 KB of memory a token" in line


def test_float16_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient taken ahead would vanish without the loss scale; `accelerate launch --mixed_precision fp16` sets it
    too, and leaves `fp16` of the arguments as it was."""
    trainer = make_trainer("causal-lm", tmp_path, max_steps=1)
    assert trainer._open_heads() is not None
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    assert not trainer.args.fp16
    assert trainer._open_heads() is None


def test_another_loss_is_refused() -> None:
    """The gradient is that of the loss announced; of another one it would be wrong, and look like one."""
    student, teacher = make("llama", 1), make("llama", 2)
    inputs, heads = batch(student), Heads.open(student, {"teacher": teacher})
    assert heads is not None
    with heads.capturing():
        run(teacher, inputs)
        run(student, inputs)
    sums = heads.rows(TokenRows(shift=True), inputs).sums_in_chunks(OBJECTIVES, COEFFICIENTS)
    with pytest.raises(RuntimeError, match="another loss"):
        sums.square().sum().backward()


def test_models_are_as_before_after_a_failure() -> None:
    """A head whose forward pass stays replaced would give no logits to anyone, from then on."""
    student, teacher = make("bart, logits bias", 1), make("bart, logits bias", 2)
    inputs = batch(student)
    before = run(student, inputs).logits
    heads = Heads.open(student, {"teacher": teacher})
    assert heads is not None
    with pytest.raises(KeyError), heads.capturing():
        raise KeyError
    assert torch.equal(run(student, inputs).logits, before)
    assert OutputHead(nn.Linear(2, 2)).soft_cap is None
