"""Models that torchao and bitsandbytes have quantized, and runs with them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import command
from runs import WriteRecipe, run, same, weights

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.heads import open_head
from hf_distill.models.loading import Head, load_model
from hf_distill.models.quantization import PACKAGES, size
from hf_distill.models.quantization import weights as weights_of
from hf_distill.objectives import OBJECTIVES, KLDivergence, Labels

FROM_CONFIG = {"name": "from_config", "overrides": {"num_hidden_layers": 1}}
CLASSIFIER, CAUSAL = Head("AutoModelForSequenceClassification"), Head("AutoModelForCausalLM")
HEADS = {
    "bert": CLASSIFIER,
    "llama-lm": CAUSAL,
    "bert-mlm": Head("AutoModelForMaskedLM"),
    "bert-qa": Head("AutoModelForQuestionAnswering"),
    "t5": Head("AutoModelForSeq2SeqLM"),
    "bart": Head("AutoModelForSeq2SeqLM"),
}
# Widths are multiples of 64, which nf4 wants on a CPU.
WIDE: dict[str, dict[str, int]] = {
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128},
    "bart": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "gpt2-lm": {"n_embd": 64},
}
ENCODER = {"hidden_size": 64, "intermediate_size": 128}


def saved(make_model: Any, kind: str, layers: int = 2) -> str:
    return str(make_model(kind, layers=layers, seed=1, **WIDE.get(kind, ENCODER)))


def load(make_model: Any, kind: str, quantization: Any, **settings: Any) -> Any:
    directory = saved(make_model, kind)
    return load_model(str(directory), HEADS[kind], own_head=True, quantization=quantization, **settings)[0]


def inputs(kind: str, seed: int = 0) -> dict[str, Any]:
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if kind in ("t5", "bart") else {})}


def answers(model: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(**inputs(kind))[0])


@torch.no_grad()
def matrix(layer: Any) -> torch.Tensor:
    """Return the matrix that a linear layer multiplies with, by what it does."""
    zero = layer(torch.zeros(1, layer.in_features))
    return (layer(torch.eye(layer.in_features)) - zero).T


def rounded(model: Any, quantized: Any) -> Any:
    """Return a model in float32 whose weights are those of a quantized one, exactly."""
    theirs = dict(quantized.named_modules())
    with torch.no_grad():
        for name, module in model.base_model.named_modules(prefix=model.base_model_prefix):
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(matrix(theirs[name]))
    return model


# ---- One model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", PACKAGES)
@pytest.mark.parametrize("kind", HEADS)
def test_a_model_is_nearly_what_it_was(kind: str, quantization: Any, make_model: Any) -> None:
    """Loaded with half its weights new, or transposed, it would teach noise; with a quantized head, cost everything."""
    whole, model = (load(make_model, kind, method) for method in (None, quantization))
    assert weights_of(model) == {"dtype": "float32", "quantization": quantization}
    assert answers(model, kind).isfinite().all()
    modules, changed = dict(model.named_modules()), 0
    for name, layer in whole.named_modules():
        if isinstance(layer, torch.nn.Linear):
            error = (matrix(modules[name]) - layer.weight).norm() / layer.weight.norm()
            assert error < (0.12 if quantization == "nf4" else 0.012), name
            changed += bool(error > 1e-4)
    assert changed >= 8
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    (count, held), (before, bytes_before) = size(model), size(whole)
    assert count == before
    assert held < bytes_before
    if "LM" in HEADS[kind].auto_class:
        assert open_head(model) is not None
        assert model.get_output_embeddings().weight.equal(whole.get_output_embeddings().weight)
    else:
        (name,) = {"score", "classifier", "qa_outputs"} & set(dict(model.named_children()))
        assert model.get_submodule(name).weight.equal(whole.get_submodule(name).weight)


@pytest.mark.parametrize("kind", ["bert", "llama-lm"])
def test_int8_is_rounding_of_the_body(kind: str, make_model: Any) -> None:
    """Each weight is the nearest of the 256 that its row can hold, and the model that of these weights."""
    whole, model = (load(make_model, kind, method) for method in (None, "int8"))
    before = {name: layer.weight.clone() for name, layer in whole.named_modules() if hasattr(layer, "in_features")}
    rounded(whole, model)
    for name, layer in whole.named_modules():
        if name in before:
            half = before[name].abs().amax(1, keepdim=True) / 255
            assert ((layer.weight - before[name]).abs() <= half * 1.001).all()
    found = answers(model, kind)
    torch.testing.assert_close(found, answers(whole, kind), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, answers(load(make_model, kind, None), kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_model_stays_what_it_is(quantization: Any, make_model: Any) -> None:
    """bitsandbytes packs 4 bits anew for the first forward pass on a CPU, and `state_dict()`, of which a fingerprint is
    made, then unpacks them wrongly: the teacher would answer something else from its first fingerprint on."""
    directory = saved(make_model, "llama-lm")
    model, again = (load_model(directory, CAUSAL, own_head=True, quantization=quantization)[0] for _ in range(2))
    first, key = answers(model, "llama-lm"), model_fingerprint(model)
    assert answers(model, "llama-lm").equal(first)
    with torch.no_grad():  # whatever else is in the batch
        alone = model(inputs("llama-lm")["input_ids"][:1]).logits
    torch.testing.assert_close(alone, first[:1], rtol=1e-4, atol=1e-5)
    assert model_fingerprint(model) == key == model_fingerprint(again)
    half, _ = load_model(directory, CAUSAL, own_head=True, quantization=quantization, dtype="bfloat16")
    whole, _ = load_model(directory, CAUSAL, own_head=True)
    assert len({key, model_fingerprint(half), model_fingerprint(whole)}) == 3
    assert half.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_model_without_linear_layers(quantization: Any, make_model: Any) -> None:
    """GPT-2 keeps its weights in another kind of layer: torchao passes over all of them without a word."""
    directory = saved(make_model, "gpt2-lm")
    if quantization == "int8":
        with pytest.raises(UserError, match="there is nothing to quantize"):
            load_model(directory, CAUSAL, own_head=True, quantization=quantization)
    else:
        model, _ = load_model(directory, CAUSAL, own_head=True, quantization=quantization)
        assert size(model)[1] < size(load_model(directory, CAUSAL)[0])[1]


def test_rows_that_bitsandbytes_gets_wrong(make_model: Any) -> None:
    """Its kernel for CPUs multiplies with the scales of other rows, and the teacher teaches noise."""
    directory = str(make_model("llama-lm", layers=1, hidden_size=64, intermediate_size=96))
    with pytest.raises(
        UserError, match=r"down_proj\.weight has rows of 96 weights, not a multiple of 64\. Choose another"
    ):
        load_model(directory, CAUSAL, own_head=True, quantization="nf4")
    load_model(directory, CAUSAL, own_head=True)


# ---- Training with one -----------------------------------------------------------------------------------------------

TERMS = {
    "kl": KLDivergence(temperature=2.0),
    **{name: OBJECTIVES[name]() for name in ("hidden", "attention", "relations", "contrastive", "input_gradient")},
}


@pytest.mark.parametrize("name", TERMS)
def test_objectives_see_the_quantized_teacher(name: str, make_model: Any, tmp_path: Path) -> None:
    """Each has the loss, and the gradient, of a teacher in float32 with the rounded weights."""
    model = load(make_model, "bert", "int8")
    teachers = {"quantized": model, "rounded": rounded(load(make_model, "bert", None), model)}
    batch = {**inputs("bert"), "labels": torch.tensor([0, 1, 1])}
    found = {}
    for key, teacher in teachers.items():
        student, _ = load_model(str(make_model("bert", layers=1, seed=5)), CLASSIFIER)
        args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
        torch.manual_seed(0)  # of what an objective learns
        trainer = DistillationTrainer(student, args, teacher=teacher, objectives=[TERMS[name]])
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        gradient = student.bert.encoder.layer[0].attention.self.query.weight.grad
        found[key] = torch.cat((loss.detach().reshape(1), gradient.flatten()))
    torch.testing.assert_close(found["quantized"], found["rounded"], rtol=1e-3, atol=1e-6)
    assert found["rounded"][0] > 0


@pytest.mark.parametrize("quantization", PACKAGES)
def test_rows_without_logits(quantization: Any, make_model: Any, tmp_path: Path) -> None:
    """A teacher whose head cannot be opened costs all logits of both models: the warning would be all there is."""
    teacher = load(make_model, "llama-lm", quantization)
    student, _ = load_model(str(make_model("llama-lm", layers=1, seed=5)), CAUSAL)
    batch = {**inputs("llama-lm"), "labels": inputs("llama-lm")["input_ids"]}
    losses = []
    for bf16 in (False, True):
        args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=bf16)
        objectives = [KLDivergence(weight=0.5), Labels(weight=0.5)]
        trainer = DistillationTrainer(copy.deepcopy(student), args, teacher=teacher, objectives=objectives)
        assert trainer._heads is not None
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
        heads, trainer._heads = trainer._heads, None
        plain = trainer.compute_loss(trainer.model, dict(batch)).item()
        trainer._heads = heads
        assert losses[-1] == pytest.approx(plain, rel=2e-2 if bf16 else 1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)


# ---- Runs ------------------------------------------------------------------------------------------------------------


def entry(make_model: Any, quantization: Any, **settings: Any) -> dict[str, Any]:
    return {"name": "pretrained", "model": saved(make_model, "bert", 4), "quantization": quantization, **settings}


@pytest.mark.usefixtures("brief_latency")
@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_run(quantization: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: Any) -> None:
    """From loading to the report, which judges the quantized teacher and says so; run again, everything is found."""
    teacher = entry(make_model, quantization)
    path = write_recipe(teacher=teacher, student=FROM_CONFIG, report={"latency": True, "baseline": True})
    report = run(path)
    said = (
        rf"the teacher's weights are {quantization} \(rest float32\): 0\.\d MB instead of 0\.\d\. The report evaluates"
    )
    assert re.search(said, capsys.readouterr().out)
    assert report.teacher.weights == f"{quantization} (rest float32)"
    model, _ = load_model(teacher["model"], CLASSIFIER, own_head=True, quantization=quantization)
    assert (report.teacher.parameters, report.teacher.bytes) == size(model)
    assert f"| {quantization} (rest float32) | float32 | float32 |" in (tmp_path / "out" / "README.md").read_text()
    before = weights(tmp_path / "out")
    again = run(path)
    assert "student: found finished, not trained again" in capsys.readouterr().out
    assert again.student.metrics == report.student.metrics
    assert same(weights(tmp_path / "out"), before)


@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_language_model_in_mixed_precision(
    quantization: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Layers copied from the checkpoint that the teacher was quantized from; autocast, accumulation, perplexity."""
    text = tmp_path / "text.csv"
    text.write_text("text\n" + "\n".join(["the film is great .", "a dull plot and a stale story !"] * 6))
    model = saved(make_model, "llama-lm", 3)
    report = run(
        write_recipe(
            task="text-generation",
            data={"path": {"train": str(text), "validation": str(text)}},
            teacher={"name": "pretrained", "model": model, "quantization": quantization, "dtype": "bfloat16"},
            student={"name": "copy_layers", "layers": 2, "model": model},
            training={"bf16": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        )
    )
    assert report.teacher.weights == f"{quantization} (rest bfloat16)"
    assert 1 < report.teacher.metrics["perplexity"] < 1e6
    assert report.history["student"][0]["objective/kl"] > 0


def test_summaries(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """An encoder-decoder teacher generates the texts that it is judged by."""
    text = tmp_path / "text.csv"
    lines = ["the film is great .,great film", "a dull plot and a stale story !,dull story"] * 4
    text.write_text("text,summary\n" + "\n".join(lines))
    report = run(
        write_recipe(
            task="summarization",
            data={"path": {"train": str(text), "validation": str(text)}},
            teacher={"name": "pretrained", "model": str(make_model("t5", layers=2)), "quantization": "int8"},
            student={"name": "from_config", "overrides": {"num_layers": 1, "num_decoder_layers": 1}},
        )
    )
    assert "rouge2" in report.teacher.metrics


@pytest.mark.parametrize("quantization", PACKAGES)
def test_a_cache_of_other_weights_is_refused(
    quantization: Any, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Answers of the whole teacher for those of the quantized one, or the reverse, would be taken without a word."""
    teacher = entry(make_model, quantization)
    whole = {key: value for key, value in teacher.items() if key != "quantization"}

    def cached(inner: dict[str, Any], out: str) -> Any:
        own = {"name": "cached", "path": str(tmp_path / "cache"), "teacher": inner}
        return run(write_recipe(teacher=own, student=FROM_CONFIG, training={"output_dir": str(tmp_path / out)}))

    live = run(write_recipe(teacher=teacher, student=FROM_CONFIG, training={"output_dir": str(tmp_path / "live")}))
    found = cached(teacher, "first")
    assert found.agreement == live.agreement
    with pytest.raises(UserError, match=rf"another teacher \(quantization {quantization} there and none here\)"):
        cached(whole, "second")
    cached(teacher, "third")


def test_a_fine_tuned_teacher_is_quantized_afterwards(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Quantized before, it could not be trained; and what it has learned must be what is quantized."""
    learning = {"num_train_epochs": 10, "learning_rate": 5e-3}
    model = str(make_model("bert-bare", layers=2))
    teacher = {"name": "finetuned", "model": model, "output_dir": str(tmp_path / "kept"), "training": learning}
    settings = {"student": FROM_CONFIG, "objectives": [{"name": "kl"}]}
    whole = run(write_recipe(teacher=teacher, **settings))
    training = {"output_dir": str(tmp_path / "other")}
    found = run(write_recipe(teacher={**teacher, "quantization": "int8"}, training=training, **settings))
    assert found.teacher.weights == "int8 (rest float32)"
    assert found.history["teacher"] == whole.history["teacher"]
    assert found.teacher.metrics["accuracy"] == pytest.approx(whole.teacher.metrics["accuracy"], abs=0.1)
    assert found.teacher.metrics["accuracy"] > 0.6


def test_sentence_vectors(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A backbone without a head: nothing of it is left out but what shares weights."""
    pairs = tmp_path / "pairs.csv"
    lines = ["the film is great,a great film,0.9", "a dull plot,the cast is funny,0.1"] * 6
    pairs.write_text("text,text_pair,label\n" + "\n".join(lines))
    report = run(
        write_recipe(
            task={"name": "sentence-similarity", "pooling": "mean"},
            data={"path": {"train": str(pairs), "validation": str(pairs)}},
            teacher={"name": "pretrained", "model": str(make_model("bert-bare")), "quantization": "int8"},
            student=FROM_CONFIG,
            objectives=[{"name": "sentence_embedding"}],
        )
    )
    assert report.teacher.weights == "int8 (rest float32)"
    assert "spearman" in report.teacher.metrics


def test_two_processes(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Each loads its own teacher, and none of them is wrapped, trained or waited for."""
    path = write_recipe(teacher=entry(make_model, "int8"), student=FROM_CONFIG)
    assert command("ddp", path, directory=tmp_path / "results") == [0, 0]
    from hf_distill.report.report import Report

    report = Report.load(tmp_path / "out")
    assert report.settings["processes"] == 2
    assert report.teacher.weights == "int8 (rest float32)"
