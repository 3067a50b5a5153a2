"""A model's fingerprint: whatever changes an output changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariants.cached import parts
from torch import nn

from hf_distill.models.fingerprint import model_fingerprint


def adapted(alpha: int) -> Any:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=alpha, init_lora_weights=False, target_modules=["query"])
    return peft.get_peft_model(parts("classification")[1], config).eval()


def test_the_strength_of_an_adapter_is_part_of_a_teacher() -> None:
    """It is in no tensor: another `lora_alpha`, or the adapter switched off, found the answers of the one before."""
    one, other = adapted(4), adapted(16)
    ids = torch.arange(2, 8)[None]
    assert not torch.allclose(one(ids).logits, other(ids).logits)
    assert model_fingerprint(one) == model_fingerprint(adapted(4))
    assert model_fingerprint(one) != model_fingerprint(other)
    before = model_fingerprint(one)
    one.base_model.disable_adapter_layers()
    assert model_fingerprint(one) != before


def test_exchanged_rows_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of all bits are the same, and of more rows than samples most have no sample: two exchanged tokens of a
    vocabulary of 262,144 were overlooked in 39 of 60 cases."""
    monkeypatch.setattr("hf_distill.models.fingerprint.WHOLE_BYTES", 1000)
    monkeypatch.setattr("hf_distill.models.fingerprint.SAMPLES", 100)
    torch.manual_seed(0)
    model = nn.Embedding(400, 8)
    before = model_fingerprint(model)
    for one, other in ((1, 7), (3, 101), (50, 399), (200, 202)):
        with torch.no_grad():
            model.weight[[one, other]] = model.weight[[other, one]]
        assert model_fingerprint(model) != before
        with torch.no_grad():
            model.weight[[one, other]] = model.weight[[other, one]]
    assert model_fingerprint(model) == before
