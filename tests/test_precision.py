"""`bf16: auto`: `hf_distill/training/precision.py`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_distill.training import precision
from hf_distill.training.precision import Probe, describe, fast_bf16, resolve_bf16

CPU = Path("/proc/cpuinfo")
FLAGS = CPU.read_text() if CPU.exists() else ""


@pytest.fixture
def probed(monkeypatch):
    """Return a function that fixes the outcome of the probe; without it, probing is an error."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def never(use_cpu):
        raise AssertionError("probed although the answer was given")

    monkeypatch.setattr(precision, "_probe", never)
    return lambda fast: monkeypatch.setattr(precision, "_probe", lambda use_cpu: Probe(fast, "because"))


@pytest.mark.parametrize("fast", [True, False])
def test_auto_becomes_the_answer_and_says_so(probed, fast):
    """`bf16="auto"` is a true value to TrainingArguments; a precision chosen in silence cannot be reproduced."""
    probed(fast)
    training = {"bf16": "auto", "seed": 1}
    assert resolve_bf16(training) == ({"bf16": fast, "seed": 1}, f"bf16: {'on' if fast else 'off'} (because)")
    assert training == {"bf16": "auto", "seed": 1}


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize("training", [{}, {"bf16": True}, {"bf16": False}, {"fp16": True}])
def test_an_explicit_choice_is_kept(training):
    """A probe that overrules the recipe would change results from machine to machine."""
    assert resolve_bf16(training) == (training, None)


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize(("launched", "bf16"), [("bf16", True), ("fp16", False)])
def test_the_launchers_choice_is_kept(monkeypatch, launched, bf16):
    """TrainingArguments with neither flag follow the launcher, so "off" would be a false report."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    changed, line = resolve_bf16({"bf16": "auto"})
    assert changed == {"bf16": bf16}
    assert f"--mixed_precision {launched}" in line


@pytest.mark.usefixtures("probed")
def test_fp16_excludes_bf16():
    """TrainingArguments refuse both at once."""
    assert resolve_bf16({"bf16": "auto", "fp16": True})[0] == {"bf16": False, "fp16": True}


def test_probe_leaves_no_trace():
    """A probe that leaves torch on one thread would cost more than it finds."""
    threads = torch.get_num_threads()
    assert 0 < precision._cpu_speedup() < 1000
    assert torch.get_num_threads() == threads


@pytest.mark.slow  # it times the machine it runs on
@pytest.mark.skipif("avx512_bf16" not in FLAGS, reason="needs a CPU with avx512_bf16")
def test_cpu_with_bf16_instructions():
    """A probe that always says no would cost half the speed of every run on such a CPU."""
    assert fast_bf16(use_cpu=True)
    assert "as fast as in fp32 on this CPU" in describe(use_cpu=True)


PROBE = (
    "from hf_distill.training.precision import fast_bf16, describe; "
    "print(fast_bf16(use_cpu=True), describe(use_cpu=True))"
)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN can be held back on x86 only")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_cpu_without_bf16_instructions(instructions):
    """bf16 works on every CPU, up to fifty times slower: a probe that asks only "supported?" picks it."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    command = [sys.executable, "-c", PROBE]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False "), done.stdout


@pytest.mark.parametrize(("native", "says"), [(True, "has bf16 units"), (False, "has no bf16 units")])
def test_gpu_that_emulates_does_not_count(monkeypatch, native, says):
    """`torch.cuda.is_bf16_supported()` is true on a V100, where bf16 is slower than fp32."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert precision._ask(torch.device("cuda")) == Probe(native, f"Tesla {says}")


SAME = """
import json, os, sys
from hf_distill.training import precision
# Each rank's own probe would give another answer: on at 0, off at 1.
precision._probe = lambda use_cpu: precision.Probe(os.environ["RANK"] == "0", "rank " + os.environ["RANK"])
changed, line = precision.resolve_bf16({"bf16": "auto", "use_cpu": True})
from transformers import TrainingArguments
args = TrainingArguments(sys.argv[1], **changed)
with open(sys.argv[1] + os.environ["RANK"], "w") as file:
    json.dump([args.bf16, line, args.world_size], file)
os._exit(0)  # gloo now and then aborts at exit, after all is done
"""


@pytest.mark.slow
def test_all_processes_get_the_answer_of_the_first(tmp_path):
    """Near the limit two timings disagree: DDP would average gradients of two precisions, in silence."""
    (tmp_path / "same.py").write_text(SAME)
    torchrun = [sys.executable, str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [*torchrun, str(tmp_path / "same.py"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    files = sorted(tmp_path.glob("out[01]"))
    assert len(files) == 2, done.stderr
    assert [json.loads(file.read_text()) for file in files] == [[True, "bf16: on (rank 0)", 2]] * 2
