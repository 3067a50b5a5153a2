"""Models from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_distill.errors import UserError
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer

LANGUAGE_MODEL = Head("AutoModelForCausalLM")


def write_gguf(path: Path, directory: Path, tokenizer_directory: Path) -> None:
    """Write a saved Llama as llama.cpp does: names of its own, query and key rows in another order."""
    import json

    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    config, tokenizer = model.config, open_tokenizer(str(tokenizer_directory))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads((tokenizer_directory / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    for key, value in model.state_dict().items():
        if heads := {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            key.split(".")[-2]
        ):
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        writer.add_tensor(key, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(make_model: Any) -> Path:
    """Return a Llama with the vocabulary of the tiny GPT-2, as SmolLM2 has GPT-2's kind of tokens."""
    size = open_config(str(make_model("gpt2-lm"))).vocab_size
    return Path(make_model("llama-lm", layers=2, vocab_size=size, bos_token_id=0, eos_token_id=0))


@pytest.fixture
def gguf_file(make_model: Any, tmp_path: Path) -> Path:
    """A tiny GPT-2-tokenised Llama in a GGUF file."""
    pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    tokenizer = make_model("gpt2-lm")
    write_gguf(path, llama(make_model), tokenizer)
    return path


def test_a_gguf_file_is_a_model_like_any_other(gguf_file: Path, make_model: Any, tmp_path: Path) -> None:
    """Transformers takes it for a quantized model by default: it would neither train nor save."""
    config = open_config(str(gguf_file))
    assert config.num_hidden_layers == 2
    assert len(open_tokenizer(str(gguf_file))) == config.vocab_size
    model, new = load_model(str(gguf_file), LANGUAGE_MODEL, own_head=True)
    assert new == []
    assert model.dtype == torch.float32
    assert not getattr(model, "is_quantized", False)
    original, _ = load_model(str(llama(make_model)), LANGUAGE_MODEL, own_head=True)
    ids = torch.tensor([[5, 17, 40, 8]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, original(ids).logits, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    again, _ = load_model(str(tmp_path / "saved"), LANGUAGE_MODEL)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_a_damaged_file_or_a_missing_reader_is_one_line(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file cut off while it was fetched, or a package that is not there, would end in a traceback."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:1000])
    for call in (open_config, open_tokenizer, lambda path: load_model(path, LANGUAGE_MODEL)):
        with pytest.raises(UserError) as caught:
            call(str(broken))
        (line,) = caught.value.mistakes
        assert "broken.gguf" in line
        assert "\n" not in line
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'hf-distill\[gguf\]'"):
        open_config(str(gguf_file))
