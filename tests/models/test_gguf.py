"""Models from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import llama, write_gguf
from prepared import refused

from hf_distill.errors import UserError
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer

LANGUAGE_MODEL = Head("AutoModelForCausalLM")


@pytest.fixture
def gguf_file(make_model: Any, tmp_path: Path) -> Path:
    """A tiny GPT-2-tokenised Llama in a GGUF file."""
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
        _, line = refused(call, str(broken))
        assert "broken.gguf" in line
        assert "\n" not in line
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'hf-distill\[gguf\]'"):
        open_config(str(gguf_file))
