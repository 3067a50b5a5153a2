"""Makes the exports of a finished student, and puts them into its report."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.data.example_columns import inputs_of
from hf_distill.export import FinishedStudent
from hf_distill.report.export_text import loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from hf_distill.report.report import Report
    from hf_distill.run.run import Run

logger = logging.getLogger(__name__)


def with_exports(run: Run, report: Report, into: Path | None = None) -> Report:
    """Return the report with the exports of the finished student, which are written by the first process.

    Args:
        run: The run, with the student saved.
        report: Its report.
        into: Where each format gets its folder; None for beside the student.

    Raises:
        UserError: A format cannot be written, or gives wrong results.
    """
    from hf_distill.run.exporting.measuring import Job

    options, reading = run.recipe.export, run.prepared.reading
    student = FinishedStudent(
        run.directory.path,
        run.prepared.head,
        rows_of(run.calibration.train),
        trust_remote_code=run.recipe.trusts_code,
        reading=replace(reading, max_length=reading.max_length or run.pair.max_length),
    )
    run.narrator.say(f"exporting the student: {', '.join(options.formats)}")
    job = Job(
        student,
        into or run.directory.path,
        options,
        run.prepared,
        run.args.per_device_eval_batch_size,
        run.recipe.report.latency,
        run.narrator.say,
    )
    with run.recipe.locate("export"):
        made = replace(report, exports=parallel.asked_once(job.exports))
    if run.is_main:
        warn_of_losses(made)
    return made


def warn_of_losses(report: Report) -> None:
    """Warn of each format that loses more than a point of the headline metric, and say whether that may be chance."""
    for one in report.exports:
        if told := loss(report, one):
            logger.warning("%s See 'If int8 loses too much' in docs/export.md", told)


def rows_of(train: Dataset) -> Callable[[int], Sequence[Mapping[str, Sequence[int]]]]:
    """Return a function that returns train rows from the first to the last, as many as asked for.

    Of rows with several texts, it returns the first.
    """

    def rows(count: int) -> Sequence[Mapping[str, Sequence[int]]]:
        import numpy as np

        wanted = np.unique(np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(int))
        return [_first(inputs_of(train[int(row)])) for row in wanted]

    return rows


def _first(row: Mapping[str, Any]) -> dict[str, list[int]]:
    texts = row["input_ids"] and isinstance(row["input_ids"][0], list)
    return {
        name: list(values[0] if texts else values)
        for name, values in row.items()
        if name in ("input_ids", "attention_mask", "token_type_ids")
    }
