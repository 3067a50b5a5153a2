"""Prints the parity table of docs/many_machines.md: `make parity`.

For each kind of task and teacher it trains the same steps in one process and under each engine, with the same global
batch, and prints the largest difference of what they found.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import engines
import torch
from invariants import cached as live_and_cached
from invariants.cases import (
    SENTENCES,
    STEP,
    VALUES,
    Collator,
    NotingTrainer,
    arguments,
    make_model,
    make_models,
    make_rows,
    objectives,
    split,
)
from safetensors.torch import load_file
from torch import Tensor

from hf_distill import parallel
from hf_distill.objectives import Hidden, Objective
from hf_distill.rows.inferred import infer_layout
from hf_distill.teachers.ensemble.averaging import Ensemble

KINDS = ("classification", "token-classification", "causal-lm", "sequence-to-sequence", "sentence-similarity")
TEACHERS = ("live", "cached", "ensemble")
# Columns: one process is what the others are compared with. A new engine is one line; ZeRO computes in float32 only.
PRECISION: dict[str, torch.dtype] = {"ddp": torch.float64, "fsdp2": torch.float64}
FIGURES = ("loss", "gradient", "projection", "exported", "resumed", "evaluation")
LIMITS = {torch.float64: 1e-9, torch.float32: 2e-4}
STEPS = 3

Found = dict[str, dict[str, Tensor]]


def terms(kind: str, teacher: str) -> list[Objective]:
    """Return the objectives, with a projection that is trained where the teacher has states to compare."""
    if kind == "sentence-similarity":  # whose vectors are compared, but those of a mean
        return [*(VALUES if teacher == "ensemble" else SENTENCES).values()]
    part: dict[str, Any] = {"part": "decoder"} if kind == "sequence-to-sequence" else {}
    learned = [Hidden(weight=0.5, projection="always", layers=((1, 2),), **part)]
    return [*objectives(kind), *(learned if teacher == "live" else [])]


def make(kind: str, teacher: str, directory: Path, dtype: torch.dtype, processes: int) -> NotingTrainer:
    """Return a trainer of a one-layer student that saves a checkpoint before its last step."""
    own = terms(kind, teacher)
    settings: dict[str, Any] = {
        "max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS - 1, "per_device_eval_batch_size": 2,
        # With a small epsilon a gradient of zero, but for its rounding, would be a step of full size.
        "optim": "adamw_torch", "adam_epsilon": 1e-3, "learning_rate": 0.01, **split(STEP // processes, processes),
    }  # fmt: skip
    args = arguments(directory, **settings)
    if teacher == "cached":
        student, model, data = live_and_cached.parts(kind, dtype=dtype)
        own = list(live_and_cached.terms_of(kind))
        data, source = live_and_cached.capture(model, data, directory / "cache").apply(data)
        train, evaluated, collate, layout = data.train, data.eval, data.collator, data.layout
    else:
        student, source = make_models(kind, dtype=dtype)
        layout = infer_layout(student, source)
        if teacher == "ensemble":
            source = Ensemble([source, make_model(kind, 1, seed=3, dtype=dtype)], [3, 1])
        train, evaluated = (datasets.Dataset.from_list(make_rows(kind, count)) for count in (24, 13))
        collate = Collator()
    return NotingTrainer(
        student, args, teacher=source, objectives=own, layout=layout, train_dataset=train, eval_dataset=evaluated,
        data_collator=collate,
    )  # fmt: skip


def measure(kind: str, teacher: str, directory: Path, dtype: torch.dtype, processes: int) -> Found:
    """Return what a training gives, by figure: losses, gradients, weights that are saved, and an evaluation."""
    print(kind, teacher, flush=True)
    trainer = make(kind, teacher, directory, dtype, processes)
    trainer.train()
    metrics = {name: value for name, value in trainer.evaluate().items() if not name.endswith(("time", "second"))}
    trainer.save_model(str(directory / "exported"))
    again = make(kind, teacher, directory, dtype, processes)
    again.train(resume_from_checkpoint=str(directory / f"checkpoint-{STEPS - 1}"))
    again.save_model(str(directory / "resumed"))
    parallel.wait()  # the first process writes
    gradients = {
        f"{step} {name}": one for step, found in enumerate(trainer.record.gradients) for name, one in found.items()
    }
    return {
        "loss": {"loss": torch.tensor(trainer.record.losses, dtype=torch.float64)},
        "gradient": gradients,
        "projection": {name: one for name, one in gradients.items() if "distillation." in name},
        "exported": load_file(directory / "exported" / "model.safetensors"),
        "resumed": load_file(directory / "resumed" / "model.safetensors"),
        "evaluation": {name: torch.tensor(float(value), dtype=torch.float64) for name, value in metrics.items()},
    }


def rows() -> Iterator[tuple[str, str]]:
    """Yield the rows of the table."""
    yield from ((kind, teacher) for kind in KINDS for teacher in TEACHERS)


def measured(engine: str, directory: Path, dtype: torch.dtype) -> dict[tuple[str, str], Found]:
    """Return what each row gives under an engine; all rows in the same processes."""
    count = engines.ENGINES[engine].processes

    def work() -> dict[tuple[str, str], Found]:
        return {row: measure(*row, directory / "-".join(row), dtype, count) for row in rows()}

    found: dict[tuple[str, str], Found] = engines.run(engine, work, directory / "results", logged=True)[0]
    return found


def difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any number, relative to the largest of its tensor; inf for other names."""
    if found.keys() != wanted.keys():
        return float("inf")
    worst = 0.0
    for name, value in wanted.items():
        scale = max(float(value.abs().max()), 1e-3)
        worst = max(worst, float((found[name].double() - value.double()).abs().max()) / scale)
    return worst


def compare(directory: Path, say: Callable[[str], None] = print) -> list[str]:
    """Print the table; return the entries that are larger than they may be."""
    alone = {one: measured("one", directory / f"one-{one}", one) for one in dict.fromkeys(PRECISION.values())}
    say("| task | teacher | engine | " + " | ".join(FIGURES) + " |\n|" + "---|" * (3 + len(FIGURES)))
    wrong = []
    every = {name: measured(name, directory / name, dtype) for name, dtype in PRECISION.items()}
    for row in rows():
        for name, dtype in PRECISION.items():
            found, wanted = every[name][row], alone[dtype][row]
            values = {one: difference(found[one], wanted[one]) for one in FIGURES}
            shown = (f"{value:.0e}" if wanted[one] else "" for one, value in values.items())
            say(f"| {row[0]} | {row[1]} | {name} | {' | '.join(shown)} |")
            wrong += [f"{name} {row} {one}: {value}" for one, value in values.items() if not value < LIMITS[dtype]]
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="engines-") as scratch:
        sys.exit("\n".join(compare(Path(scratch))))
