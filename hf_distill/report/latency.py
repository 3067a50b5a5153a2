"""How fast models are: the time of one forward pass, measured so that the numbers of several models can be compared."""

from __future__ import annotations

import inspect
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_distill.models.target_model import TargetSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = 3
# Timed passes of one model before the next model has its turn.
TURN = 3
# A pass so slow that `min_repeats` would take more than this many budgets is timed fewer times.
PATIENCE = 10


@dataclass(frozen=True)
class Timing:
    """Repeated forward passes over one batch.

    Attributes:
        median_ms: Milliseconds a pass takes; half of the passes are faster.
        p90_ms: Nine of ten passes are faster.
        repeats: Passes timed.
        batch_size: Examples in the batch.
        sequence_length: Tokens an example, padding included; None for inputs without tokens.
    """

    median_ms: float
    p90_ms: float
    repeats: int
    batch_size: int
    sequence_length: int | None


@dataclass(frozen=True)
class Latency:
    """The speed of one model.

    Attributes:
        single: One example at a time, what a user waits for.
        batch: A full batch, what a bill depends on.
        device: Where it ran, by product name.
        dtype: Of the weights, those aside that are quantized.
        threads: Threads of torch's CPU operators.
    """

    single: Timing
    batch: Timing
    device: str
    dtype: str
    threads: int

    @property
    def throughput(self) -> float:
        """Examples a second, from the median time of a full batch."""
        return self.batch.batch_size / self.batch.median_ms * 1000


def measure_all(
    models: Mapping[str, PreTrainedModel],
    single: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    *,
    own: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] | None = None,
    seconds: float = 3.0,
    min_repeats: int = 10,
) -> dict[str, Latency]:
    """Time several models on the same inputs.

    Models take turns, so that whatever else the machine does slows all of them alike. Each pass runs in eval mode
    under `torch.inference_mode`, with the device synchronised before and after; mode and weights are left as found.

    Args:
        models: Each on the device it is to be timed on.
        single: Collated inputs of one example. What a model's `forward` does not name is not passed, `labels` never.
        batch: Collated inputs of a full batch.
        own: Name of a model -> both inputs, of the same texts, for one with a tokenizer of its own.
        seconds: Time to spend on each model, about; half of it for each of the two inputs.
        min_repeats: Timed passes at least, also where they take longer than that (within reason: up to ten times).

    Returns:
        The latency of each model, under the same names.
    """
    budget = seconds * len(models) / 2
    inputs = {name: (own or {}).get(name, (single, batch)) for name in models}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models.values():
            stack.enter_context(_eval_mode(model))
        alone, together = (
            _time({name: _forward(model, inputs[name][size]) for name, model in models.items()}, budget, min_repeats)
            for size in (0, 1)
        )
    return {
        name: Latency(
            single=_timing(alone[name], inputs[name][0]),
            batch=_timing(together[name], inputs[name][1]),
            device=device_name(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        for name, model in models.items()
    }


def measure(
    model: PreTrainedModel,
    single: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    *,
    seconds: float = 3.0,
    min_repeats: int = 10,
) -> Latency:
    """Time one model. To compare models, `measure_all` is fairer."""
    return measure_all({"model": model}, single, batch, seconds=seconds, min_repeats=min_repeats)["model"]


def device_name(device: torch.device) -> str:
    """Return the product name of a device where it can be known, else its type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "cpu"


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    # Per module: a frozen part of a model in training may be in eval mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def accepted(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that the model's `forward` names, without `labels`.

    `**kwargs` does not count as a name: Transformers models take it and then ignore or refuse the unknown
    (DistilBERT has no `token_type_ids`).
    """
    taken = model.takes if isinstance(model, TargetSource) else inspect.signature(model.forward).parameters
    names = set(taken) - {"labels"}
    return {key: value for key, value in inputs.items() if key in names}


def _forward(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    device = model.device
    # Moved once: the copy to the device is not the model's time.
    on_device = {key: value.to(device) for key, value in accepted(model, inputs).items()}

    def run() -> None:
        model(**on_device)
        # Kernels are queued; without this a GPU's time would be that of the queueing.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run


def _time(forwards: Mapping[str, Callable[[], None]], budget: float, min_repeats: int) -> dict[str, list[float]]:
    for forward in forwards.values():
        for _ in range(WARM_UP):
            forward()
    times: dict[str, list[float]] = {name: [] for name in forwards}
    order = list(forwards)
    started = time.perf_counter()
    while True:
        for name in order:
            forwards[name]()  # not timed: it pays for the caches that the model before has filled
            for _ in range(TURN):
                start = time.perf_counter()
                forwards[name]()
                times[name].append((time.perf_counter() - start) * 1000)
        order.reverse()
        spent = time.perf_counter() - started
        enough = len(times[order[0]]) >= min_repeats
        if (enough and spent >= budget) or spent >= budget * PATIENCE:
            return times


def _timing(milliseconds: list[float], inputs: Mapping[str, Tensor]) -> Timing:
    first = next(iter(inputs.values()))
    tokens = inputs.get("input_ids")
    return Timing(
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.percentile(milliseconds, 90)),
        repeats=len(milliseconds),
        batch_size=len(first),
        sequence_length=None if tokens is None else int(tokens.shape[-1]),
    )
