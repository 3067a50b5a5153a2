"""`use_liger_kernel`: its layers for the student, for as long as it trains, and none of its losses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.integrations.liger
from invariants.cases import largest_difference, make_trainer, split, train
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from hf_distill import trainer as trainer_module
from hf_distill import training_args
from hf_distill.training_args import check_devices


class Liger:
    """In place of the package: changes a Llama as it does, by kernels that compute the same.

    Attributes:
        settings: It was called with.
        ran: How often its layers ran.
    """

    def __init__(self) -> None:
        self.settings: list[dict[str, bool]] = []
        self.ran = 0

    def apply(self, model: nn.Module, **settings: bool) -> None:
        self.settings.append(settings)
        rotate, normalise = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm.forward

        def rotary(*args: Any, **kwargs: Any) -> Any:
            return rotate(*args, **kwargs)

        def norm(layer: Any, hidden: Tensor) -> Tensor:
            self.ran += 1
            normalised: Tensor = normalise(layer, hidden)
            return normalised

        class RMSNorm(modeling_llama.LlamaRMSNorm):  # type: ignore[misc]
            """Of models to come."""

        for one in (rotary, norm, RMSNorm):
            one.__module__ = "liger_kernel.ops"
        patched: Any = modeling_llama
        patched.apply_rotary_pos_emb, patched.LlamaRMSNorm = rotary, RMSNorm
        for layer in model.modules():
            if isinstance(layer, nn.Module) and type(layer).__name__ == "LlamaRMSNorm":
                layer.__dict__["forward"] = MethodType(norm, layer)
                layer.__dict__["_get_name"] = MethodType(norm, layer)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Liger:
    stand_in = Liger()
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    inner._apply_liger_kernel_to_instance = stand_in.apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    monkeypatch.setattr(transformers.integrations.liger, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(trainer_module, "check_devices", lambda args: None)
    return stand_in


@pytest.mark.parametrize("config", [None, {"rope": True, "fused_linear_cross_entropy": True}])
def test_its_layers_train_the_student(config: dict[str, bool] | None, tmp_path: Path, liger: Liger) -> None:
    """Refused, a user loses a fifth of the memory of a step; with its loss, a student might return no logits."""
    plain = train(make_trainer("causal-lm", tmp_path, max_steps=2, **split(4)))
    settings: dict[str, Any] = {"use_liger_kernel": True, "liger_kernel_config": config}
    trainer = make_trainer("causal-lm", tmp_path, max_steps=2, **settings, **split(4))
    assert trainer._heads is not None
    found = train(trainer)
    assert liger.ran > 0
    (given,) = liger.settings
    assert given == {**(config or {}), "fused_linear_cross_entropy": False, "cross_entropy": False}
    assert largest_difference(found, plain) < 1e-12


def test_nothing_of_it_stays(tmp_path: Path, liger: Liger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report times the student beside its teacher: with kernels in one of them, it would report them as a gain."""
    before = dict(vars(modeling_llama))
    trainer = make_trainer("causal-lm", tmp_path, max_steps=1, use_liger_kernel=True, **split(4))
    trainer.train()
    ran = liger.ran
    trainer.evaluate()
    assert liger.ran == ran
    assert vars(modeling_llama) == before
    assert not [
        layer
        for layer in trainer.model.modules()
        if {"forward", "_get_name"} & vars(layer).keys() and layer is not trainer.model
    ]

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(KeyError):
        trainer.train()
    assert vars(modeling_llama) == before


@pytest.mark.parametrize(
    ("device", "installed", "message"),
    [
        ("cpu", True, "use_liger_kernel needs a GPU, and this run is on the CPU"),
        ("cuda", False, "use_liger_kernel needs Liger.*pip install liger-kernel"),
        ("cuda", True, None),
    ],
)
def test_where_it_cannot_run(
    device: str, installed: bool, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels would fail in the first step, in words of Triton's, after both models have been loaded."""
    monkeypatch.setattr(training_args, "is_liger_kernel_available", lambda: installed)
    args: Any = SimpleNamespace(n_gpu=1, use_liger_kernel=True, device=torch.device(device))
    if message is None:
        check_devices(args)
        return
    with pytest.raises(ValueError, match=message):
        check_devices(args)
