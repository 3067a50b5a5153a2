"""Checks the machine: precision, threads, and whether others use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import torch

from hf_distill import parallel
from hf_distill.cache.cache import amount
from hf_distill.formatting import counted
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.training_defaults import fast_bf16

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

# Seconds in which this process rests, so that what is busy are others.
LISTEN = 1.0
# Above this share of the cores, or of a device's memory, others are in the way.
BUSY, HELD = 0.5, 0.1


def machine(opened: Opened) -> Iterator[Finding]:
    """Check precision and device of the run."""
    args = opened.run.args
    name = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    yield precision(name, on_cpu=args.device.type == "cpu")
    if args.device.type == "cpu":
        busy = psutil.cpu_percent(LISTEN) / 100
        cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
        yield threads(torch.get_num_threads(), parallel.on_this_machine(), cores or 1, busy)
    elif hasattr(getattr(torch, args.device.type), "mem_get_info"):
        own = getattr(torch, args.device.type).memory_reserved(args.device)
        free, total = getattr(torch, args.device.type).mem_get_info(args.device)
        yield others(str(args.device), total - free - own, total)


def precision(name: str, *, on_cpu: bool) -> Finding:
    """Say whether the device is fast in the precision of the training: `bf16`, `fp16` or `fp32`."""
    found = fast_bf16(on_cpu)
    text = f"precision {name} ({found.reason})"
    if name == "bf16" and not found.fast:
        return Finding("machine", "warning", f"bf16 is asked for, and it is slow here: {found.reason}.", "bf16: auto")
    return Finding("machine", "ok", text)


def threads(each: int, processes: int, cores: int, busy: float) -> Finding:
    """Say whether the cores are enough for the threads.

    Args:
        each: Threads of a process.
        processes: Processes on this machine.
        cores: Cores that a process may use.
        busy: Share of all cores that is busy with others.
    """
    figures = {"threads": each, "processes": processes, "cores": cores, "busy_share": busy}
    text = f"{counted(processes, 'process', 'processes')} of {counted(each, 'thread')} on {counted(cores, 'core')}"
    if each * processes > cores:
        advice = f"Set OMP_NUM_THREADS={max(cores // processes, 1)}."
        return Finding("machine", "warning", f"{text}: they wait for each other.", advice, figures)
    if busy > BUSY:
        text += f"; other programs use {busy:.0%} of the machine: steps are slower than they could be, and vary."
        return Finding("machine", "warning", text, "End them, or wait.", figures)
    return Finding("machine", "ok", f"{text}; other programs use {busy:.0%}", figures=figures)


def others(device: str, held: int, total: int) -> Finding:
    """Say whether other programs hold memory of an accelerator."""
    figures = {"others_bytes": held, "total_bytes": total}
    if held > HELD * total:
        text = f"other programs hold {amount(held)} of the {amount(total)} of {device}."
        return Finding("machine", "warning", text, "End them, or use another device.", figures)
    return Finding("machine", "ok", f"{device}: {amount(total)}, free", figures=figures)
