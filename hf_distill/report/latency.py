"""Measure the time of forward passes, so that the numbers of several models can be compared."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_distill.models.inspection import taken_by
from hf_distill.report.timing import Latency, Timing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = 3
# Timed passes of one model before it is the next model's turn.
TURN = 3
# `min_repeats` is reduced if it would take more than this many times the budget.
PATIENCE = 10


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

    The models take turns, so that other load on the machine slows all of them equally. Each pass runs in eval mode
    under `torch.inference_mode`, with the device synchronised before and after. Modes are restored afterwards.

    Args:
        models: Name -> model, on the device on which it is to be timed.
        single: Collated inputs of one example; a model gets those that its `forward` names, and never `labels`.
        batch: Collated inputs of a full batch.
        own: Name -> `single` and `batch` of the same texts, for a model with its own tokenizer.
        seconds: Approximate time to spend on each model; half of it for each of the two inputs.
        min_repeats: Least number of timed passes, even if they take up to ten times as long as `seconds`.

    Returns:
        Name -> latency.
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
    """Time one model. To compare models use `measure_all`, in which they take turns."""
    return measure_all({"model": model}, single, batch, seconds=seconds, min_repeats=min_repeats)["model"]


def device_name(device: torch.device) -> str:
    """Return the product name of a device, or its type if the name is not known."""
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
    # Per module, since a frozen part of a model in training may be in eval mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def accepted(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that the model's `forward` names, without `labels`.

    `**kwargs` does not count: Transformers models take it and then ignore or refuse unknown inputs (DistilBERT has no
    `token_type_ids`).
    """
    names = taken_by(model)
    return {key: value for key, value in inputs.items() if key in names}


def measure_calls(
    calls: Mapping[str, tuple[Callable[[], object], Callable[[], object]]],
    shapes: tuple[tuple[int, int], tuple[int, int]],
    dtypes: Mapping[str, str],
    *,
    seconds: float = 2.0,
    min_repeats: int = 10,
) -> dict[str, Latency]:
    """Time functions that run the same model in several ways on the CPU, taking turns as in `measure_all`.

    Args:
        calls: Name -> its call for one example, and that for a full batch.
        shapes: Examples and tokens of these two inputs.
        dtypes: Name -> type of its weights.
        seconds: Approximate time to spend on each; half of it for each of the two inputs.
        min_repeats: Least number of timed calls.

    Returns:
        Name -> latency.
    """
    budget = seconds * len(calls) / 2
    alone, together = (
        _time({name: both[size] for name, both in calls.items()}, budget, min_repeats) for size in (0, 1)
    )
    return {
        name: Latency(
            single=_summary(alone[name], *shapes[0]),
            batch=_summary(together[name], *shapes[1]),
            device=device_name(torch.device("cpu")),
            dtype=dtypes[name],
            threads=torch.get_num_threads(),
        )
        for name in calls
    }


def _forward(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    device = model.device
    # Moved once, so that the copy to the device is not timed.
    on_device = {key: value.to(device) for key, value in accepted(model, inputs).items()}

    def run() -> None:
        model(**on_device)
        # A GPU queues its kernels; without this only the queueing would be timed.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run


def _time(forwards: Mapping[str, Callable[[], object]], budget: float, min_repeats: int) -> dict[str, list[float]]:
    for forward in forwards.values():
        for _ in range(WARM_UP):
            forward()
    times: dict[str, list[float]] = {name: [] for name in forwards}
    order = list(forwards)
    started = time.perf_counter()
    while True:
        for name in order:
            forwards[name]()  # not timed: the caches hold the data of the model before
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
    return _summary(milliseconds, len(first), None if tokens is None else int(tokens.shape[-1]))


def _summary(milliseconds: list[float], batch_size: int, sequence_length: int | None) -> Timing:
    return Timing(
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.percentile(milliseconds, 90)),
        repeats=len(milliseconds),
        batch_size=batch_size,
        sequence_length=sequence_length,
    )
