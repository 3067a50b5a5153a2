"""Heads that are more than they seem: which linear map the logits come from, and that looking changes nothing."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from invariants.cases import make_models

from hf_distill.models.heads import open_head


def test_a_dispatched_head_stays_as_it_is() -> None:
    """`device_map` replaces `forward` of every module to move its input to the right device. Looking at the head took
    that away for good: a teacher over several devices was broken from then on."""
    from accelerate import dispatch_model

    teacher = make_models("causal-lm")[1].eval()
    dispatch_model(teacher, {"model": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    own = teacher.lm_head.__dict__["forward"]
    open_head(teacher)
    assert teacher.lm_head.__dict__.get("forward") is own


def test_a_replaced_forward_of_a_head_stays() -> None:
    """Of whoever replaces it himself."""
    model = make_models("causal-lm")[0].eval()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2 * plain(hidden)
    wanted = model(torch.arange(5)[None]).logits
    assert open_head(model) is None
    assert torch.equal(model(torch.arange(5)[None]).logits, wanted)


def test_an_unknown_cap_on_small_logits() -> None:
    """The logits of a new model are so small that a cap of 30 changes none of them by 0.001: the trial said yes to a
    class whose cap has another name, and the student was trained without."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        intermediate_size=96, lru_width=32, attention_window_size=32, pad_token_id=0,
    )  # fmt: skip
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    assert config.logits_soft_cap == 30
    head = open_head(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
        logits = model(torch.arange(4)[None], use_cache=False).logits
    assert logits.abs().max() > 5
    assert head is None or head.soft_cap == 30


class Unlike(transformers.LlamaForCausalLM):
    """Names its logits otherwise."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return {"scores": super().forward(*args, **kwargs)["logits"]}


def test_a_trial_that_fails_in_any_way() -> None:
    """A trial is to say no, not to end the run with a KeyError."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    assert open_head(Unlike(config)) is None


def test_a_trial_leaves_modes_alone() -> None:
    """`model.train(True)` afterwards switches on the dropout of a part that its user had switched off."""
    model = make_models("causal-lm")[0].train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert open_head(model) is not None
    assert [module.training for module in model.modules()] == before
