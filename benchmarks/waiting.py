"""How threads that wait should wait: `python -m benchmarks.waiting`, on a machine with nothing else to do.

The threads of a matrix product wait for the last of them. They spin or sleep, as environment variables of the OpenMP
library say. The same training steps are timed by the clock, alone and beside processes that never pause, with every
choice in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

CHOICES: dict[str, dict[str, str]] = {
    "as it is (300,000 turns)": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
RESULT = Path(__file__).parent / "results" / "waiting.md"


def steps(count: int, bf16: bool) -> float:
    """Return the seconds, by the clock, of distilling a classifier of the quickstart's size."""
    import torch
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import BertConfig, BertForSequenceClassification

    from hf_distill import DistillationArguments, DistillationTrainer

    def model(layers: int) -> BertForSequenceClassification:
        config = BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
        return BertForSequenceClassification(config)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padded = {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True)
            for name in ("input_ids", "attention_mask")
        }
        return {**padded, "labels": torch.tensor([row["labels"] for row in rows])}

    torch.manual_seed(0)
    texts = [torch.randint(5, 30_000, (12 + 5 * (number % 9),)).tolist() for number in range(32 * (count + 2))]
    rows = [{"input_ids": text, "attention_mask": [1] * len(text), "labels": len(text) % 2} for text in texts]
    args = DistillationArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        max_steps=2,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = DistillationTrainer(
        model(3), args, teacher=model(6), train_dataset=Dataset.from_list(rows), data_collator=collate
    )
    trainer.train()  # chooses kernels
    args.max_steps = count
    before = time.perf_counter()
    trainer.train()
    return time.perf_counter() - before


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep processes busy that compute and never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def once(choice: str, count: int, precision: str) -> float:
    """Time the steps in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.waiting", "--worker", precision, "--steps", str(count)]
    root = Path(__file__).parents[1]
    environment = {**kept, **CHOICES[choice], "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[tuple[str, int], dict[str, list[float]]]) -> Iterator[str]:
    """Yield the lines of the result."""
    yield from (
        "| precision, busy processes beside it | " + " | ".join(CHOICES) + " |",
        "|---|" + "---:|" * len(CHOICES),
    )
    for (precision, processes), times in found.items():
        cells = (f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in times.values())
        yield f"| {precision}, {processes} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every choice in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=int, nargs="+", default=[0, 3], help="busy processes beside it")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--into", type=Path, default=RESULT)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(steps(options.steps, options.worker == "bf16")))
        return
    before = machine()
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for processes in options.load:
        for precision in options.precision:
            times: dict[str, list[float]] = {choice: [] for choice in CHOICES}
            found[precision, processes] = times
            with load(processes):
                for _ in range(options.rounds):
                    for choice, seconds in times.items():
                        seconds.append(once(choice, options.steps, precision))
    lines = [
        "# waiting",
        "",
        f"Seconds by the clock of {options.steps} steps, median of {options.rounds} (least to most).",
        "",
        *table(found),
        "",
        *(f"- {name}: {value}" for name, value in before.items()),
    ]
    options.into.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
