"""Run a benchmark and write what it found: `python -m benchmarks.run loss`, or `make bench`.

Every run of a variant is a process of its own, with one thread. Variants take turns, round by round, so that a machine
that is busy for a while slows all of them; what is reported is the median.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.growth import SERIES
from benchmarks.machine import machine
from benchmarks.table import check, document, summary, to_rich
from benchmarks.worker import BENCHMARKS, suite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 140  # of a table, where the terminal has no such width, or is none
console = Console(stderr=True)


def runnable(variants: dict[str, Any], wanted: Sequence[str] | None) -> Iterator[str]:
    """Yield the variants that can run here, and say which cannot."""
    for name, variant in variants.items():
        if wanted and name not in wanted:
            continue
        if variant.needs and find_spec(variant.needs) is None:
            console.print(f"left out: {name}, as there is no {variant.needs} here")
        else:
            yield name


def once(benchmark: str, variant: str, sizes: Sequence[str]) -> dict[str, Any]:
    """Run a variant in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", benchmark, variant, *sizes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{benchmark} {variant} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    benchmark: str, names: Sequence[str], rounds: int, sizes: Sequence[str], progress: Progress
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Run variants in turn; yield all runs so far after every round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    bar = progress.add_task(" ".join((benchmark, *sizes)), total=rounds * len(names))
    for _ in range(rounds):
        for name in names:
            found[name].append(once(benchmark, name, sizes))
            progress.advance(bar)
        yield found


def compare(benchmark: str, rounds: int, quick: bool, wanted: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Yield what one benchmark found, checked and summed up, after every round."""
    module = suite(benchmark)
    names = list(runnable(module.VARIANTS, wanted))
    settings = module.Settings.quick() if quick else module.Settings()
    with Progress(console=console) as progress:
        for done, runs in enumerate(measure(benchmark, names, rounds, ["--quick"] if quick else [], progress), 1):
            check(module.VARIANTS, runs)
            yield {**summary(benchmark, module, runs, settings), "rounds": done}


def grow(rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what the loss, or a training, costs as its sizes grow, after every point."""
    points = []
    with Progress(console=console) as progress:
        for series in SERIES:
            module = suite(series.benchmark)
            names = list(runnable(module.VARIANTS, series.variants))
            for sizes in series.sizes(quick):
                *_, runs = measure(series.benchmark, names, rounds, ["--settings", json.dumps(sizes)], progress)
                check(module.VARIANTS, runs)
                found = summary(series.benchmark, module, runs, module.Settings(**sizes))
                points.append({"series": series.name, **{key: found[key] for key in ("settings", "variants")}})
                yield {"benchmark": "growth", "points": points, "rounds": rounds}


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "growth"], nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: does everything still run?")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--into", type=Path, default=RESULTS, help="where the JSON and the table go")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    for benchmark in options.benchmark:
        rounds = 1 if options.quick else options.rounds
        before, quick = machine(), options.quick
        found: dict[str, Any] = {}
        steps = grow(rounds, quick) if benchmark == "growth" else compare(benchmark, rounds, quick, options.variants)
        for part in steps:  # written each time, so that whoever is interrupted has something
            found = {**part, "machine": before}
            (options.into / f"{benchmark}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (options.into / f"{benchmark}.md").write_text(document(found), encoding="utf-8")
        Console(width=max(console.width, WIDTH)).print(to_rich(found))


if __name__ == "__main__":
    main()
