"""PEFT adapters named as models: merged into their bases, they answer what PEFT's own model answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from prepared import refused as mistake
from runs import WriteRecipe, run, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_distill import load_recipe
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer
from hf_distill.models.outline import has_head
from hf_distill.run.dry_run import check

CLASSIFY, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
Make = Callable[..., Path]


@pytest.fixture
def make_adapter(tmp_path: Path, make_model: Any) -> Make:
    """Save an adapter, of a classifier by default; keyword arguments go to `LoraConfig`."""

    def make(
        kind: str = "bert-bare", *, name: str = "adapter", labels: int = 2, base: Path | None = None, **lora: Any
    ) -> Path:
        base = base or make_model(kind, layers=4, seed=1)
        torch.manual_seed(3)
        if lora.setdefault("task_type", "SEQ_CLS") == "CAUSAL_LM":
            model = AutoModelForCausalLM.from_pretrained(base)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=labels, ignore_mismatched_sizes=True
            )
        settings = {
            "target_modules": ["query"] if "bert" in kind else ["q_proj"],
            "init_lora_weights": False,
            "r": 2,
            **lora,
        }
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        with torch.no_grad():
            for weight_name, weight in wrapped.named_parameters():
                if "modules_to_save" in weight_name:
                    weight.add_(torch.randn_like(weight))
        wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def unmerged(adapter: Path, auto_class: str, labels: int = 2) -> Any:
    """Return PEFT's own model."""
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    more = {"num_labels": labels} if auto_class == CLASSIFY else {}
    model = getattr(transformers, auto_class).from_pretrained(base, **more)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 25).reshape(4, 5)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return result


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier(labels: int, make_adapter: Make) -> None:
    """The head is in the adapter: from the base alone it would be random, and have the base's number of labels."""
    adapter = make_adapter(labels=labels)
    config = open_config(str(adapter))
    assert (config.num_labels, has_head(config, CLASSIFY), has_head(config, CAUSAL)) == (labels, True, False)
    model, new = load_model(str(adapter), Head(CLASSIFY), own_head=True)
    assert type(model) is transformers.BertForSequenceClassification
    assert not new
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), logits(unmerged(adapter, CLASSIFY, labels)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [[], ["lm_head", "embed_tokens"]])
def test_a_language_model(whole: list[str], make_adapter: Make, tmp_path: Path) -> None:
    """Its head is the base's, or one that the adapter holds; saved whole it must need no adapter."""
    adapter = make_adapter("llama-lm", task_type="CAUSAL_LM", modules_to_save=whole or None)
    assert has_head(open_config(str(adapter)), CAUSAL)
    model, new = load_model(str(adapter), Head(CAUSAL), own_head=True)
    assert not new
    expected = logits(unmerged(adapter, CAUSAL))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_which_the_base_has_a_part(make_adapter: Make, tmp_path: Path) -> None:
    """ModernBERT's classifier goes on from a layer of the language model's head, which the adapter does not hold."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {f"{name}_token_id": number for number, name in enumerate(("pad", "eos", "bos", "cls", "sep"))}
    config = transformers.ModernBertConfig(vocab_size=40, **sizes, **ids)  # type: ignore[arg-type]
    for kind, whole in ((transformers.AutoModelForMaskedLM, True), (transformers.AutoModel, False)):
        kind.from_config(config).save_pretrained(tmp_path / f"base-{whole}")
        adapter = make_adapter(base=tmp_path / f"base-{whole}", name=f"of-{whole}", labels=3, target_modules=["Wqkv"])
        assert has_head(open_config(str(adapter)), CLASSIFY) == whole
        _, new = load_model(str(adapter), Head(CLASSIFY), own_head=True)
        assert (not new) == whole


@pytest.mark.parametrize(
    ("auto_class", "task", "targets"),
    [
        ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", ["q", "v"]),
        ("AutoModelForSeq2SeqLM", None, ["q", "v"]),
        ("AutoModel", "FEATURE_EXTRACTION", ["q"]),
    ],
)
def test_two_stacks(auto_class: str, task: str | None, targets: list[str], make_model: Any, tmp_path: Path) -> None:
    """The answers before and after merging are those of a decoder here."""
    base = make_model("t5", layers=2)
    lora = peft.LoraConfig(task_type=task, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(getattr(transformers, auto_class).from_pretrained(base), lora).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    model, new = load_model(str(tmp_path / "adapter"), Head(auto_class), own_head=True)
    assert not new
    ids = torch.arange(5, 13).reshape(2, 4)
    with torch.no_grad():
        got, expected = (one(input_ids=ids, decoder_input_ids=ids)[0] for one in (model, wrapped))
    assert (got - expected).norm() < 1e-3 * expected.norm()  # the logits of this tiny T5 go to the hundreds


def test_half_precision(make_adapter: Make) -> None:
    """A teacher in bfloat16 must be that of the adapter too."""
    adapter = make_adapter()
    model, _ = load_model(str(adapter), Head(CLASSIFY), own_head=True, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(model).float(), logits(unmerged(adapter, CLASSIFY)), rtol=0.1, atol=0.1)


def test_names_of_labels(make_adapter: Make, make_model: Any) -> None:
    """The base may be a classifier of other things: its names over the adapter's classes would name them wrongly."""
    base = make_model("bert", layers=4, seed=1, labels=("cat", "dog"))
    adapter = make_adapter(base=base)
    assert set(open_config(str(adapter)).id2label.values()) == {"LABEL_0", "LABEL_1"}
    model, _ = load_model(str(adapter), Head(CLASSIFY), own_head=True)
    assert set(model.config.id2label.values()) == {"LABEL_0", "LABEL_1"}
    config = open_config(str(base))
    config.id2label = {0: "good", 1: "bad"}
    config.save_pretrained(adapter)
    assert open_config(str(adapter)).id2label == {0: "good", 1: "bad"}
    model, _ = load_model(str(adapter), Head(CLASSIFY), own_head=True)
    assert model.config.id2label == {0: "good", 1: "bad"}


def test_a_head_that_is_not_saved(make_adapter: Make, write_recipe: WriteRecipe) -> None:
    """Without a task type PEFT saves no head, and it would be random."""
    adapter = make_adapter(task_type=None)
    assert not has_head(open_config(str(adapter)), CLASSIFY)
    _, new = load_model(str(adapter), Head(CLASSIFY), own_head=True)
    assert set(new) == {"classifier.bias", "classifier.weight"}
    path = write_recipe(teacher={"name": "pretrained", "model": str(adapter)})
    assert "no trained head" in mistake(lambda: check(load_recipe(path)))[1]


def test_the_base_is_beside_the_adapter(make_adapter: Make, make_model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A relative path is that of the machine it was trained on: from the adapter, or from where the command runs."""
    adapter, base = make_adapter(), make_model("bert-bare", layers=4, seed=1)
    (tmp_path / "base").symlink_to(base)
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    for named, here in (("../base", "/"), ("base", tmp_path), (str(base), "/")):
        monkeypatch.chdir(here)
        file.write_text(json.dumps({**settings, "base_model_name_or_path": named}))
        assert open_config(str(adapter)).num_hidden_layers == 4
        assert len(open_tokenizer(str(adapter))) == len(open_tokenizer(str(base)))
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(adapter)}))
    assert "names itself" in mistake(lambda: open_config(str(adapter)))[1]
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "/home/me/base"}))
    assert "its adapter_config.json names '/home/me/base'" in mistake(lambda: open_config(str(adapter)))[1]
    file.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    assert "does not name its base" in mistake(lambda: open_config(str(adapter)))[1]
    file.write_text("{")
    assert "is broken" in mistake(lambda: open_config(str(adapter)))[1]


def test_the_tokenizer_beside_the_adapter(make_adapter: Make, make_model: Any) -> None:
    """It may have words of its own."""
    adapter = make_adapter()
    tokenizer = open_tokenizer(str(make_model("bert-bare", layers=4, seed=1)))
    tokenizer.add_tokens(["grandiose"])
    tokenizer.save_pretrained(adapter)
    assert "grandiose" in open_tokenizer(str(adapter)).get_vocab()


def test_files_that_are_not_whole(make_adapter: Make) -> None:
    """A pickle runs code; and half an adapter is another one."""
    adapter = make_adapter()
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "damaged or cut off" in mistake(lambda: open_config(str(adapter)))[1]
    file.rename(adapter / "adapter_model.bin")
    assert "pickled" in mistake(lambda: open_config(str(adapter)))[1]
    (adapter / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in mistake(lambda: open_config(str(adapter)))[1]


def test_a_whole_model_beside_the_adapter(make_adapter: Make) -> None:
    """Transformers would take the adapter and its base, whatever the model beside it is."""
    adapter = make_adapter()
    model, _ = load_model(str(adapter), Head(CLASSIFY), own_head=True)
    model.save_pretrained(adapter)
    assert "holds a whole model and an adapter" in mistake(lambda: open_config(str(adapter)))[1]


def test_another_base(make_adapter: Make, make_model: Any, tmp_path: Path) -> None:
    """PEFT leaves out what has no place, with a warning or none: the model would be the base."""
    adapter = make_adapter()
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    for other in (make_model("bert-bare", layers=2), make_model("bert-bare", layers=6), make_model("roberta-bare")):
        file.write_text(json.dumps({**settings, "base_model_name_or_path": str(other)}))
        assert "does not fit its base" in mistake(lambda: load_model(str(adapter), Head(CLASSIFY), own_head=True))[1]


def test_shared_weights_and_kinds_that_cannot_be_merged(make_adapter: Make, make_model: Any, tmp_path: Path) -> None:
    """Merged into a head that is also the embeddings, an adapter changes both."""
    base = make_model("gpt2-lm", layers=4, seed=1)
    tied = make_adapter("gpt2-lm", base=base, task_type="CAUSAL_LM", target_modules=["lm_head"])
    assert "outputs change when merged" in mistake(lambda: load_model(str(tied), Head(CAUSAL)))[1]
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), prompts).save_pretrained(tmp_path / "prompts")
    assert "cannot be merged (PROMPT_TUNING)" in mistake(lambda: open_config(str(tmp_path / "prompts")))[1]


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_with_two_adapters(write_recipe: WriteRecipe, make_adapter: Make, tmp_path: Path, capfd: Any) -> None:
    """The student is saved whole: a directory that only opens beside its base would be no student."""
    teacher, student = make_adapter(name="teacher"), make_adapter(name="student", r=3)
    file = teacher / "adapter_config.json"
    for adapter in (teacher, student):
        config = open_config(json.loads(file.read_text())["base_model_name_or_path"])
        config.id2label = {0: "negative", 1: "positive"}
        config.save_pretrained(adapter)
    path = write_recipe(
        teacher={"name": "pretrained", "model": str(teacher)}, student={"name": "pretrained", "model": str(student)}
    )
    plan = check(load_recipe(path))
    assert f"teacher: adapter '{teacher}' (LORA) merged into its base" in plan
    assert "trained and saved whole" in plan
    run(path)
    start, _ = load_model(str(student), Head(CLASSIFY), own_head=True)
    after, before = weights(tmp_path / "out"), start.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name in after if not after[name].equal(before[name])]
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    assert "bert.encoder.layer.0.output.dense.weight" in changed
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_another_task_and_quantization(
    side: str, write_recipe: WriteRecipe, make_adapter: Make, make_model: Any
) -> None:
    """--check and the run say the same line."""
    adapter = str(make_adapter("llama-lm", task_type="CAUSAL_LM"))
    path = write_recipe(**{side: {"name": "pretrained", "model": adapter}})
    for opened in (lambda: check(load_recipe(path)), lambda: run(path)):
        assert "is an adapter for another task: CAUSAL_LM (wanted SEQ_CLS)" in mistake(opened)[1]
    own = str(make_adapter(name="own"))
    path = write_recipe(teacher={"name": "pretrained", "model": own, "quantization": "int8"},
                        student={"name": "pretrained", "model": str(make_model("bert-bare", layers=2))})  # fmt: skip
    assert "Save the merged model" in mistake(lambda: check(load_recipe(path)))[1]
    assert "Save the merged model" in mistake(lambda: load_model(own, Head(CLASSIFY), quantization="int8"))[1]


def test_a_fine_tuned_teacher_starts_from_an_adapter(
    write_recipe: WriteRecipe, make_adapter: Make, tmp_path: Path
) -> None:
    """Fine-tuned whole, and found again by the next run."""
    path = write_recipe(teacher={"name": "finetuned", "model": str(make_adapter())}, training={"max_steps": 2})
    run(path)
    (folder,) = (tmp_path / "out" / "_teacher").iterdir()
    assert (folder / "model.safetensors").exists()
