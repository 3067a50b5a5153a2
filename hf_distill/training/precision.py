"""`bf16: auto`: half precision where this machine is faster with it, and never without saying so."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORTH_IT = 1.5
"""Times faster that bf16 products must be on a CPU: autocast casts the weights in every step, which eats part of it."""

BUDGET_SECONDS = 0.05
"""Time for one size of product, after which no more repeats are begun."""


@dataclass(frozen=True)
class Probe:
    """What was found out about bf16 on this machine: whether it is worth using, and a reason fit to print."""

    fast: bool
    reason: str


def fast_bf16(use_cpu: bool = False) -> bool:
    """Return whether training in bf16 is faster than in fp32 here: on the accelerator, or else on the CPU.

    On an accelerator the hardware is asked. CPUs are timed (about 0.1 s): every CPU can compute in bf16, but one
    without the instructions is several times slower than in fp32, and the flag that tells differs by vendor.

    Args:
        use_cpu: Ask about the CPU even if there is an accelerator.
    """
    return _probe(use_cpu).fast


def describe(use_cpu: bool = False) -> str:
    """Return the reason for `fast_bf16`, such as `matrix products 4.3x as fast as in fp32 on this CPU`."""
    return _probe(use_cpu).reason


def resolve_bf16(training: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Replace `bf16: "auto"` by true or false; return the new arguments and a line to print, or None if not "auto".

    All processes of a run get the same answer. `fp16: true` and the `--mixed_precision` of `accelerate launch` are
    explicit and come first.

    Args:
        training: Keyword arguments of `TrainingArguments`; not changed.

    >>> resolve_bf16({"bf16": "auto", "fp16": True})
    ({'bf16': False, 'fp16': True}, 'bf16: off (fp16 is asked for)')
    >>> resolve_bf16({"bf16": False})
    ({'bf16': False}, None)
    """
    if training.get("bf16") != "auto":
        return training, None
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if training.get("fp16"):
        probe = Probe(False, "fp16 is asked for")
    elif launched != "no":
        probe = Probe(launched == "bf16", f"accelerate launch --mixed_precision {launched}")
    else:
        probe = _same_everywhere(training)
    return {**training, "bf16": probe.fast}, f"bf16: {'on' if probe.fast else 'off'} ({probe.reason})"


def _same_everywhere(training: dict[str, Any]) -> Probe:
    """Probe on rank 0 and tell the others: near the limit two timings may disagree, and DDP would mix dtypes.

    An accelerator's answer is not a timing, so nothing needs to be told (machines of one run have the same kind).
    """
    use_cpu = bool(training.get("use_cpu"))
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _accelerator(use_cpu) is not None:
        return _probe(use_cpu)
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # The arguments with which TrainingArguments creates the process group of a CPU run, which it then finds existing.
    state = PartialState(cpu=True, backend=training.get("ddp_backend"))
    answer = [_probe(use_cpu) if state.is_main_process else None]
    probe = broadcast_object_list(answer)[0]
    assert isinstance(probe, Probe)
    return probe


@cache
def _probe(use_cpu: bool) -> Probe:
    device = _accelerator(use_cpu)
    if device is not None:
        return _ask(device)
    ratio = _cpu_speedup()
    return Probe(ratio >= WORTH_IT, f"matrix products {ratio:.1f}x as fast as in fp32 on this CPU")


def _accelerator(use_cpu: bool) -> torch.device | None:
    import torch

    return None if use_cpu else torch.accelerator.current_accelerator(check_available=True)


def _ask(device: torch.device) -> Probe:
    """Ask an accelerator's driver; emulated bf16 (CUDA before Ampere) is slower than fp32 and does not count."""
    import torch
    from transformers.utils.import_utils import is_torch_bf16_gpu_available

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this {device.type} device"
    if device.type == "mps":  # reported as supported where Metal emulates it (M1, M2)
        return Probe(False, "emulated on some Apple chips; write true where yours has it")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(is_torch_bf16_gpu_available())
    return Probe(fast, f"{name} {'has' if fast else 'has no'} bf16 units")


def _cpu_speedup() -> float:
    """Return how many times faster a transformer's matrix product is in bf16 than in fp32."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a core's ratio is that of all; threads that wait for each other would blur it
    try:
        # A small product first: where bf16 is emulated, the large one alone would take a second.
        ratio = _speedup(rows=16, repeats=5)
        # So few rows are bound by memory, and little slower there says nothing; emulation is at least ten times slower.
        return ratio if ratio < 0.25 else _speedup(rows=512, repeats=8)
    finally:
        torch.set_num_threads(threads)


def _speedup(rows: int, repeats: int) -> float:
    import torch

    pairs = [
        (torch.ones(rows, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf"), float("inf")]
    started = time.perf_counter()
    # Alternating, and the fastest of several: other work on the machine slows single products, of both kinds.
    for repeat in range(repeats + 1):
        for kind, (left, right) in enumerate(pairs):
            before = time.perf_counter()
            torch.matmul(left, right)
            if repeat:  # the first one also chooses and compiles a kernel
                best[kind] = min(best[kind], time.perf_counter() - before)
        if repeat >= 3 and time.perf_counter() - started > BUDGET_SECONDS:
            break
    return best[0] / best[1]
