"""Benchmarks: they run, they compare like with like, and they say so in a table."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import table
from benchmarks.measure import Outcome, Variant, measuring
from benchmarks.worker import BENCHMARKS, run, suite

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_variants_of_a_group_compute_the_same(benchmark: str) -> None:
    """A variant that masks other tokens, or forgets a factor, would be compared for its speed all the same."""
    module = suite(benchmark)
    runs, threads = {}, torch.get_num_threads()
    for name, variant in module.VARIANTS.items():
        if not variant.needs or find_spec(variant.needs):
            runs[name] = [run(benchmark, name, module.Settings.quick())]
    torch.set_num_threads(threads)
    table.check(module.VARIANTS, runs)
    compared = [name for name in runs if module.VARIANTS[name].group]
    assert all(runs[name][0]["checks"]["loss"] > 0 for name in compared)
    if "cached" in runs:  # of everything, in this size
        live = next(runs[name] for name in ("online", "dynamic") if name in runs)
        assert 0 < runs["cached"][0]["parts"]["reading the cache"] < runs["cached"][0]["cost"]["seconds"]
        assert runs["cached"][0]["checks"]["loss"] == pytest.approx(live[0]["checks"]["loss"], rel=2e-3)
    if benchmark == "teacher":  # in other weights it answers something else, which is what the benchmark tells
        assert not compared
        assert runs["fp32"][0]["checks"]["loss"] == 0 < runs["bf16"][0]["checks"]["loss"] < 0.1
    elif benchmark not in ("prompted", "lora", "rollouts"):
        assert {name for name in compared if name.startswith(("online", "dense", "grouped", "ours"))}
    found = table.summary(benchmark, module, runs, module.Settings.quick())
    text = table.document({**found, "rounds": 1, "machine": {"processor": "one"}})
    for name in runs:
        assert f"| {module.VARIANTS[name].title} |" in text
        for part in runs[name][0]["parts"]:
            assert f"| {part}: {module.VARIANTS[name].title} |" in text
    assert {name for _, *pair in module.RATIOS for name in pair} <= set(module.VARIANTS)


def test_epochs_count_the_teacher() -> None:
    """A cache that asks twice, or a capture that is left out of the cost, would make the growth with epochs a fable."""
    from benchmarks import epochs

    settings = epochs.Settings(epochs=3, examples=8, tiny=True)
    threads = torch.get_num_threads()
    for name, asked in {"online": 96, "cached": 32, "online_language": 24, "cached_language": 8}.items():
        found = epochs.VARIANTS[name].run(settings)
        assert found.counts == {"teacher forwards": asked}
        assert ("capturing" in found.parts) is name.startswith("cached")
        assert sum(found.parts.get(part, 0.0) for part in ("capturing", "the first epoch")) < found.cost.seconds
    torch.set_num_threads(threads)


def test_what_grows_has_a_table_each() -> None:
    """Series of other settings in one table would stand under headings that are not theirs."""
    row = {"seconds": 1.5, "peak_mib": 20.0, "counts": {}}
    counted = {**row, "counts": {"teacher forwards": 256}}
    found = {
        "benchmark": "growth",
        "points": [
            {"series": "tokens", "settings": {"tokens": 512}, "variants": {"naive": row}},
            {"series": "tokens", "settings": {"tokens": 1024}, "variants": {"naive": row}},
            {"series": "epochs", "settings": {"epochs": 1}, "variants": {"cached": counted}},
        ],
        "rounds": 1,
        "machine": {},
    }
    text = table.document(found)
    assert "| tokens | naive, CPU s / MiB |\n| --- | ---: |\n| 512 | 1.500 / 20 |\n| 1024 | 1.500 / 20 |" in text
    assert "| epochs | cached, CPU s / MiB / forwards |\n| --- | ---: |\n| 1 | 1.500 / 20 / 256 |" in text


def outcome(seconds: float, peak: float, **checks: float) -> dict[str, Any]:
    return {"cost": {"seconds": seconds, "peak_mib": peak}, "checks": checks, "per": "loss", "parts": {}, "counts": {}}


def test_different_work_is_not_compared() -> None:
    """The check that the test above rests on must be able to fail: value, gradient, NaN, and what is not reported."""
    variants = {name: Variant(Outcome, name, "same", 1e-3) for name in ("one", "other")}
    good = outcome(1.0, 1.0, loss=2.0, gradient=3.0)
    table.check(variants, {"one": [good], "other": [outcome(9.0, 9.0, loss=2.001, gradient=3.0)]})
    for bad in ({"loss": 2.1, "gradient": 3.0}, {"loss": 2.0, "gradient": 0.0}, {"loss": 2.0}, {}):
        with pytest.raises(table.NotTheSame):
            table.check(variants, {"one": [good], "other": [good, outcome(1.0, 1.0, **bad)]})
    with pytest.raises(table.NotTheSame):
        table.check(variants, {"one": [outcome(1.0, 1.0, loss=float("nan"))]})


def test_medians_and_ratios() -> None:
    """A ratio the wrong way round, or of the best run of one to the worst of another, is a made-up figure."""

    module = SimpleNamespace(
        VARIANTS={name: Variant(Outcome, name) for name in ("naive", "ours")},
        BASELINE="naive",
        RATIOS=(("ours, of naive", "naive", "ours"),),
    )
    runs = {
        "naive": [outcome(seconds, 600.0) for seconds in (9.0, 6.0, 4.0)],
        "ours": [outcome(seconds, peak) for seconds, peak in ((1.0, 10.0), (2.0, 20.0), (100.0, 60.0))],
    }
    from benchmarks.loss import Settings

    found = table.summary("loss", module, runs, Settings())
    assert found["variants"]["ours"]["parts"] == {}
    assert found["ratios"] == {"ours, of naive": {"time": 3.0, "memory": 30.0}}
    assert found["variants"]["ours"]["times_faster"] == 3.0
    assert (found["variants"]["ours"]["least"], found["variants"]["ours"]["most"]) == (1.0, 100.0)
    assert "| ours, of naive | 3.00 | 30.0 |" in table.document({**found, "rounds": 3, "machine": {}})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_memory_is_the_rise_within_the_block() -> None:
    """Without a reset the largest moment of the whole process, imports included, is reported for every variant."""
    made = torch.ones(64 * 2**18)  # 64 MiB, before
    with measuring() as cost:
        made = torch.ones(32 * 2**18)
        seen = float(made[-1])
    assert seen == 1.0
    assert cost.peak_mib is not None
    assert 25 < cost.peak_mib < 45
    with measuring() as nothing:
        pass
    assert nothing.peak_mib is not None
    assert nothing.peak_mib < 5
    assert nothing.seconds < 0.1


def test_the_command_writes_json_and_a_table(tmp_path: Path) -> None:
    """A benchmark that runs for an hour and then fails to write is worse than none."""
    command = [sys.executable, "-m", "benchmarks.run", "loss", "--quick", "--into", str(tmp_path)]
    done = subprocess.run(
        [*command, "--variants", "naive", "dense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "loss.json").read_text(encoding="utf-8"))
    assert found["variants"].keys() == {"naive", "dense"}
    assert found["ratios"]["dense loss, of naive"]["time"] > 0
    assert "torch" in found["machine"]["packages"]
    assert "| ratio | time | memory |" in (tmp_path / "loss.md").read_text(encoding="utf-8")
    assert "naive: all logits" in done.stdout


def test_waiting_takes_its_steps() -> None:
    """Nothing else runs this benchmark: it once could not collate its own rows, and the page went on to name it."""
    from benchmarks.waiting import steps

    assert steps(1, bf16=False) > 0
