"""Stop the fine-tuning of a teacher once it no longer gets better, and take its best weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hf_distill.component import component

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

# Training arguments that an entry with early stopping does not set itself.
OWNED = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")


@component
class EarlyStopping:
    """Part of the labelled rows is held out; the training ends once their metric no longer improves.

    They are not the rows of the report, whose scores would otherwise look better than they are. The weights of the best
    evaluation are taken, the first of equal ones.

    Attributes:
        patience: Number of evaluations in a row without an improvement after which the training ends.
        metric: Metric or figure of an evaluation. Default: the task's first metric, or `loss` if that needs the
            eval split itself (answers to questions, generated texts).
        min_delta: An improvement by this or less is none.
        share: Share of the labelled rows that are held out, or their number. Rows with the same input stay together.
    """

    patience: Annotated[int, Field(ge=1)] = 2
    metric: str | None = None
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    share: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] = 0.1

    def arguments(
        self, shared: Mapping[str, Any], own: Mapping[str, Any], metrics: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return the training arguments that it sets.

        Args:
            shared: The training arguments of the recipe.
            own: Those of the teacher.
            metrics: Metrics that its evaluations have, the headline first; empty if not known.
        """
        metric = self.metric or next(iter(metrics), "loss")
        # Transformers or `training_args` know whether more is better; the recipe's own value is about another metric.
        arguments = {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": None}
        if shared.get("eval_strategy") == "no" and "eval_strategy" not in own:
            arguments |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
        return arguments

    def facts(self, history: Sequence[Mapping[str, Any]], args: TrainingArguments, held_out: int) -> dict[str, Any]:
        """Return what the report says about it: the best evaluation, and on how many held-out rows.

        Args:
            history: `log_history` of the training.
            args: Its training arguments.
            held_out: Number of held-out rows.
        """
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        found = [entry for entry in history if f"eval_{metric}" in entry]
        best = (max if args.greater_is_better else min)(found, key=lambda entry: entry[f"eval_{metric}"])
        steps = max(entry["step"] for entry in history)
        at = {"best step": best["step"], "last step": steps, "held-out rows": held_out}
        return {"early stopping": {metric: best[f"eval_{metric}"], **at}}

    def callback(self) -> TrainerCallback:
        """Return the callback that ends the training."""
        made: TrainerCallback = _resumable()(self.patience, self.min_delta)
        return made


def _resumable() -> Any:
    """Return Transformers' callback, which after a resume goes on counting where the checkpoint was."""
    import transformers

    library: Any = transformers.EarlyStoppingCallback  # it has no types

    class Stopping(library):  # type: ignore[misc]
        """Also counts the evaluations before a resume, as an uninterrupted training would have."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            super().on_train_begin(args, state, control, **others)
            name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
            best = None
            self.early_stopping_patience_counter = 0
            for value in (entry[name] for entry in state.log_history if name in entry):
                self.check_metric_value(args, SimpleNamespace(best_metric=best), control, value)
                better = best is None or (value > best if args.greater_is_better else value < best)
                best = value if better else best

    return Stopping
