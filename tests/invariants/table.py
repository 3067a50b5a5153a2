"""Prints the tables of docs/invariance.md: `PYTHONPATH=tests python -m invariants.table`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import datasets
from invariants.cases import (
    KINDS,
    Collator,
    Record,
    arguments,
    largest_difference,
    make_models,
    make_rows,
    make_trainer,
    split,
    train,
)
from invariants.processes import as_two_processes
from transformers import PrinterCallback, Trainer

STOCK = ("classification", "token-classification", "masked-lm", "causal-lm", "causal-lm-gpt2", "sequence-to-sequence")


def ours(directory: Path) -> None:
    together = as_two_processes("splits", directory)
    print("| model | split | loss | gradient norm | largest difference of a gradient entry |\n|---|---|---|---|---|")
    for kind in KINDS:
        runs = {f"{size} x {8 // size}": one_epoch(kind, directory, size) for size in (8, 4, 2, 1)}
        runs["2 processes x 4"] = together[kind, "random"][0]
        whole = runs["8 x 1"]
        for name, record in runs.items():
            difference = f"{largest_difference(record, whole):.0e}" if record is not whole else ""
            norm = record.logs[0]["grad_norm"]
            print(
                f"| {kind if record is whole else ''} | {name} | {record.losses[0]:.12f} | {norm:.12f} | {difference} |"
            )


def one_epoch(kind: str, directory: Path, size: int) -> Record:
    return train(make_trainer(kind, directory, num_train_epochs=1, **split(size)))


def stock(directory: Path) -> None:
    print("| model | 8 x 1 | 4 x 2 | 2 x 4 |\n|---|---|---|---|")
    for kind in STOCK:
        norms = " | ".join(f"{stock_norm(kind, directory, size):.4f}" for size in (8, 4, 2))
        print(f"| {kind} | {norms} |")


def stock_norm(kind: str, directory: Path, size: int) -> float:
    trainer = Trainer(
        make_models(kind)[0],
        arguments(directory, max_steps=1, **split(size)),
        train_dataset=datasets.Dataset.from_list(make_rows(kind)),
        data_collator=Collator(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log: dict[str, Any] = trainer.state.log_history[0]
    return float(log["grad_norm"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        ours(Path(scratch))
        print()
        stock(Path(scratch))
