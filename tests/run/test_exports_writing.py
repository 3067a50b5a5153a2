"""Exports of students that write texts: the cache gives what the whole text gives, and texts are PyTorch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exported import alone, failing, mistakes_of
from runs import REPO, WriteRecipe, run

from hf_distill.errors import UserError


def write_rows(tmp_path: Path, write_recipe: WriteRecipe, model: Path, **settings: Any) -> Path:
    """Return a recipe of a student that learns to write a few texts of different lengths."""
    texts = [f"the film is {word} and" + " very" * place for place, word in enumerate(("great", "dull", "moving") * 3)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "short": text[:20]}) + "\n" for text in texts))
    return write_recipe(
        task="text-generation",
        data={"path": {"train": str(path), "validation": str(path)}, "columns": {"text": "text"}},
        teacher={"name": "pretrained", "model": str(model)},
        student={"name": "pretrained", "model": str(model)},
        objectives=[{"name": "kl"}],
        **settings,
    )


def test_a_language_model_is_exported_with_its_cache(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask, position or size that was fixed while the graph was traced gives other words from the second token on,
    and no error; the loop of the docs, or the script, would write other texts than `generate`.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_distill.export import Onnx
    from hf_distill.export.causal import WritingSession
    from hf_distill.run.exporting.writing_texts import write_texts

    path = write_rows(tmp_path, write_recipe, make_model("llama-lm", layers=2, seed=1), export={"formats": ["onnx"]})
    report = run(path, "report.latency=true", "export.formats=[onnx, onnx-int8]")
    plain, onnx, int8 = report.exports
    assert onnx.metrics["perplexity"] == pytest.approx(plain.metrics["perplexity"], rel=1e-5)
    assert plain.metrics["perplexity"] == pytest.approx(report.student.metrics["perplexity"], rel=1e-3)
    assert (onnx.agreement, onnx.writing.same, onnx.writing.tokens) == (1.0, 1.0, 24)
    assert max(onnx.difference, onnx.writing.difference) < 1e-5 < min(int8.difference, int8.writing.difference)
    assert int8.bytes < onnx.bytes
    assert onnx.edge.token_ms > 0 < plain.writing.tokens_per_second
    assert 20e6 < onnx.edge.peak_memory < 250e6
    assert "tokens a second" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    out = tmp_path / "out"
    model, tokenizer = (one.from_pretrained(out) for one in (AutoModelForCausalLM, AutoTokenizer))
    text = "the film is"
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    wanted = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert alone(out / "onnx", text) == [wanted]
    page = (REPO / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    (loop,) = [block for block in blocks if "past_key_values" in block]
    capsys.readouterr()
    exec(loop.replace("outputs/writer/onnx-int8", str(out / "onnx")).replace("Once upon a time", text), {})
    assert capsys.readouterr().out.strip("\n") == wanted

    session = Onnx().open(out / "onnx", 1)
    assert isinstance(session, WritingSession)
    _, past = session.step(np.array([[5, 6, 7]]), np.ones((1, 3), np.int64))
    assert past.keys() == {f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")}
    prompts, right = [[5, 6, 7, 8], [9, 8]], session.step
    write_texts(model, {"onnx": session}, prompts, {"onnx": 1e-4}, 1)
    # As of a graph that ignores the padding on the left.
    monkeypatch.setattr(session, "step", lambda ids, mask, past=None: right(ids, np.ones_like(mask), past))
    with pytest.raises(UserError, match="with its cache"):
        write_texts(model, {"onnx": session}, prompts, {"onnx": 1e-4}, 1)


def test_a_model_with_few_positions(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A model with learned positions ended in a traceback, one with rotary positions wrote beyond what it has learned;
    a prompt that is cut at the limit would be continued in its middle."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    positions = 12
    model = make_model("gpt2-lm", layers=2, seed=1, n_positions=positions)
    path = write_rows(tmp_path, write_recipe, model, export={"formats": ["onnx"]})
    plain, onnx = run(path, "report.latency=true").exports
    assert onnx.writing.same == 1.0
    assert onnx.writing.tokens == plain.writing.tokens == 6
    assert onnx.writing.difference < 1e-5
    assert onnx.edge.token_ms > 0

    out = tmp_path / "out"
    ids = AutoTokenizer.from_pretrained(out)("the film", return_tensors="pt")
    room = positions - ids["input_ids"].shape[1]
    made = AutoModelForCausalLM.from_pretrained(out).generate(
        **ids, do_sample=False, max_new_tokens=room, min_new_tokens=room
    )
    wanted = AutoTokenizer.from_pretrained(out).decode(made[0, -room:])
    assert alone(out / "onnx", "the film") == [wanted]
    assert f"reads at most {positions}" in failing(out / "onnx", "the film is" + " very" * positions)
    assert "empty" in failing(out / "onnx", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2-lm", "qwen2", "mistral"])
def test_other_architectures(kind: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Learned positions, biases, and a sliding window that is shorter than the texts are traced in their own ways."""
    import torch
    import transformers

    made = make_model("gpt2-lm" if kind == "gpt2-lm" else "llama-lm", layers=2, seed=1)
    if kind != "gpt2-lm":
        small = transformers.AutoConfig.from_pretrained(made)
        sizes = {
            name: getattr(small, name)
            for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "pad_token_id")
        }
        sizes["vocab_size"] += 8  # the tokenizer of Qwen2 adds a token of its own
        config = {
            "qwen2": lambda: transformers.Qwen2Config(num_attention_heads=4, num_key_value_heads=2, **sizes),
            "mistral": lambda: transformers.MistralConfig(
                num_attention_heads=4, num_key_value_heads=2, sliding_window=4, **sizes
            ),
        }[kind]()
        torch.manual_seed(1)
        transformers.AutoTokenizer.from_pretrained(made).save_pretrained(tmp_path / kind)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        made = tmp_path / kind
    path = write_rows(tmp_path, write_recipe, made, export={"formats": ["onnx", "onnx-int8"]})
    plain, onnx, int8 = run(path).exports
    assert onnx.metrics == pytest.approx(plain.metrics, rel=1e-5)
    assert onnx.writing.same == 1.0
    assert onnx.writing.difference < 1e-5 < int8.writing.difference


@pytest.mark.parametrize(("task", "kind", "name"), [
    ("summarization", "t5", "onnx"),
    ("text-generation", "llama-lm", "onnx-int8-static"),
])  # fmt: skip
def test_what_is_refused(
    task: str, kind: str, name: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """A graph of one of two parts, or ranges of an empty cache, would be found out after the training."""
    path = write_rows(tmp_path, write_recipe, make_model(kind, layers=2, seed=1), export={"formats": [name]})
    columns = {"text": "text", "summary": "short"} if task == "summarization" else {"text": "text"}
    line = mistakes_of(path, f"task={task}", f"data.columns={json.dumps(columns)}")
    assert f"{name} is" in line
    assert "export.formats[0]" in line


def test_a_state_instead_of_a_cache() -> None:
    """Mamba's state under the names of keys and values would be written and read wrongly by other runtimes."""
    from transformers import LlamaConfig, MambaConfig

    from hf_distill.export import Onnx

    assert "mamba" in str(Onnx().refuses("AutoModelForCausalLM", MambaConfig()))
    assert Onnx().refuses("AutoModelForCausalLM", LlamaConfig()) is None
