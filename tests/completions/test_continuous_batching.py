"""What continuous batching writes: the tokens that `generate` writes, the right law, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import MakeModel
from writers import PADDED, PROMPT, fits, next_laws, nucleus, opened, writer

from hf_distill.completions.backends import ContinuousBatching
from hf_distill.completions.mixture import Mixture
from hf_distill.completions.sampling import Sampling
from hf_distill.errors import UserError

# Uneven, one of them twice, ends of text among them.
PROMPTS = [[5], [5, 9, 12, 7, 8, 20, 3], PROMPT, [11, 4], PROMPT, [5, 2, 12, 0, 8, 20, 3, 30, 31, 32], [7, 7, 7]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_greedy_is_that_of_generate(make_model: MakeModel, kind: str, attention: str) -> None:
    """Pages, chunks of prompts and requests that wait must not change a token; what ends a text ends it here too."""
    model, tokenizer = opened(make_model(kind, layers=2, vocab_size=PADDED))
    model.set_attn_implementation(attention)
    unended = writer(model, tokenizer).write(PROMPTS, Sampling(20, 0.0), seed=0)
    model.generation_config.eos_token_id = [40, unended[0].ids[3], unended[2].ids[0]]
    expected = writer(model, tokenizer).write(PROMPTS, Sampling(20, 0.0), seed=0)
    assert any(one.ended for one in expected)
    for settings in ({}, {"batch_tokens": 16}, {"cache_tokens": 256}):
        writes = ContinuousBatching(**settings).open(model, tokenizer)
        assert writes.write(PROMPTS, Sampling(20, 0.0), seed=0) == expected
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.6, 1.0), (1.0, 0.7)])
def test_tokens_follow_the_law(make_model: MakeModel, temperature: float, top_p: float) -> None:
    """The model's own settings, the library's top_k 50 or a column without a token would change the distribution."""
    model, tokenizer = opened(make_model("llama-lm", layers=2, vocab_size=PADDED))
    model.generation_config.update(top_k=3, repetition_penalty=1.9, do_sample=True, temperature=0.1)
    width = max(tokenizer.get_vocab().values()) + 1
    with pytest.warns(UserWarning, match="repetition_penalty"):
        writes = ContinuousBatching().open(model, tokenizer)
    drawn = writes.write([PROMPT] * 1500, Sampling(1, temperature, top_p), seed=3)
    law = next_laws(model, [PROMPT], width, temperature)
    fits([one.ids[0] for one in drawn], law if top_p == 1.0 else nucleus(law[0], top_p))


def test_the_same_again_and_nothing_changed(make_model: MakeModel) -> None:
    """A resumed training must write the same, and dropout after it must not depend on what was written."""
    model, tokenizer = opened(make_model("llama-lm", layers=2))
    model.train()
    before, own = torch.get_rng_state(), model.generation_config
    writes = ContinuousBatching().open(model, tokenizer)
    once = writes.write(PROMPTS * 3, Sampling(12), seed=5)
    assert torch.get_rng_state().equal(before)
    assert model.training
    assert model.generation_config is own
    torch.manual_seed(77)
    assert ContinuousBatching().open(model, tokenizer).write(PROMPTS * 3, Sampling(12), seed=5) == once
    assert writes.write(PROMPTS * 3, Sampling(12), seed=6) != once
    assert once[2] != once[4]  # the same prompt is not the same text


def test_what_it_cannot_do(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names what works, not a thread that dies or a wait without end."""
    model, tokenizer = opened(make_model("llama-lm", layers=2))
    with pytest.raises(UserError, match="by: mixture") as caught:
        ContinuousBatching().open(model, tokenizer, Mixture(model, 0.2))
    assert caught.value.key == "backend"

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(type(model), "forward", broken)
    with pytest.raises(UserError, match="no kernel for this"):
        ContinuousBatching().open(model, tokenizer).write([PROMPT], Sampling(3), seed=0)
