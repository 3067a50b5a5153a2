"""What a recipe says about the best model of a training: can it be told, and will it have been saved?

Transformers asks the first when the first evaluation is over, and answers the second in words of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# Schedulers that look at it.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# Transformers' own, of every evaluation.
_ALWAYS = ("runtime", "samples_per_second", "steps_per_second")


@dataclass(frozen=True)
class _Training:
    """One training of a run.

    Attributes:
        path: Key path of the arguments in which it differs from the recipe's `training`.
        own: These.
        shared: The recipe's `training`.
        arguments: All of them, defaults included.
        objectives: What it compares.
        compares: Whether with a teacher.
        whose: Of what model.
        way_out: What can be done about arguments that it shares with others.
    """

    path: str
    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    arguments: Mapping[str, Any]
    objectives: Sequence[Objective]
    compares: bool = True
    whose: str = "the student"
    way_out: str = ""

    def word(self, key: str, default: Any = None) -> Any:
        """Return an argument, an enumeration's as its word."""
        value = self.arguments.get(key, default)
        return getattr(value, "value", value)

    def at(self, *keys: str) -> str:
        """Return the path of the first of these keys that the recipe gives: in this training, or for all."""
        for key in keys:
            if key in self.own:
                return f"{self.path}.{key}"
        return f"training.{next((key for key in keys if key in self.shared), keys[0])}"


def check_saving(recipe: Recipe) -> None:
    """Refuse a best model that cannot be told or will not have been saved, as far as the recipe alone tells.

    Raises:
        UserError: A line for each mistake.
    """
    mistakes: dict[str, str] = {}
    for training in _trainings(recipe):
        found = [*_not_saved(training)]
        if type(recipe.task) in TASKS.values():  # one from outside may have metrics that nobody here knows
            figures = _figures(training)
            metrics = [name for name in recipe.evaluation.metrics or METRICS if name != PERPLEXITY]
            listed = [*figures, *(metrics if recipe.evaluation.metrics else ["the task's metrics"])]
            found += _not_told(training, [*figures, *metrics], listed)
        for path, text in found:
            mistakes.setdefault(path, text)
    _refuse(recipe, mistakes)


def check_best_metric(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse a best model by a figure that the evaluations of a training do not have.

    Args:
        recipe: The recipe.
        prepared: Its data.

    Raises:
        UserError: A line for each mistake.
    """
    mistakes: dict[str, str] = {}
    evaluator = prepared.evaluator
    for training in _trainings(recipe):
        figures = _figures(training, labelled=bool(evaluator.names), classes=prepared.layout.has_classes)
        for path, text in _not_told(training, [*figures, *evaluator.in_training]):
            mistakes.setdefault(path, text)
    _refuse(recipe, mistakes)


def _refuse(recipe: Recipe, mistakes: Mapping[str, str]) -> None:
    if mistakes:
        raise UserError(*(line for path, text in mistakes.items() for line in recipe.mistake(path, text).mistakes))


def _trainings(recipe: Recipe) -> Iterator[_Training]:
    """Yield the trainings of a run, those of the student first."""
    shared = {**training_defaults(recipe), **recipe.training}
    alone: tuple[Objective, ...] = (Labels(),)
    for index, stage in enumerate(recipe.plan):
        path, arguments = join(recipe.stage_path(index), "training"), {**shared, **stage.training}
        yield _Training(path, stage.training, recipe.training, arguments, stage.objectives)
        if recipe.report.baseline:
            whose = "the baseline, trained on labels alone,"
            yield _Training(path, stage.training, recipe.training, arguments, alone, compares=False, whose=whose)
    for path, own in recipe.teacher.fine_tuning.items():
        whose = "the teacher, fine-tuned on labels alone,"
        way_out = "" if METRIC in own else f" The teacher can have its own: teacher.{path}.{METRIC}."
        arguments = fine_tuning(shared, own)
        yield _Training(
            f"teacher.{path}",
            own,
            recipe.training,
            arguments,
            alone,
            compares=False,
            whose=whose,
            way_out=way_out,
        )


def _figures(training: _Training, *, labelled: bool = True, classes: bool = True) -> list[str]:
    """Return what an evaluation has besides metrics, as `EvalSums.figures` names it.

    Args:
        training: Whose.
        labelled: Whether the eval split has labels.
        classes: Whether there is a likeliest class, on which two models can agree.
    """
    named = zip(unique_names(training.objectives), training.objectives, strict=True)
    counted = [f"objective/{name}" for name, objective in named if labelled or objective.unit != "label"]
    return [*(["loss"] if counted else []), *counted, *([AGREEMENT] if classes and training.compares else [])]


def _not_told(training: _Training, names: Sequence[str], listed: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield path and message where the best model is to be told by something that is none of `names`."""
    used = training.word("load_best_model_at_end") or training.word("lr_scheduler_type") in _BY_METRIC
    metric = training.word(METRIC) or ("loss" if used else None)
    if metric is None or training.word("eval_strategy") == "no":
        return
    name = metric.removeprefix("eval_")
    if name in (*names, *_ALWAYS):
        return
    # `acc` is more like `mcc` than like the word it begins.
    close = [one for one in names if one.startswith(name)] or get_close_matches(name, names, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    if name == PERPLEXITY and LABEL_LOSS in names:
        hint = f"It is lowest where its logarithm is: {LABEL_LOSS}. "
    yield (
        training.at(METRIC, "load_best_model_at_end", "lr_scheduler_type"),
        f"evaluations of {training.whose} have no '{name}'. {hint}They have: {', '.join(listed or names)}."
        f"{training.way_out}",
    )


def _not_saved(training: _Training) -> Iterator[tuple[str, str]]:
    """Yield path and message where the best model would not be among the saved ones, as Transformers has it."""
    judged, saved = training.word("eval_strategy"), training.word("save_strategy")
    best = training.word("load_best_model_at_end")
    if saved == "best" and not best and training.word(METRIC) is None:
        yield training.at("save_strategy"), f"best, but nothing says of what: add {METRIC}, such as loss."
    if not best or saved == "best":
        return
    if judged != saved:
        yield (
            training.at("save_strategy", "eval_strategy"),
            "load_best_model_at_end can only load what was saved when it was judged, but save_strategy is "
            f"{saved} and eval_strategy is {judged}. Make them the same, or set save_strategy: best.",
        )
    elif judged == "steps":
        every = training.word("eval_steps") or training.word("logging_steps"), training.word("save_steps", 500)
        if not _is_multiple(*every):
            yield (
                training.at("save_steps", "eval_steps"),
                "load_best_model_at_end can only load what was saved when it was judged, but the model is judged "
                f"every {_steps(every[0])} and saved every {_steps(every[1])}. Make save_steps a multiple of "
                "eval_steps, both in steps or both as shares.",
            )


def _is_multiple(judged: float, saved: float) -> bool:
    """Whether a model is judged whenever it is saved; of shares of a training, to a millionth."""
    if (judged < 1) != (saved < 1):
        return False
    whole = 1 if judged >= 1 else 1_000_000
    return not judged or (saved * whole) % (judged * whole) == 0


def _steps(every: float) -> str:
    return f"{every:g} of the training" if every < 1 else f"{every:,g} steps"
