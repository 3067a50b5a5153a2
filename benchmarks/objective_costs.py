"""What each objective costs: the step of a classifier with it alone, beside one with `kl` and one without a teacher.

`python -m benchmarks.objective_costs` writes results/objectives.json and results/objectives.md, from which the
reference of objectives has its figures. All steps are of one process with one thread, in seconds of the CPU, so that a
machine which does something else changes little. Objectives for other tasks are left out.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.classification import Settings, collate, data, model
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
SETTINGS = Settings(batch=8, examples=8 * 6, longest=64, student=(3, 256), teacher=(6, 256))
SKIPPED = 1  # first steps, which are slower


def seconds(name: str, settings: Settings) -> float:
    """Return the median time of a step with an objective alone, in seconds of the CPU."""
    from transformers import TrainerCallback

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import OBJECTIVES

    steps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append(-time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1] += time.process_time()

    objective = OBJECTIVES[name]()
    with tempfile.TemporaryDirectory() as directory:
        args = DistillationArguments(
            output_dir=directory,
            per_device_train_batch_size=settings.batch,
            num_train_epochs=1,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            padding_free=False,
            use_cpu=True,
        )
        trainer = DistillationTrainer(
            model(settings, settings.student, 1),
            args,
            teacher=model(settings, settings.teacher, 2) if objective.needs_teacher else None,
            objectives=[objective],
            train_dataset=data(settings),
            data_collator=collate(settings.longest),
        )
        trainer.add_callback(Clock())
        trainer.train()
    return statistics.median(steps[SKIPPED:] or steps)


def measured(settings: Settings) -> dict[str, float]:
    """Return objective -> time of a step, of those that fit a classifier."""
    from hf_distill import UserError
    from hf_distill.objectives import OBJECTIVES

    found = {}
    for name in OBJECTIVES:
        try:
            found[name] = seconds(name, settings)
            print(f"{name}: {found[name]:.3f} s", flush=True)
        except UserError:  # sentence vectors, another tokenizer, texts that the student writes
            continue
    return found


def document(found: Mapping[str, float], settings: Settings, ran_on: Mapping[str, str]) -> str:
    """Return the table in Markdown."""
    rows = [
        f"| `{name}` | {one:.3f} | {one / found['kl']:.2f} | {one / found['labels']:.2f} |"
        for name, one in found.items()
    ]
    sizes = (
        f"A step of {settings.batch} texts of {settings.longest} tokens; student and teacher are BERTs of "
        f"(layers, width) {settings.student} and {settings.teacher}."
    )
    head = ["| objective | CPU s | times `kl` | times `labels` |", "| --- | ---: | ---: | ---: |"]
    where = [f"- {name}: {value}" for name, value in ran_on.items()]
    return "\n".join(
        ["# objectives", "", sizes, "", *head, *rows, "", "Median of the steps, one thread.", "", *where, ""]
    )


def main() -> None:
    """Measure, and write both files."""
    import torch

    torch.set_num_threads(1)
    ran_on, found = machine(), measured(SETTINGS)
    content = {"settings": vars(SETTINGS), "seconds": found, "machine": ran_on}
    (RESULTS / "objectives.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "objectives.md").write_text(document(found, SETTINGS, ran_on), encoding="utf-8")


if __name__ == "__main__":
    main()
