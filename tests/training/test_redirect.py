"""A whole loss inside the forward pass of a wrapped model. With DDP and FSDP2: `invariants/test_learned_splits.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_distill.training.forward import inside_forward


class Wrapper(nn.Module):
    """Calls what it wraps, as DDP does, and notes when."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.events: list[Any] = []

    def forward(self, *inputs: Any) -> Any:
        """Run the model between two notes."""
        self.events.append(("before", inputs))
        result = self.inner(*inputs)
        self.events.append("after")
        return result


def test_the_loss_is_computed_inside() -> None:
    """Computed after the wrapper has returned, parameters used for it are not those that it watches."""
    model = nn.Linear(2, 2)
    wrapper = Wrapper(model)
    x = torch.ones(3, 2)

    def compute() -> Tensor:
        wrapper.events.append("computed")
        return model(x).square().sum()

    found = inside_forward(wrapper, model, compute, {"x": x})
    assert wrapper.events == [("before", ({"x": x},)), "computed", "after"]
    assert found == model(x).square().sum()
    assert "forward" not in model.__dict__
    assert wrapper(x).shape == (3, 2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("where", ["wrapper", "loss"])
def test_forward_is_itself_again_after_a_failure(where: str, autocast: bool) -> None:
    """A student whose `forward` stays redirected answers every later call with the loss of a batch long gone.

    accelerate's autocast is a `forward` of the instance: it must survive as well.
    """
    model = nn.Linear(2, 2)
    plain = model.forward
    if autocast:
        model.forward = lambda x: plain(x) + 1  # type: ignore[method-assign]
    before = model(torch.zeros(2))
    own = model.__dict__.get("forward")
    wrapper = Wrapper(model)

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    if where == "wrapper":
        wrapper.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        inside_forward(wrapper, model, fail, {})
    assert model.__dict__.get("forward") is own
    assert torch.equal(model(torch.zeros(2)), before)
