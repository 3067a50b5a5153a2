"""Checks what a recipe says about the best model: does its metric exist, and will the model have been saved?

Transformers checks the first only after the first evaluation, and its message about the second names no recipe key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.metrics.table import AGREEMENT, METRICS
from hf_distill.mistakes import join
from hf_distill.objectives import Labels
from hf_distill.objectives.base import unique_names
from hf_distill.run.training_defaults import fine_tuning, training_defaults
from hf_distill.tasks import TASKS
from hf_distill.tasks.evaluator import LABEL_LOSS, PERPLEXITY

if TYPE_CHECKING:
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared

METRIC = "metric_for_best_model"
# Schedulers that use it.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# Figures that Transformers adds to every evaluation.
_ALWAYS = ("runtime", "samples_per_second", "steps_per_second")


@dataclass(frozen=True)
class _Training:
    """One training of a run.

    Attributes:
        path: Key path of its own training arguments in the recipe.
        own: Its own training arguments.
        shared: The recipe's `training`.
        arguments: All its training arguments, including defaults.
        objectives: Its objectives.
        compares: Whether it has a teacher.
        whose: How messages call the model that is trained.
        way_out: A sentence that says how to give this training another metric than the others.
        elsewhere: Arguments that another key of the recipe sets -> path of that key.
        holds_out: Whether it is evaluated on held-out rows with labels instead of the eval split.
    """

    path: str
    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    arguments: Mapping[str, Any]
    objectives: Sequence[Objective]
    compares: bool = True
    whose: str = "the student"
    way_out: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    holds_out: bool = False

    def word(self, key: str, default: Any = None) -> Any:
        """Return an argument; the value of an enumeration as text."""
        value = self.arguments.get(key, default)
        return getattr(value, "value", value)

    def at(self, *keys: str) -> str:
        """Return the key path of the first of these keys that the recipe sets: for this training, or for all."""
        for key in keys:
            if key in self.elsewhere:
                return self.elsewhere[key]
            if key in self.own:
                return f"{self.path}.{key}"
        return f"training.{next((key for key in keys if key in self.shared), keys[0])}"


def check_saving(recipe: Recipe) -> None:
    """Refuse a metric for the best model that no evaluation has, or a best model that will not have been saved.

    Only mistakes that the recipe alone shows are found; `check_best_metric` needs the data.

    Raises:
        UserError: There are mistakes; one line for each.
    """
    mistakes: dict[str, str] = {}
    for training in _trainings(recipe):
        found = [*_not_saved(training)]
        if type(recipe.task) in TASKS.values():  # a task from outside may have metrics that are not known here
            figures = _figures(training)
            metrics = [name for name in recipe.evaluation.metrics or METRICS if name != PERPLEXITY]
            listed = [*figures, *(metrics if recipe.evaluation.metrics else ["the task's metrics"])]
            found += _unknown_metric(training, [*figures, *metrics], listed)
        for path, text in found:
            mistakes.setdefault(path, text)
    _refuse(recipe, mistakes)


def check_best_metric(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse a metric for the best model that the evaluations of a training do not have.

    Args:
        recipe: The recipe.
        prepared: Its data.

    Raises:
        UserError: There are mistakes; one line for each.
    """
    mistakes: dict[str, str] = {}
    evaluator = prepared.evaluator
    for training in _trainings(recipe):
        held = training.holds_out
        figures = _figures(training, labelled=held or bool(evaluator.names), classes=prepared.layout.has_classes)
        metrics = (evaluator.for_other_rows() if held else evaluator).in_training
        for path, text in _unknown_metric(training, [*figures, *metrics]):
            mistakes.setdefault(path, text)
    _refuse(recipe, mistakes)


def _refuse(recipe: Recipe, mistakes: Mapping[str, str]) -> None:
    if mistakes:
        raise UserError(*(line for path, text in mistakes.items() for line in recipe.mistake(path, text).mistakes))


def _trainings(recipe: Recipe) -> Iterator[_Training]:
    """Yield the trainings of a run: student and baseline by stage, then the teachers that are fine-tuned."""
    shared = {**training_defaults(recipe), **recipe.training}
    alone: tuple[Objective, ...] = (Labels(),)
    for index, stage in enumerate(recipe.plan):
        path, arguments = join(recipe.stage_path(index), "training"), {**shared, **stage.training}
        yield _Training(path, stage.training, recipe.training, arguments, stage.objectives)
        if recipe.report.baseline:
            whose = "the baseline, trained on labels alone,"
            yield _Training(path, stage.training, recipe.training, arguments, alone, compares=False, whose=whose)
    for path, how in recipe.teacher.fine_tuning.items():
        whose = "the teacher, fine-tuned on labels alone,"
        place, own = f"teacher.{path}", how.training
        way_out = "" if METRIC in own else f" The teacher can have its own: {place}.{METRIC}."
        elsewhere = {}
        if how.early_stopping is not None:
            way_out, elsewhere = "", {METRIC: f"{place.removesuffix('training')}early_stopping.metric"}
        yield _Training(
            place,
            own,
            recipe.training,
            fine_tuning(recipe, shared, how),
            tuple(how.objectives) or alone,
            compares=False,
            whose=whose,
            way_out=way_out,
            elsewhere=elsewhere,
            holds_out=how.early_stopping is not None,
        )


def _figures(training: _Training, *, labelled: bool = True, classes: bool = True) -> list[str]:
    """Return the names of the figures of an evaluation besides metrics, as `EvalSums.figures` names them.

    Args:
        training: The training.
        labelled: Whether the eval split has labels.
        classes: Whether models predict classes, on which they can agree.
    """
    named = zip(unique_names(training.objectives), training.objectives, strict=True)
    counted = [f"objective/{name}" for name, objective in named if labelled or objective.unit != "label"]
    return [*(["loss"] if counted else []), *counted, *([AGREEMENT] if classes and training.compares else [])]


def _unknown_metric(training: _Training, names: Sequence[str], listed: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield key path and message if the metric for the best model is not one of `names`.

    Args:
        training: The training.
        names: Names of all figures of an evaluation.
        listed: Names to list in the message, if not all of them.
    """
    used = training.word("load_best_model_at_end") or training.word("lr_scheduler_type") in BY_METRIC
    metric = training.word(METRIC) or ("loss" if used else None)
    if metric is None or training.word("eval_strategy") == "no":
        return
    name = metric.removeprefix("eval_")
    if name in (*names, *_ALWAYS):
        return
    # First by the beginning of a name: by similarity, `acc` would be closer to `mcc` than to `accuracy`.
    close = [one for one in names if one.startswith(name)] or get_close_matches(name, names, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    if name == PERPLEXITY and LABEL_LOSS in names:
        hint = f"It is lowest when its logarithm is lowest: use {LABEL_LOSS}. "
    yield (
        training.at(METRIC, "load_best_model_at_end", "lr_scheduler_type"),
        f"evaluations of {training.whose} have no '{name}'. {hint}They have: {', '.join(listed or names)}."
        f"{training.way_out}",
    )


def _not_saved(training: _Training) -> Iterator[tuple[str, str]]:
    """Yield key path and message if the best model might not be among the saved ones, as Transformers decides it."""
    evaluated, saved = training.word("eval_strategy"), training.word("save_strategy")
    best = training.word("load_best_model_at_end")
    if saved == "best" and not best and training.word(METRIC) is None:
        yield training.at("save_strategy"), f"best, but no metric says which model is best: add {METRIC}, such as loss."
    if not best or saved == "best":
        return
    if evaluated != saved:
        yield (
            training.at("save_strategy", "eval_strategy"),
            "load_best_model_at_end can only load a model that was saved when it was evaluated, but save_strategy is "
            f"{saved} and eval_strategy is {evaluated}. Make them the same, or set save_strategy: best.",
        )
    elif evaluated == "steps":
        every = training.word("eval_steps") or training.word("logging_steps"), training.word("save_steps", 500)
        if not _is_multiple(*every):
            yield (
                training.at("save_steps", "eval_steps"),
                "load_best_model_at_end can only load a model that was saved when it was evaluated, but the model is "
                f"evaluated every {_steps(every[0])} and saved every {_steps(every[1])}. Make save_steps a multiple of "
                "eval_steps, both in steps or both as shares.",
            )


def _is_multiple(evaluated: float, saved: float) -> bool:
    """Return whether a model is evaluated whenever it is saved; shares of a training are compared to a millionth."""
    if (evaluated < 1) != (saved < 1):
        return False
    whole = 1 if evaluated >= 1 else 1_000_000
    return not evaluated or (saved * whole) % (evaluated * whole) == 0


def _steps(every: float) -> str:
    return f"{every:g} of the training" if every < 1 else f"{every:,g} steps"
