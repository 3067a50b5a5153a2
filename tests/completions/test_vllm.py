"""A vLLM server that writes: whose weights it has, what it is asked, and that every answer is checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_server
import pytest
import torch
from conftest import MakeModel
from fake_server import FakeServer, changed, slow, status
from fake_vllm import FakeVLLM
from writers import PADDED, PROMPT, opened, writer

from hf_distill import servers
from hf_distill.completions.backends import VLLM
from hf_distill.completions.backends import vllm_server as module
from hf_distill.completions.mixture import Mixture
from hf_distill.completions.plain_weights import plain_weights
from hf_distill.completions.sampling import Sampling
from hf_distill.errors import UserError

PROMPTS = [PROMPT, [5], PROMPT, [9, 9, 3, 4, 4], [20, 21]]
GREEDY = Sampling(6, 0.0)


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[Any, Any]:
    """A student and its tokenizer."""
    return opened(make_model("llama-lm", layers=2, vocab_size=PADDED))


@pytest.fixture
def vllm(make_model: MakeModel) -> FakeVLLM:
    """What a server does that was started with another model of the same shape."""
    return FakeVLLM(opened(make_model("llama-lm", layers=2, vocab_size=PADDED, seed=1))[0])


@pytest.fixture
def fake(vllm: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """The server, and short waits."""
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "RESET_WAIT", 0.0)
    with FakeServer(vllm.answer).running() as server:
        yield server


def moved(model: Any, seed: int) -> None:
    """Change all weights, as a training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn(one.shape, generator=generator))


def test_writes_as_the_model_does(pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM, tmp_path: Path) -> None:
    """Stale weights, or values of them in the prefix cache, would let another student write than the one learning."""
    model, tokenizer = pair
    model.train()
    writes = VLLM(url=fake.url, folder=str(tmp_path)).open(model, tokenizer)
    for step in range(3):
        moved(model, step)
        writes.follow(model, step)
        writes.follow(model, step)  # reused completions: nothing to hand over
        assert writes.write(PROMPTS, GREEDY, seed=0) == writer(model, tokenizer).write(PROMPTS, GREEDY, seed=0)
        assert writes.figures()["rollout_gap"] < 1e-5
        assert vllm.events == ["reload", "reset", *["complete"] * 5]
        vllm.events.clear()
    assert not list(tmp_path.iterdir())
    assert model.training
    assert writes.figures() == {}


def test_forgetting_the_cache_would_be_seen(pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM) -> None:
    """The test above would not see a missing reset if the fake had no stale cache; nor would a user without the gap."""
    model, tokenizer = pair
    writes: Any = VLLM(url=fake.url).open(model, tokenizer)
    writes.follow(model, 0)
    writes.write(PROMPTS, GREEDY, seed=0)
    moved(model, 7)
    writes._server._forget = lambda server: None
    writes.follow(model, 1)
    writes.figures()
    with pytest.warns(UserWarning, match="other weights"):
        written = writes.write(PROMPTS, GREEDY, seed=0)
    assert written != writer(model, tokenizer).write(PROMPTS, GREEDY, seed=0)
    assert writes.figures()["rollout_gap"] > 0.2


def test_a_cache_in_use_is_emptied_later_or_not_at_all(pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM) -> None:
    """`success: false` means that the cache still holds the old values."""
    model, tokenizer = pair
    writes = VLLM(url=fake.url).open(model, tokenizer)
    vllm.resets = [False, False]
    writes.follow(model, 0)
    assert vllm.events == ["reload", "reset", "reset", "reset"]
    vllm.resets = [False] * 1000
    with pytest.raises(UserError, match="prefix cache") as caught:
        writes.follow(model, 1)
    assert caught.value.key == "backend.url"


def test_requests_say_everything(pair: tuple[Any, Any], fake: FakeServer) -> None:
    """A server's own defaults (top_k, penalties) would change the distribution; one seed would repeat texts."""
    model, tokenizer = pair
    writes = VLLM(url=fake.url, concurrency=2).open(model, tokenizer)
    once = writes.write(PROMPTS, Sampling(12, 1.5, 0.9), seed=3)
    bodies = fake.posted("/v1/completions")
    assert len({body["seed"] for body in bodies}) == len(PROMPTS)
    for body in bodies:
        assert body["temperature"] == 1.5
        assert body["top_p"] == 0.9
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["n"]) == (0, 0.0, 1.0, 1)
        assert tokenizer.eos_token_id in body["stop_token_ids"]
    assert fake.most <= 2
    assert once[0] != once[2]
    assert writes.write(PROMPTS, Sampling(12, 1.5, 0.9), seed=3) == once
    assert writes.write(PROMPTS, Sampling(12, 1.5, 0.9), seed=4) != once
    width = max(tokenizer.get_vocab().values()) + 1
    assert all(token < width for one in once for token in one.ids)


def test_adapters_are_merged_for_the_server_alone(pair: tuple[Any, Any], fake: FakeServer) -> None:
    """Unmerging by subtraction would leave rounding in the frozen weights after every step."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, tokenizer = pair
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"]
    )
    wrapped: Any = peft.get_peft_model(model, config)
    before = copy.deepcopy(wrapped.state_dict())
    writes = VLLM(url=fake.url).open(wrapped, tokenizer)
    writes.follow(wrapped, 0)
    assert writes.write(PROMPTS, GREEDY, seed=0) == writer(wrapped, tokenizer).write(PROMPTS, GREEDY, seed=0)
    after = wrapped.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(one) for name, one in before.items())
    assert not any(layer.merged for layer in wrapped.modules() if isinstance(layer, BaseTunerLayer))
    plain = plain_weights(wrapped)
    whole = wrapped.merge_and_unload().state_dict()
    assert plain.keys() == whole.keys()
    for name, one in plain.items():
        torch.testing.assert_close(one, whole[name])


def test_tied_weights_are_written_once(make_model: MakeModel) -> None:
    """Tied weights under two names would be refused by safetensors, or written twice."""
    model, _ = opened(make_model("gpt2-lm", layers=1))
    assert ("lm_head.weight" in plain_weights(model)) + ("transformer.wte.weight" in plain_weights(model)) == 1
    assert {one.dtype for one in plain_weights(model, torch.bfloat16).values() if one.is_floating_point()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(429, Retry_After="0"),
        status(503),
        fake_server.cut,
        fake_server.reset,
        changed(lambda _: '{"choices": ['),
        slow(1.5),
    ],
)
def test_what_passes_is_asked_again(pair: tuple[Any, Any], fake: FakeServer, fault: Any) -> None:
    """One lost answer among many must not end a training, nor change what is written."""
    model, tokenizer = pair
    writes = VLLM(url=fake.url, timeout=1.0).open(model, tokenizer)
    writes.follow(model, 0)
    fake.faults = [None, fault]
    assert writes.write(PROMPTS, GREEDY, seed=0) == writer(model, tokenizer).write(PROMPTS, GREEDY, seed=0)


def choice(change: Callable[[dict[str, Any]], Any]) -> Any:
    def applied(answer: Any) -> Any:
        change(answer["choices"][0])
        return answer

    return changed(applied)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (changed(lambda found: {**found, "choices": []}), "0 completions"),
        (changed(lambda found: {**found, "choices": found["choices"] * 2}), "2 completions"),
        (changed(lambda found: {**found, "model": "other"}), "model other"),
        (changed(lambda _: {"detail": "hello"}), "form"),
        (changed(lambda _: [1]), "form"),
        (choice(lambda one: one.update(token_ids=[3, PADDED - 1])), "its tokenizer is another"),
        (choice(lambda one: one.update(token_ids=["a"])), "token 'a'"),
        (choice(lambda one: one.pop("token_ids")), "no token ids"),
        (choice(lambda one: one.update(prompt_token_ids=[1])), "prompt is another"),
        (choice(lambda one: one["token_ids"].pop()), "was cut after 5"),
        (choice(lambda one: one.update(token_ids=[3, 2, 3, 3, 3, 3])), "after the end"),
        (choice(lambda one: one.update(finish_reason="stop")), "ended the text"),
        (choice(lambda one: one.update(finish_reason="abort")), "broken off"),
        (choice(lambda one: one["logprobs"]["token_logprobs"].pop()), "log-probabilities"),
    ],
)
def test_a_wrong_answer_is_a_mistake(pair: tuple[Any, Any], fake: FakeServer, fault: Any, said: str) -> None:
    """What cannot be the completion that was asked for must not be learned."""
    model, tokenizer = pair
    writes = VLLM(url=fake.url).open(model, tokenizer)
    writes.follow(model, 0)
    fake.faults = [fault]
    with pytest.raises(UserError, match=said) as caught:
        writes.write([PROMPT], GREEDY, seed=0)
    assert caught.value.key == "backend.url"
    assert len(caught.value.mistakes) == 1


def test_what_a_server_must_be(
    pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in one line before anything is learned, with the option that mends it."""
    model, tokenizer = pair
    monkeypatch.delenv("NO_KEY", raising=False)

    def written(backend: VLLM) -> None:
        writes = backend.open(model, tokenizer)
        writes.follow(model, 0)
        writes.write([PROMPT], GREEDY, seed=0)

    def refused(said: str, where: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=said) as caught:
            written(VLLM(**{"url": fake.url, **settings}))
        assert caught.value.key == where

    refused("NO_KEY", "backend.key", key="NO_KEY")
    refused("holds tiny", "backend.model", model="large")
    refused("2", "backend.url", mode="colocate", url=[fake.url, fake.url])
    refused("folder", "backend.folder", folder="/nowhere")
    vllm.positions = 8
    refused("max-model-len", "max_new_tokens")
    vllm.managed = False
    refused("VLLM_SERVER_DEV_MODE", "backend.url")
    with pytest.raises(UserError, match="by: mixture"):
        VLLM(url=fake.url).open(model, tokenizer, Mixture(model, 0.2))


def test_a_server_with_weights_of_its_own(pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM) -> None:
    """With `sync: false` nothing is handed over, and the gap says that its weights are others."""
    model, tokenizer = pair
    vllm.managed = False
    writes = VLLM(url=fake.url, sync=False).open(model, tokenizer)
    writes.follow(model, 0)
    with pytest.warns(UserWarning, match="other weights"):
        writes.write([PROMPT], Sampling(6), seed=0)
    assert vllm.events == ["complete"]


def test_on_the_gpu_that_trains(pair: tuple[Any, Any], fake: FakeServer, vllm: FakeVLLM) -> None:
    """The server must sleep while the student trains, and have weights and an empty cache before it writes again."""
    model, tokenizer = pair
    writes = VLLM(url=fake.url, mode="colocate").open(model, tokenizer)
    for step in (0, 1):
        writes.follow(model, step)
        assert writes.write([PROMPT], GREEDY, seed=0) == writer(model, tokenizer).write([PROMPT], GREEDY, seed=0)
    assert vllm.events == [
        *("reload", "reset", "complete", "sleep level=2"),
        *("wake_up tags=weights", "reload", "reset", "wake_up tags=kv_cache", "complete", "sleep level=2"),
    ]


def test_texts_are_found_after_the_server_moved() -> None:
    """Named by its address, what a teacher wrote in hours would be written again on another port."""
    here, there = VLLM(url="http://localhost:8000"), VLLM(url=["http://localhost:9000"], timeout=5.0)
    assert here.deciding() == there.deciding() != VLLM(url="http://localhost:8000", model="other").deciding()
