"""What a whole run costs beside its steps: `python -m benchmarks.whole_run`, on a machine with nothing else to do.

By the clock, and by processor time where that means something:

- `check`: `hf-distill recipes/quickstart.yaml --check`.
- `start`: the command of the quickstart until its student has taken a step, where teacher and targets are stored.
- `checkpoints`: the share of a run's training that goes into checkpoints, at the quickstart's settings.
- `processes`: a step of two connected processes (DDP) against two processes that train beside each other with the same
  batches and are not connected, which is the best there can be.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "whole_run.md"
RECIPE = "recipes/quickstart.yaml"
PROCESSES = 2
ONE, APART, DDP = "one process, the whole batch", "two processes beside each other", "two connected processes (DDP)"


def _run(worker: str, *arguments: str, environment: dict[str, str] | None = None, wait: bool = True) -> Any:
    """Start a worker of this file; return its figures, or the process if it is not to be waited for."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.whole_run", "--worker", worker, *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return _figures(process) if wait else process


def _figures(process: subprocess.Popen[str]) -> dict[str, float]:
    out, error = process.communicate(timeout=1800)
    if process.returncode:
        raise SystemExit(f"a worker failed:\n{error[-3000:]}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


# ---- The command -----------------------------------------------------------------------------------------------------


def _main(*arguments: str, out: Path | None = None) -> int:
    """Run the command as it is started from a shell, in this process; what it prints goes to stderr."""
    sys.stdout, before = sys.stderr, sys.stdout
    gc.disable()  # as `cli.main` does before it imports anything
    from hf_distill.cli import main

    try:
        return main([RECIPE, *arguments, *([f"training.output_dir={out}"] if out else [])])
    finally:
        sys.stdout = before


def _until_first_step(report: Callable[[], None]) -> None:
    """Call `report` once the student has taken its first step."""
    gc.disable()
    from hf_distill.training.meter import Meter

    original = Meter.on_step_end

    def on_step_end(self: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        original(self, args, *rest, **kwargs)
        if "_teacher" not in str(args.output_dir):
            report()

    Meter.on_step_end = on_step_end  # type: ignore[method-assign]


def _work_start(out: str, began: str) -> None:
    """Print the seconds from the start of the process to the student's first step, and end there."""

    def report() -> None:
        print(json.dumps({"seconds": time.time() - float(began)}), file=sys.__stdout__, flush=True)
        os._exit(0)

    _until_first_step(report)
    raise SystemExit(f"the run ended without a step: {_main(out=Path(out))}")


def _work_checkpoints(out: str) -> None:
    """Run the quickstart's student; print the seconds of its training, and those of its checkpoints."""
    from hf_distill.trainer import DistillationTrainer

    seconds: dict[str, list[float]] = {"saving": [], "training": []}

    def timed(name: str, method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = time.perf_counter()
            try:
                return method(self, *args, **kwargs)
            finally:
                if "_teacher" not in str(self.args.output_dir):
                    seconds[name].append(time.perf_counter() - before)

        return call

    DistillationTrainer._save_checkpoint = timed("saving", DistillationTrainer._save_checkpoint)  # type: ignore[method-assign]
    DistillationTrainer.train = timed("training", DistillationTrainer.train)  # type: ignore[method-assign]
    status = _main("report.baseline=false", "report.latency=false", "--restart", out=Path(out))
    if status:
        raise SystemExit(f"the run ended with status {status}")
    print(json.dumps({name: sum(times) for name, times in seconds.items()} | {"saves": len(seconds["saving"])}))


def check(rounds: int) -> list[float]:
    """Return the seconds of `--check`, once for each round."""
    found = []
    for _ in range(rounds):
        before = time.time()
        command = [sys.executable, "-m", "hf_distill", RECIPE, "--check"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        found.append(time.time() - before)
    return found


def start(rounds: int, place: Path) -> list[float]:
    """Return the seconds from the command to the student's first step, with teacher and targets stored."""
    return [_run("start", str(place), str(time.time()))["seconds"] for _ in range(rounds + 1)][1:]


def checkpoints(rounds: int, place: Path) -> list[dict[str, float]]:
    """Return seconds of training and of saving in it."""
    return [_run("checkpoints", str(place)) for _ in range(rounds)]


# ---- Two processes ---------------------------------------------------------------------------------------------------


def _work_steps(count: str, batch: str) -> None:
    """Print the seconds of steps of the quickstart's size, in this process or in several that are connected."""
    import torch

    torch.set_num_threads(1)
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import BertConfig, BertForSequenceClassification

    from hf_distill import DistillationArguments, DistillationTrainer

    def model(layers: int) -> BertForSequenceClassification:
        config = BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
        return BertForSequenceClassification(config)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0] * len(rows))}

    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(5, 30_000, (32,)).tolist()} for _ in range(512)]
    args = DistillationArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=int(batch),
        max_steps=3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = DistillationTrainer(
        model(3), args, teacher=model(6), train_dataset=Dataset.from_list(rows), data_collator=collate
    )
    trainer.train()
    args.max_steps = int(count)
    before = time.perf_counter()
    trainer.train()
    print(json.dumps({"seconds": (time.perf_counter() - before) / int(count)}), flush=True)
    os._exit(0)  # gloo's threads now and then abort the interpreter's end


def steps(count: int, batch: int, *, connected: bool, processes: int = PROCESSES) -> float:
    """Return the seconds of a step, the mean over processes that train at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = {"OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(processes):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(processes)}
        environment = one | (world | address if connected else {})
        started.append(_run("steps", str(count), str(batch), environment=environment, wait=False))
    return statistics.mean(_figures(process)["seconds"] for process in started)


def processes(rounds: int, count: int, batch: int) -> dict[str, list[float]]:
    """Return seconds of a step: one process with the whole batch, two connected ones, two that are not."""
    found: dict[str, list[float]] = {ONE: [], APART: [], DDP: []}
    for _ in range(rounds):
        found[ONE].append(steps(count, batch * PROCESSES, connected=False, processes=1))
        found[APART].append(steps(count, batch, connected=False))
        found[DDP].append(steps(count, batch, connected=True))
    return found


# ---- The table -------------------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "check" in found:
        yield "`--check` of the quickstart", _spread(found["check"])
    if "start" in found:
        yield "from the command to the student's first step, teacher and targets stored", _spread(found["start"])
    if runs := found.get("checkpoints"):
        yield "training of the quickstart's student", _spread([one["training"] for one in runs])
        yield f"its {runs[0]['saves']} checkpoints, all together", _spread([one["saving"] for one in runs])
        share = statistics.median(one["saving"] / one["training"] for one in runs)
        yield "checkpoints' share of the training", f"{100 * share:.1f} %"
    if times := found.get("processes"):
        for name, values in times.items():
            yield f"a step: {name}", _spread(values)
        apart, ddp = (statistics.median(times[name]) for name in (APART, DDP))
        yield f"{DDP} against {APART}", f"{ddp / apart:.2f} times"


def document(found: dict[str, Any]) -> str:
    """Return what was found as a page."""
    lines = ["# whole_run", "", "By the clock, in seconds: median (least to most).", ""]
    lines += ["| what | seconds |", "|---|---:|", *(f"| {what} | {figure} |" for what, figure in _rows(found))]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in found["machine"].items())]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="check, start, checkpoints, processes; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32, help="rows of a process")
    parser.add_argument("--into", type=Path, default=RESULT)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        name, *given = options.worker
        {"start": _work_start, "checkpoints": _work_checkpoints, "steps": _work_steps}[name](*given)
        return
    wanted = options.what or ["check", "start", "checkpoints", "processes"]
    found: dict[str, Any] = {"machine": machine()}
    place = Path(tempfile.mkdtemp())
    try:
        if "check" in wanted:
            found["check"] = check(options.rounds)
        if "start" in wanted:
            found["start"] = start(options.rounds, place / "start")
        if "checkpoints" in wanted:
            found["checkpoints"] = checkpoints(options.rounds, place / "checkpoints")
        if "processes" in wanted:
            found["processes"] = processes(options.rounds, options.steps, options.batch)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    options.into.write_text(document(found), encoding="utf-8")
    print(document(found))


if __name__ == "__main__":
    main()
