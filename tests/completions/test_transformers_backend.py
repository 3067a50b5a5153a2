"""What `model.generate` writes: the law of the drawn tokens, ends, padding, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from writers import PADDED, PROMPT, fits, next_laws, nucleus, opened, writer

from hf_distill.completions.ends import end_ids
from hf_distill.completions.mixture import Along, Mixture, importance_weights
from hf_distill.completions.sampling import Sampling
from hf_distill.errors import UserError


@pytest.fixture(params=["llama-lm", "gpt2-lm"])
def pair(request: pytest.FixtureRequest, make_model: MakeModel) -> tuple[Any, Any]:
    """A model with rotary positions and one with a table of positions, with their tokenizers."""
    return opened(make_model(request.param, layers=2))


@pytest.fixture
def llama(make_model: MakeModel) -> tuple[Any, Any]:
    """A model with columns past the vocabulary, and its tokenizer."""
    return opened(make_model("llama-lm", layers=2, vocab_size=PADDED))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 1.0), (1.0, 0.8), (0.6, 0.5)])
def test_tokens_follow_the_law(llama: tuple[Any, Any], temperature: float, top_p: float) -> None:
    """The model's own generation_config, top_k 50 or a column without a token would change what the student learns."""
    model, tokenizer = llama
    model.generation_config.update(top_k=3, repetition_penalty=1.9, min_p=0.2, do_sample=True, temperature=0.1)
    model.generation_config.suppress_tokens = [1, 20]
    width = max(tokenizer.get_vocab().values()) + 1
    assert width < PADDED
    with pytest.warns(UserWarning, match=r"repetition_penalty: 1.9") as warned:
        writes = writer(model, tokenizer, batch_size=512)
    assert len(warned) == 1
    drawn = writes.write([PROMPT] * 2000, Sampling(2, temperature, top_p), seed=3)

    def laws(texts: list[list[int]]) -> np.ndarray:
        found = next_laws(model, texts, width, temperature)
        return found if top_p == 1.0 else np.stack([nucleus(law, top_p) for law in found])

    fits([one.ids[0] for one in drawn], laws([PROMPT]))
    further = [one for one in drawn if len(one.ids) == 2]  # the second token: from the cache
    fits([one.ids[1] for one in further], laws([[*PROMPT, one.ids[0]] for one in further]))


def test_rows_are_written_as_if_alone(pair: tuple[Any, Any]) -> None:
    """Padding, sorting by length and the size of batches must not change a completion, nor the order of the rows."""
    model, tokenizer = pair
    prompts = [[5], [5, 9, 12, 7, 8, 20, 3], PROMPT, [11, 4], [5, 9, 12, 7, 8, 20, 3, 30, 31, 32]]
    for sampling in (Sampling(12, temperature=0.0), Sampling(12)):
        whole = writer(model, tokenizer).write(prompts, sampling, seed=1)
        assert writer(model, tokenizer, batch_size=2).write(prompts, sampling, seed=1) == whole
        assert writer(model, tokenizer).write(prompts, sampling, seed=1) == whole
        assert writer(model, tokenizer).write(prompts[:1], sampling, seed=1) == whole[:1]
    assert writer(model, tokenizer).write(prompts, sampling, seed=2) != whole


def test_greedy_is_that_of_generate(pair: tuple[Any, Any]) -> None:
    """Temperature 0 is the likeliest token each time, as `generate` itself would choose it."""
    model, tokenizer = pair
    plain = model.generate(torch.tensor([PROMPT]), max_new_tokens=10, do_sample=False, pad_token_id=0)[0, 4:].tolist()
    assert list(writer(model, tokenizer).write([PROMPT], Sampling(10, 0.0), seed=0)[0].ids) == plain


def test_nothing_of_the_training_changes(llama: tuple[Any, Any]) -> None:
    """Mode, checkpointing, the cache setting, generation_config and random states are those of before; no dropout."""
    model, tokenizer = llama
    model.train()
    model.model.layers[0].eval()  # a frozen part
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    own, modes = model.generation_config, [one.training for one in model.modules()]
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    written = writer(model, tokenizer).write([PROMPT] * 3, Sampling(6), seed=4)
    assert model.generation_config is own
    assert [one.training for one in model.modules()] == modes
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False
    assert torch.get_rng_state().equal(before)
    assert np.random.get_state()[1].tolist() == numpy
    torch.manual_seed(99)
    assert writer(model, tokenizer).write([PROMPT] * 3, Sampling(6), seed=4) == written
    assert all(one.grad is None for one in model.parameters())


def test_ends(llama: tuple[Any, Any]) -> None:
    """Ends are a set of ids; those inside a prompt, and padding with the same id, must not end or hide anything."""
    model, tokenizer = llama
    model.generation_config.eos_token_id = [40, 41]
    model.config.eos_token_id = 42
    tokenizer.pad_token = tokenizer.eos_token
    ends = end_ids(model, tokenizer)
    assert set(ends) == {40, 41, 42, tokenizer.eos_token_id}
    prompts = [[tokenizer.eos_token_id, 5, 40, 9]] * 300 + [[7, tokenizer.eos_token_id]] * 300
    written = writer(model, tokenizer).write(prompts, Sampling(30), seed=0)
    assert {one.ids[-1] for one in written if one.ended} == set(ends)
    for one in written:
        assert not set(one.ids[:-1]) & set(ends)
        assert one.ended == (one.ids[-1] in ends)
        assert len(one.ids) == 30 or one.ended
    assert any(not one.ended for one in written)
    assert any(len(one.ids) == 1 for one in written)


def test_stops_when_all_have_ended(llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of texts that have all ended must not run on to max_new_tokens."""
    model, tokenizer = llama
    model.generation_config.eos_token_id = list(range(PADDED))
    calls = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1])
    written = writer(model, tokenizer).write([PROMPT, PROMPT], Sampling(50), seed=0)
    assert all(one.ended and len(one.ids) == 1 for one in written)
    assert len(calls) == 1


def test_adapters_write_and_leave_nothing(llama: tuple[Any, Any]) -> None:
    """A student with adapters writes with them, not with its base; PEFT's own `generate` would leave our settings."""
    import peft

    model, tokenizer = llama
    plain = writer(model, tokenizer).write([PROMPT] * 4, Sampling(8), seed=5)
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    own = model.generation_config
    adapted = writer(wrapped, tokenizer).write([PROMPT] * 4, Sampling(8), seed=5)
    assert adapted != plain
    assert model.generation_config is own
    assert writer(wrapped.merge_and_unload(), tokenizer).write([PROMPT] * 4, Sampling(8), seed=5) == adapted


def test_too_long_or_empty(pair: tuple[Any, Any]) -> None:
    """More tokens than positions would crash in an index, or be written far outside what the model learned."""
    model, tokenizer = pair
    with pytest.raises(UserError, match="64 positions") as caught:
        writer(model, tokenizer).write([PROMPT], Sampling(61), seed=0)
    assert caught.value.key == "max_new_tokens"
    writer(model, tokenizer).write([PROMPT], Sampling(60), seed=0)
    with pytest.raises(UserError, match="no tokens"):
        writer(model, tokenizer).write([PROMPT, []], Sampling(5), seed=0)


# ---- Two models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_mixture_follows_its_law(make_model: MakeModel, kind: str) -> None:
    """Tokens of two models, each with its own cache and padding, follow share * p + (1 - share) * q."""
    model, tokenizer = opened(make_model(kind, layers=2))
    teacher, _ = opened(make_model(kind, layers=3, seed=1))
    width = max(tokenizer.get_vocab().values()) + 1
    beside = Mixture(teacher, 0.3)
    # The long prompt pads the others.
    drawn = writer(model, tokenizer, beside, batch_size=4000).write(
        [[8, 3, *PROMPT, 3, 8], *[PROMPT] * 3000], Sampling(2, 1.3), seed=0
    )[1:]

    def mixed(texts: list[list[int]]) -> np.ndarray:
        return 0.3 * next_laws(teacher, texts, width, 1.3) + 0.7 * next_laws(model, texts, width, 1.3)

    fits([one.ids[0] for one in drawn], mixed([PROMPT]))
    further = [one for one in drawn if len(one.ids) == 2]
    fits([one.ids[1] for one in further], mixed([[*PROMPT, one.ids[0]] for one in further]))


def test_mixture_at_its_ends(make_model: MakeModel) -> None:
    """With share 0 the student writes as it does alone, with share 1 the teacher."""
    model, tokenizer = opened(make_model("gpt2-lm", layers=2))
    teacher, _ = opened(make_model("gpt2-lm", layers=3, seed=1))
    prompts = [PROMPT, [5], [9, 9, 9]]
    for sampling in (Sampling(15), Sampling(15, 0.0)):
        for share, alone in ((0.0, model), (1.0, teacher)):
            mixed = writer(model, tokenizer, Mixture(teacher, share)).write(prompts, sampling, seed=7)
            assert mixed == writer(alone, tokenizer).write(prompts, sampling, seed=7)


def test_along_gives_the_logits_of_the_whole_text(pair: tuple[Any, Any]) -> None:
    """Positions and masks of the second model's cache: a shift would draw from another distribution."""
    model, _ = pair
    ids = torch.tensor([[0, 0, 5, 9, 12, 7, 8], [5, 9, 12, 7, 8, 20, 3]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    with torch.no_grad():
        along = Along(model, mask)
        for length in (3, 4, 7):
            found = along(ids[:, :length])
            alone = [model(ids[row : row + 1, 2 * (1 - row) : length]).logits[0, -1] for row in (0, 1)]
            torch.testing.assert_close(found, torch.stack(alone), atol=2e-5, rtol=1e-4)


def test_importance_weights_undo_the_mixture() -> None:
    """The mean of a function over a mixture, weighted, is its mean under the student alone."""
    q, p, f = (torch.rand(3, 9, generator=torch.Generator().manual_seed(0)).double()).unbind(0)
    q, p = q / q.sum(), p / p.sum()
    weights = importance_weights(q.log(), p.log(), 0.2)
    torch.testing.assert_close(((0.2 * p + 0.8 * q) * weights * f).sum(), (q * f).sum())
    assert weights.max() <= 1 / 0.8
    assert importance_weights(q.log(), p.log(), 0.0).eq(1).all()
