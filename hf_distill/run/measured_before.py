"""Finds the report of a finished run that would be measured again with the same result: it takes minutes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_distill
from hf_distill import parallel
from hf_distill.data.example_columns import GROUP
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.files.durable import sha256
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.ownership import Ownership
from hf_distill.recipe.plugins import outside_code
from hf_distill.report.files import REPORT
from hf_distill.report.report import Report
from hf_distill.run.ancestry import ancestors

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.run.fit import Fitted
    from hf_distill.run.run import Run


def measured_before(run: Run, trained: Sequence[Fitted]) -> Report | None:
    """Return the report of this run as it was measured before; None if anything that it depends on may have changed.

    Only where all models were found finished, with their checksums, by the same data, models and settings. Beside that
    the whole recipe, the rows with their groups, the lineage of the teacher, the code and its libraries, and the
    machine have to be the same. Code from outside, exports of the recipe and the lm-evaluation-harness are not looked
    at: with them a report is always measured.

    Args:
        run: The run, which is the only one of its recipe.
        trained: Its students and baselines.
    """
    recipe = run.recipe
    if recipe.export.formats or recipe.evaluation.lm_eval or any(outside_code(recipe)):
        return None
    if not all(one.reused for one in trained):
        return None
    found = parallel.asked_once(lambda: _find(run, trained))
    if found is None:
        return None
    report, when = found
    run.narrator.say(
        f"finished on {when}, and nothing has changed since: this is that report (--restart trains again; delete "
        f"{REPORT} to measure again)"
    )
    return report


def remember(run: Run, trained: Sequence[Fitted]) -> None:
    """Write down what the report that was just saved depends on. Call it in one process only."""
    record = {"of": _of_run(run, trained), "on": time.strftime("%Y-%m-%d %H:%M")}
    run.directory.owned.take(report={**record, "sha256": sha256(run.directory.path / REPORT)})


def save_with_more(report: Report, directory: Path) -> None:
    """Save the report of a finished run to which something was added. Call it in one process only.

    A run that finds it still takes it over, if it would have done so before.
    """
    owned = Ownership(directory)
    record, file = owned.report, directory / REPORT
    measured = record.get("sha256") == sha256(file)
    report.save(directory)
    if measured:
        owned.take(report={**record, "sha256": sha256(file)})


def _find(run: Run, trained: Sequence[Fitted]) -> tuple[Report, str] | None:
    """Return the report that is there and when it was measured, if it is that of this run."""
    directory, record = run.directory.path, run.directory.owned.report
    try:
        same = record["sha256"] == sha256(directory / REPORT) and record["of"] == _of_run(run, trained)
        return (Report.load(directory), record["on"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_run(run: Run, trained: Sequence[Fitted]) -> str:
    """Return a fingerprint of what a report depends on."""
    import torch

    from hf_distill.report.latency import device_name
    from hf_distill.run.evaluation import environment

    views = [run.prepared, *filter(None, [run.prepared.for_teacher])]
    parts: list[Any] = [
        run.directory.recipe,
        # A run may have trained other models here, and have ended before its report.
        [one.key for one in trained],
        run.eval_rows,
        [dataset_fingerprint(one.eval) for one in views],
        _groups(run.prepared.train),  # no weight depends on them, unless an objective weighs them
        repr(ancestors(run.recipe.teacher)),
        environment(),
        _code(),
        [device_name(run.args.device), torch.get_num_threads(), parallel.processes()],
    ]
    return fingerprint(*parts)


def _groups(train: Dataset) -> str:
    return dataset_fingerprint(train.select_columns([name for name in train.column_names if name == GROUP]))


@cache
def _code() -> str:
    """Return a hash of the source of this package, which changes more often than its version where it is developed."""
    folder = Path(hf_distill.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.rglob("*") if one.suffix in (".py", ".jinja", ".css", ".js")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()
