"""What experiment trackers (`training.report_to`) get of a run: a tracker's run for each training, and the results.

Transformers' own callbacks send what the trainings log. Every training has its own run in the tracker, `NAME student`,
`NAME teacher`, `NAME baseline`, with the same names of figures in each, so that their curves can be laid over each
other; the results of all models are in `NAME report`.
"""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from hf_distill.report.results import Results

logger = logging.getLogger(__name__)


def run_name(training: Mapping[str, Any], part: str) -> str:
    """Return the name of a training in a tracker.

    >>> run_name({"output_dir": "outputs/bert"}, "student stage 1")
    'bert student stage 1'
    >>> run_name({"output_dir": "outputs/bert", "run_name": "try 3"}, "report")
    'try 3 report'
    >>> run_name({"output_dir": "."}, "report") == f"{Path.cwd().name} report"
    True

    Args:
        training: The recipe's training arguments.
        part: Name of the training.
    """
    return f"{training.get('run_name') or Path(str(training['output_dir'])).absolute().name} {part}"


class EndWandbRun(TrainerCallback):
    """Callback that ends the run of Weights & Biases with its training; a run that the user has begun stays open.

    Transformers would log the next training into the same run, where its steps begin again.
    """

    def __init__(self) -> None:
        self._users = _wandb_run() is not None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End it."""
        if not self._users and _wandb_run() is not None:
            sys.modules["wandb"].finish()


def _wandb_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def results_of(report: Results) -> dict[str, float]:
    """Return what trackers get of a report, under names that do not change.

    `eval_MODEL/METRIC` for the models `teacher`, `student` and `baseline` (Transformers' callbacks write `eval/...` for
    most trackers), with `parameters` and `latency_ms`, and `eval_agreement`. What has no value is left out.
    """
    found: dict[str, float | None] = {"eval_agreement": report.agreement}
    for name, model in report.models.items():
        found |= {f"eval_{name}/{metric}": value for metric, value in model.metrics.items()}
        found[f"eval_{name}/parameters"] = model.parameters
        found[f"eval_{name}/latency_ms"] = model.latency.single.median_ms if model.latency else None
    return {name: float(value) for name, value in found.items() if value is not None and value == value}


def send_report(report: Results, args: TrainingArguments, model: PreTrainedModel, name: str) -> None:
    """Send the results of a run to the trackers in `report_to`. Call it in the first process.

    A tracker that fails costs a warning: after days of training, the report on disk is what counts.

    Args:
        report: The report.
        args: Arguments of the saved student's training.
        model: The saved student.
        name: Name of the run in the tracker.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    args = copy.copy(args)
    args.run_name = name
    state, control = TrainerState(), TrainerControl()
    end, callbacks_of = EndWandbRun(), cast("Any", get_reporting_integration_callbacks)  # it has no types
    for kind in callbacks_of(args.report_to):
        try:
            tracker = kind()
            tracker.on_train_begin(args, state, control, model=model)
            tracker.on_log(args, state, control, logs=results_of(report), model=model)
            tracker.on_train_end(args, state, control, model=model)
        except Exception as error:
            logger.warning("the results were not sent by %s: %s", kind.__name__, first_line(error))
    end.on_train_end(args, state, control)
