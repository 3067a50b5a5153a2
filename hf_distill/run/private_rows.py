"""Checks for a teacher whose labelled rows are private: nothing else in the run may learn from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.metrics.table import AGREEMENT
from hf_distill.mistakes import join
from hf_distill.run.best_model import BY_METRIC, METRIC

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

logger = logging.getLogger(__name__)


def check_private(recipe: Recipe) -> None:
    """Refuse what would learn from the private rows of the teacher, other than through its targets; warn of a push.

    Raises:
        UserError: A baseline, a student made from the teacher, an objective on labels, or a model chosen by a figure
            for which the private models were asked.
    """
    if recipe.hub.push and parallel.is_first():
        logger.warning(
            "hub.push: publishes the report and the model card too, and the scores of the private teachers in them are "
            "computed without noise: epsilon does not cover them. Push the student's files alone after the run if that "
            "is too much."
        )
    if recipe.report.baseline:
        raise recipe.mistake(
            "report.baseline", "a baseline learns from the labels, which are private to the teacher. Set it to false."
        )
    if recipe.student.copies_teacher:
        raise recipe.mistake(
            "student",
            "its weights would be copied from a teacher that was trained on private rows. Let it start from others: "
            f"{recipe.student.apart_from_teacher(str(next(recipe.teacher.members())[1].source))}",
        )
    for index, stage in enumerate(recipe.plan):
        path = recipe.stage_path(index)
        for number, objective in enumerate(stage.objectives):
            if objective.needs().labels:
                raise recipe.mistake(
                    join(join(path, "objectives"), number),
                    "learns from labels, which are private to the teacher. Remove it: the student learns from the "
                    "teacher's targets.",
                )
        _check_metric(recipe, {**recipe.training, **stage.training})


def _check_metric(recipe: Recipe, training: Mapping[str, Any]) -> None:
    chosen = training.get("load_best_model_at_end") or training.get("save_strategy") == "best"
    chosen = chosen or training.get("lr_scheduler_type") in BY_METRIC
    metric = str(training.get(METRIC) or "loss").removeprefix("eval_")
    if chosen and (metric in ("loss", AGREEMENT) or metric.startswith("objective/")):
        raise recipe.mistake(
            f"training.{METRIC}",
            f"'{metric}' compares the student with the private teachers on the eval split, without noise, so that the "
            "student would depend on the private rows beyond epsilon. Wanted a metric of the labels of the eval split, "
            "such as accuracy.",
        )
