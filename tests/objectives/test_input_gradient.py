"""Matching derivatives: against Jacobians by torch and differences of values, in training, and at what cost."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from features import EXAMPLES, Pair, make_pair
from invariants.cases import largest_difference, make_models, make_trainer, split, train
from invariants.test_batch_splits import assert_same
from torch import Tensor
from versions import CHECKPOINTING

from hf_distill import UserError
from hf_distill.objectives import InputGradient, KLDivergence
from hf_distill.rows.examples import ExampleRows


def slopes(model: Any, pair: Pair, example: int, classes: list[int]) -> np.ndarray[Any, Any]:
    """Return the Jacobian of a classifier's log-probabilities in one example's embeddings, `(classes, tokens, width)`,
    by `torch.autograd.functional` from `inputs_embeds`, without padding."""
    kept = pair.inputs["attention_mask"][example] != 0
    embeddings = model.get_input_embeddings()(pair.inputs["input_ids"][example][kept])

    def scores(one: Tensor) -> Tensor:
        logits: Tensor = model(inputs_embeds=one.unsqueeze(0)).logits[0]
        return logits.log_softmax(-1)[classes]

    jacobian: Tensor = torch.autograd.functional.jacobian(scores, embeddings.detach())
    return jacobian.numpy()


def compared(mine: Any, theirs: Any, loss: str) -> float:
    if loss == "mse":
        return float(((mine - theirs) ** 2).sum())
    if loss == "normalized":
        return float(2 - 2 * (mine * theirs).sum() / np.linalg.norm(mine) / np.linalg.norm(theirs))
    lengths = np.linalg.norm(mine, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float((1 - (mine * theirs).sum(-1) / lengths).sum())


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("loss", ["normalized", "cosine", "mse"])
def test_against_jacobians(loss: Any, classes: int) -> None:
    """A gradient of the wrong class, of the logit, or of a batch whose examples are mixed up is as smooth a loss."""
    pair = make_pair("bert")
    term: Any = pair.prepare(InputGradient(loss=loss, classes=classes))
    assert term.projection.weight.shape == (16, 8)
    projection = term.projection.weight.detach().numpy()
    logits = pair.teacher(**{k: v for k, v in pair.inputs.items() if k != "labels"}).logits
    wanted = []
    for example in range(EXAMPLES):
        top = logits[example].argsort(descending=True).tolist()[:classes]
        mine = slopes(pair.student, pair, example, top) @ projection.T
        theirs = slopes(pair.teacher, pair, example, top)
        wanted.append(np.mean([compared(*one, loss) for one in zip(mine, theirs, strict=True)]))
    found = pair.losses(term)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-9)
    assert term.objective.unit == ("example" if loss == "normalized" else "token")


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("loss", ["normalized", "cosine", "mse"])
def test_second_derivative(kind: str, loss: Any) -> None:
    """Without `create_graph` the loss is right and moves nothing, as in published code that makes a detached loss
    require a gradient. Against differences of the loss itself."""
    pair = make_pair(kind)
    term: Any = pair.prepare(InputGradient(loss=loss))
    # Llama computes norms and softmax in float32: differences of smaller steps are noise.
    step, tolerance = (1e-6, 1e-6) if kind == "bert" else (1e-3, 2e-2)
    pair.losses(term).sum().backward()
    weights = [one for one in (*pair.student.parameters(), term.projection.weight) if one.grad is not None]
    assert len(weights) > 20 if kind == "bert" else len(weights) > 10
    chance = torch.Generator().manual_seed(1)
    directions = [torch.randn(one.shape, generator=chance, dtype=torch.float64) for one in weights]
    slope = sum(float((one.grad * way).sum()) for one, way in zip(weights, directions, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            for one, way in zip(weights, directions, strict=True):
                one.add_(by * way)
        value = float(pair.losses(term).detach().sum())
        with torch.no_grad():
            for one, way in zip(weights, directions, strict=True):
                one.sub_(by * way)
        return value

    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=tolerance)


def test_rows_of_a_sequence_are_added_up() -> None:
    """For a language model: the gradient of the sum over the tokens that count, in every one of their embeddings. The
    last token predicts nothing: it must cost nothing, not 1 for having no direction."""
    pair = make_pair("llama", hidden_size=16)
    term: Any = pair.prepare(InputGradient(loss="cosine"))
    assert term.projection is None
    losses = pair.losses(term).detach().numpy()
    for example in range(EXAMPLES):
        kept = pair.inputs["attention_mask"][example] != 0
        ids = pair.inputs["input_ids"][example][kept]
        if len(ids) == 1:
            assert losses[example] == 0
            continue
        gradients = []
        top = pair.teacher(input_ids=ids.unsqueeze(0)).logits[0, :-1].argmax(-1)
        for model in (pair.student, pair.teacher):
            embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
            scores = model(inputs_embeds=embeddings.unsqueeze(0)).logits[0, :-1].log_softmax(-1)
            scores.gather(-1, top.unsqueeze(-1)).sum().backward()
            gradients.append(embeddings.grad.numpy())
            assert not gradients[-1][-1].any()
        wanted = compared(gradients[0][:-1], gradients[1][:-1], "cosine")
        assert losses[example] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["regression", "multi-label"])
def test_values_and_several_labels(kind: str, tmp_path: Path) -> None:
    """A softmax over one predicted value has no gradient: the loss would be 0 and regression learn nothing from it."""
    trainer = make_trainer(kind, tmp_path, terms=[InputGradient()], max_steps=2, **split(4))
    record = train(trainer)
    assert 0 < record.losses[0] < 4
    assert any(bool((one != 0).any()) for one in record.gradients[0].values())


def test_frozen_embeddings() -> None:
    """A student with adapters trains no embedding: there is nothing to differentiate by unless it is made so."""
    pair = make_pair("bert")
    wanted = pair.losses(pair.prepare(InputGradient())).detach()
    pair.student.get_input_embeddings().requires_grad_(False)
    found = pair.losses(pair.prepare(InputGradient()))
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=0)
    found.sum().backward()
    assert bool(pair.student.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0)


def test_teacher_columns_are_permuted() -> None:
    """The teacher's class 0 may be the student's class 1: the gradients of two opposite answers would be matched."""
    pair = make_pair("bert")
    swapped = make_pair("bert")
    with torch.no_grad():
        for one in (swapped.teacher.classifier.weight, swapped.teacher.classifier.bias):
            one.copy_(one.flip(0))
    swapped = dataclasses.replace(swapped, layout=ExampleRows(width=2, teacher_columns=(1, 0)))
    for loss in ("normalized", "mse"):
        objective = InputGradient(loss=loss)  # type: ignore[arg-type]
        wanted = pair.losses(pair.prepare(objective))
        torch.testing.assert_close(swapped.losses(swapped.prepare(objective)), wanted, rtol=1e-9, atol=0)


# --- in training ------------------------------------------------------------------------------------------------------

TERMS = [KLDivergence(weight=0.5), InputGradient(weight=0.3), InputGradient(weight=0.1, loss="cosine", classes=2)]


@pytest.mark.parametrize("kind", ["classification", "causal-lm-gpt2"])
def test_same_on_every_split(kind: str, tmp_path: Path) -> None:
    """Gradients of the micro-batch's mean would shrink with its size; and two terms differentiate one graph twice."""
    settings: dict[str, Any] = {"terms": TERMS, "num_train_epochs": 1, "teacher_width": 24}
    whole = train(make_trainer(kind, tmp_path, **settings, **split(8)))
    for batch_size in (4, 1):
        assert_same(train(make_trainer(kind, tmp_path, **settings, **split(batch_size))), whole)
    saved = train(make_trainer(kind, tmp_path, **CHECKPOINTING, **settings, **split(4)))
    assert saved.losses == pytest.approx(whole.losses, rel=1e-12)
    assert largest_difference(saved, whole) < 1e-10


def test_it_is_learned_and_the_teacher_is_not(tmp_path: Path) -> None:
    """Made to require a gradient, the teacher's embeddings are one step from being trained."""
    trainer = make_trainer(
        "classification", tmp_path, terms=[KLDivergence(), InputGradient()], max_steps=40, optim="adamw_torch",
        learning_rate=0.01, per_device_train_batch_size=8,
    )  # fmt: skip
    teacher: Any = trainer.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    name = "eval_objective/input_gradient"
    start = trainer.evaluate()[name]
    trainer.train()
    assert trainer.evaluate()[name] < 0.7 * start
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any(one.requires_grad or one.grad is not None for one in teacher.parameters())


def test_evaluation_keeps_no_graph(tmp_path: Path) -> None:
    """Evaluated with gradients, one sum kept with its graph keeps the activations of every batch: memory grows until
    the run dies at the end of its first epoch."""

    def attached() -> int:
        gc.collect()
        return sum(isinstance(one, Tensor) and one.grad_fn is not None for one in gc.get_objects())

    trainer = make_trainer("classification", tmp_path, terms=TERMS, max_steps=1, per_device_eval_batch_size=1)
    before, counts = attached(), []
    forward = trainer._forward

    def counting(*args: Any) -> Any:
        counts.append(attached())
        return forward(*args)

    trainer._forward = counting  # type: ignore[method-assign]
    trainer.evaluate()
    assert len(counts) == 13
    assert set(counts) == {before}
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (13, 3)
    assert attached() == before


def test_fsdp_is_refused(tmp_path: Path) -> None:
    """FSDP takes a derivative in the forward pass for the backward pass, and fails in the first step, after loading."""
    trainer = make_trainer("classification", tmp_path, terms=[InputGradient()])
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="FSDP does not work with objectives that differentiate"):
        trainer._make_terms()


def test_fused_attention_would_fail(tmp_path: Path) -> None:
    """The reason for plain attention; where this fails no longer, `needs_eager_attention` may go."""
    student, _ = make_models("classification")
    student.set_attn_implementation("sdpa")
    embeddings = student.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    logits = student(inputs_embeds=embeddings).logits
    (slope,) = torch.autograd.grad(logits.sum(), embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative for .*attention.* is not implemented"):
        slope.square().sum().backward()


def test_encoder_decoders_are_refused() -> None:
    """Their embeddings are read by two stacks: which gradient is meant is not for us to guess."""
    t5, bert = transformers.T5Config(), transformers.BertConfig()
    for pair, whose in (((t5, bert), "student"), ((bert, t5), "teacher")):
        with pytest.raises(UserError, match=rf"the {whose} \(t5\) has an encoder and a decoder") as error:
            InputGradient().check(*pair)
        assert error.value.key == "name"
    InputGradient().check(bert, bert)
