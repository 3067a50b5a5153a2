"""`bf16: auto`: `hf_distill/run/training_defaults.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_distill.run import training_defaults as precision
from hf_distill.run.training_defaults import Precision, fast_bf16, resolve_bf16

ROOT = Path(__file__).parents[2]
CPU = Path("/proc/cpuinfo")
FLAGS = CPU.read_text() if CPU.exists() else ""


@pytest.fixture
def asked(monkeypatch):
    """Return a function that fixes what the hardware answers; without it, asking is an error."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def never(use_cpu):
        raise AssertionError("asked although the answer was given")

    monkeypatch.setattr(precision, "fast_bf16", never)
    return lambda fast: monkeypatch.setattr(precision, "fast_bf16", lambda use_cpu: Precision(fast, "because"))


@pytest.mark.parametrize("fast", [True, False])
def test_auto_becomes_the_answer_and_says_so(asked, fast):
    """`bf16="auto"` is a true value to TrainingArguments; a precision chosen in silence cannot be reproduced."""
    asked(fast)
    training = {"bf16": "auto", "seed": 1}
    assert resolve_bf16(training) == ({"bf16": fast, "seed": 1}, f"bf16: {'on' if fast else 'off'} (because)")
    assert training == {"bf16": "auto", "seed": 1}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("training", [{}, {"bf16": True}, {"bf16": False}, {"fp16": True}])
def test_an_explicit_choice_is_kept(training):
    """Hardware that overrules the recipe would change results from machine to machine."""
    assert resolve_bf16(training) == (training, None)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("launched", "bf16"), [("bf16", True), ("fp16", False)])
def test_the_launchers_choice_is_kept(monkeypatch, launched, bf16):
    """TrainingArguments with neither flag follow the launcher, so "off" would be a false report."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    changed, line = resolve_bf16({"bf16": "auto"})
    assert changed == {"bf16": bf16}
    assert f"--mixed_precision {launched}" in line


@pytest.mark.usefixtures("asked")
def test_fp16_excludes_bf16():
    """TrainingArguments refuse both at once."""
    assert resolve_bf16({"bf16": "auto", "fp16": True})[0] == {"bf16": False, "fp16": True}


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "amx_bf16": True, "avx512_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": False, "sve_max_length": 256}, False),
        ({}, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(monkeypatch, capabilities, fast):
    """bf16 works on every CPU, up to fifty times slower: whoever asks only "supported?" picks it."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "_capabilities", lambda: capabilities)
    assert fast_bf16(use_cpu=True).fast is fast


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_instructions_that_the_user_holds_back_do_not_count(monkeypatch, instructions):
    """oneDNN then emulates bf16 on a CPU that has it, ten times slower than fp32."""
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", instructions)
    assert not fast_bf16(use_cpu=True).fast
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert fast_bf16(use_cpu=True).fast


def test_nothing_that_a_run_computes_is_decided_by_a_clock(monkeypatch):
    """A probe said 1.7, 2.1 and 11.3 times within two hours: the same recipe trained in two precisions."""
    clocks = ("time.time(", "perf_counter", "monotonic", "process_time", "timeit", "do_bench")
    measuring = {  # what they measure is told or waited for, and decides nothing that is computed
        *("run/run.py", "run/fit.py", "report/latency.py", "training/meter.py", "training/chunked/compiled.py"),
        *("files/lock.py", "servers.py", "run/speculation.py", "run/watch.py", "signals.py"),
        *("run/arrival.py", "run/log_file.py", "run/doctor/trial.py", "run/sweep/command.py"),
        *("run/exporting/edge_process.py", "run/exporting/writing_texts.py"),
    }
    package = ROOT / "hf_distill"
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if any(clock in file.read_text(encoding="utf-8") for clock in clocks)
    }
    assert found <= measuring
    first = fast_bf16(use_cpu=True)
    monkeypatch.setattr(torch, "matmul", None)  # nothing is multiplied to find out
    assert fast_bf16(use_cpu=True) == first


@pytest.mark.parametrize(("native", "says"), [(True, "has bf16 units"), (False, "has no bf16 units")])
def test_gpu_that_emulates_does_not_count(monkeypatch, native, says):
    """`torch.cuda.is_bf16_supported()` is true on a V100, where bf16 is slower than fp32."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert precision._accelerator(torch.device("cuda")) == Precision(native, f"Tesla {says}")


@pytest.mark.skipif("avx512_bf16" not in FLAGS, reason="needs a CPU with avx512_bf16")
def test_this_cpu_is_read_as_the_kernel_reads_it(monkeypatch):
    """Names of capabilities that PyTorch changes would turn bf16 off everywhere, at half the speed."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert fast_bf16(use_cpu=True).fast
    assert "bf16" in fast_bf16(use_cpu=True).reason
