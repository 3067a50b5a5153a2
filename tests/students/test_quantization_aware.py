"""Students trained with the rounding of int8: what is rounded, what the export computes, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from runs import WriteRecipe, run, same, weights
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.export.graph import root_logger_kept
from hf_distill.export.onnx_int8 import QUANTISED
from hf_distill.files.ownership import RUNS
from hf_distill.models.heads import capturing, open_head
from hf_distill.models.inspection import rounding
from hf_distill.models.training_hooks import TrainingHooks
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.padding import side_of
from hf_distill.run.dry_run import check
from hf_distill.students.quantization_aware import (
    RoundedTraining,
    check_words,
    rounded_layers,
    with_rounding,
    without_rounding,
)
from hf_distill.trainer import DistillationTrainer
from hf_distill.training.padding_free.model import NeedsPadding, open_padding_free


class OneLayer(nn.Module):
    """A model whose only layer maps 16 numbers of a token to 4."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 4, bias=False)])
        self.layers[0].weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers[0](x)

    config = transformers.PretrainedConfig()

    def get_output_embeddings(self) -> None:
        """There is no vocabulary."""


def in_onnxruntime(weight: torch.Tensor, texts: torch.Tensor, folder: Path) -> torch.Tensor:
    """Return `texts @ weight.T` as dynamic int8 of onnxruntime computes it, one text at a time."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [value("x", onnx.TensorProto.FLOAT, [1, "tokens", 16])],
        [value("y", onnx.TensorProto.FLOAT, [1, "tokens", 4])],
        [onnx.numpy_helper.from_array(weight.detach().T.numpy().copy(), "w")],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), folder / "w"
    )
    with root_logger_kept():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(folder / "w", folder / "q", weight_type=QuantType.QInt8, **QUANTISED)
    session = onnxruntime.InferenceSession(folder / "q", providers=["CPUExecutionProvider"])
    return torch.cat([torch.tensor(session.run(None, {"x": text[None].numpy()})[0]) for text in texts])


def by_hand(weight: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return `texts @ weight.T` with both rounded, in float64."""
    w = weight.detach().double().numpy()
    step = np.abs(w).max(axis=1, keepdims=True) / 64
    w, found = np.rint(w / step) * step, []
    for x in texts.double().numpy():
        least, most = min(x.min(), 0.0), max(x.max(), 0.0)
        width = (most - least) / 255
        zero = np.rint(-least / width)
        found.append((np.clip(np.rint(x / width) + zero, 0, 255) - zero) * width @ w.T)
    return torch.tensor(np.stack(found))


def test_a_layer_computes_as_onnxruntime_does(tmp_path: Path) -> None:
    """Another range or step than the export's would train the student for a rounding that it never meets."""
    torch.manual_seed(0)
    weight, texts = torch.randn(4, 16), torch.randn(3, 5, 16)
    weight[1] *= 30
    texts[0, 2, 3] = 40.0  # coarse steps, for this text alone
    model = with_rounding(OneLayer(weight))
    ours = model(texts).detach()
    assert torch.allclose(ours.double(), by_hand(weight, texts), atol=1e-4)
    assert torch.allclose(ours, in_onnxruntime(weight, texts, tmp_path), atol=1e-4)
    plain = texts @ weight.T
    assert (ours - plain)[0].abs().max() > 0.5, "nothing was rounded"
    assert torch.allclose(ours[1:], model(texts[1:])), "a text changes with the others of its batch"
    assert torch.equal(without_rounding(model)(texts), plain)


def test_a_student_trained_with_rounding_loses_less_in_int8(tmp_path: Path) -> None:
    """That is what `qat` is for. Here every weight lies 0.4 steps above a whole one, and inputs are positive: errors
    add up. Trained as it is, the student has nothing to learn; with rounding it learns which weights to round up.
    """
    torch.manual_seed(0)
    weight = (torch.randint(-6, 6, (4, 16)) + 0.4) / 64
    weight[:, 0] = 1.0
    texts = torch.rand(256, 1, 16) / 2 + 1
    wanted = texts @ weight.T

    def error(weight: torch.Tensor) -> float:
        return float((in_onnxruntime(weight, texts, tmp_path) - wanted).square().mean())

    losses = {}
    for name, hooks in {"plain": TrainingHooks(), "qat": RoundedTraining("int8")}.items():
        untyped: Any = OneLayer(weight.clone())
        model = hooks.wrap(untyped)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
        for _ in range(200):
            rows = torch.randint(0, 256, (32,))
            (model(texts[rows]) - wanted[rows]).square().mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        plain: Any = hooks.unwrap(model)
        losses[name] = error(plain.layers[0].weight)
    assert losses["qat"] < losses["plain"] / 20


TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("head", "config", "left_out"),
    [
        ("SequenceClassification", transformers.BertConfig(vocab_size=40, **TINY), []),
        ("MaskedLM", transformers.BertConfig(vocab_size=40, **TINY), ["cls.predictions.decoder"]),
        ("TokenClassification", transformers.LlamaConfig(vocab_size=40, **TINY), []),
    ],
)
def test_all_linear_layers_but_the_one_over_tokens(head: str, config: Any, left_out: list[str]) -> None:
    """A layer that was passed over would be rounded in the export alone; so would one that lost its name or weights."""
    model: Any = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    before, state = dict(model.named_parameters()), torch.get_rng_state()
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    assert sorted(rounded_layers(model)) == sorted(set(linear) - set(left_out))
    with_rounding(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(type(model.get_submodule(name)) is not nn.Linear for name in rounded_layers(model))
    without_rounding(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(type(model.get_submodule(name)) is nn.Linear for name in linear)
    assert torch.get_rng_state().equal(state), "data would come in another order than without qat"


def test_padding_changes_nothing() -> None:
    """The range of a text's values would be that of its padding, and its loss depend on the longest text beside it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TINY)
    model: Any = with_rounding(transformers.BertModel(config))
    model.embeddings.word_embeddings.weight.data[0] *= 500  # padding has the widest range
    ids = torch.tensor([[5, 6, 7]])
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    padded = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]])
    beside = model(input_ids=padded, attention_mask=(padded != 0).long()).last_hidden_state
    assert torch.allclose(beside[0, :3], alone[0], atol=1e-5)


def test_logits_in_chunks_are_those_of_the_whole_model() -> None:
    """The head over tokens is computed outside of the model: there it would be rounded by other ranges."""
    torch.manual_seed(0)
    model: Any = with_rounding(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=40, **TINY)).eval())
    ids = torch.randint(4, 40, (3, 7))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    head = open_head(model)
    assert head is not None
    with capturing(model, head) as captured:
        model(input_ids=ids, attention_mask=mask)
    whole = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(head.finish(head.linear(captured.hidden)), whole)


def test_padding_is_tried_without_rounding() -> None:
    """A last digit that moves a value by a whole step would be taken for a model whose outputs depend on padding, and
    its texts would run one length after the other. Without padding, texts that lie in one row would share a range.
    """
    torch.manual_seed(0)
    model: Any = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **TINY))
    model.classifier.weight.data *= 50
    model = with_rounding(model)
    assert side_of(model, ExampleRows()) == "right"
    assert len(rounding(model)) == 2 * len(rounded_layers(model)), "rounding stayed off"
    with pytest.raises(NeedsPadding, match="round"):
        open_padding_free(model)


class Dead(Exception):
    """What stands for a power cut."""


def test_stages_seeds_a_kill_and_the_baseline(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounding that was lost in a later stage, after a resume, or for the baseline would not show in any file."""
    rounded: dict[str, set[int]] = {}
    step = DistillationTrainer.training_step

    def watch(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        place = Path(self.args.output_dir)
        rounded.setdefault(str(place.relative_to(tmp_path)), set()).add(len(rounding(model)))
        if place == tmp_path / "out" and self.state.global_step == 1 and not rounded.get("died"):
            rounded["died"] = {28}
            raise Dead
        return step(self, model, *args, **kwargs)

    def recipe(folder: str, **report: Any) -> Path:
        teacher = json.loads(write_recipe().read_text())["teacher"]
        return write_recipe(
            teacher={"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")},
            student={"name": "copy_layers", "layers": 2, "freeze": ["layers.0"], "qat": "int8"},
            objectives=None,
            stages=[{"objectives": [{"name": "kl"}]}, {"objectives": [{"name": "kl"}, {"name": "labels"}]}],
            training={"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 1, "max_steps": 2},
            report={"latency": False, **report},
        )

    monkeypatch.setattr(DistillationTrainer, "training_step", watch)
    report = run(recipe("whole", seeds=2, baseline=True))
    assert "are rounded to int8 while it trained" in report.settings["student"]["qat"]
    said = capsys.readouterr().out
    assert "qat: 14 linear layers" in said
    assert "student: it is trained with rounding" in said, "padding is left out"
    with pytest.raises(Dead):
        run(recipe("out"))
    again = run(recipe("out"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    assert report.settings["student"] == again.settings["student"]
    assert len(rounded) == 7 + 3 + 1
    assert set.union(*rounded.values()) == {28}, rounded  # weights and inputs of 14
    for place in (".", f"{RUNS}/student-stage-1", f"{RUNS}/baseline"):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole" / place)
        assert all(type(one) is nn.Linear for one in rounded_layers(loaded).values())


@pytest.mark.parametrize(
    ("kind", "student", "words"),
    [
        ("bert", {"name": "lora", "qat": "int8"}, "of its own"),
        ("bert", {"name": "prune_vocabulary", "student": {"name": "copy_layers", "layers": 2, "qat": "int8"}}, "outer"),
        ("gpt2", {"name": "copy_layers", "layers": 2, "qat": "int8"}, "torch.nn.Linear"),
        ("bert", {"name": "copy_layers", "layers": 2, "qat": "int4"}, "int8"),
        ("bert", {"name": "optimal_brain_damage", "ratio": 0.5, "qat": "int8"}, "of its own"),
    ],
)
def test_students_that_cannot_be_rounded(
    kind: str, student: dict[str, Any], words: str, write_recipe: WriteRecipe, make_model: Any
) -> None:
    """A student whose layers were all passed over would be called trained for int8, and be as any other."""
    teacher = {"name": "pretrained", "model": str(make_model(kind, layers=4, seed=1))}
    with pytest.raises(UserError, match=words) as caught:
        check(load_recipe(write_recipe(teacher=teacher, student=student)))
    assert len(caught.value.mistakes) == 1


def test_what_qat_is_not_for(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Texts that grow by a token have other ranges each time, and no export to int8 takes their models; an average of
    rounded weights, and peers, would not be what the report says.
    """
    model = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=1))}
    rounded = {**model, "qat": "int8"}
    student, causal = {"student": rounded}, transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))
    for teacher, key in (
        ({"name": "ema"}, "student.qat"),
        ({"name": "mutual", "peers": [rounded]}, "teacher: peers[0]"),
    ):
        with pytest.raises(UserError) as caught:
            check(load_recipe(write_recipe(teacher=teacher, **student)))
        assert len(caught.value.mistakes) == 1
        assert key in str(caught.value), caught.value
    with pytest.raises(UserError, match="writes texts"):
        check_words(causal, "int8", followed=False)
    error = RoundedTraining("int8").sharded()
    assert error is not None
    assert "FSDP" in str(error)
