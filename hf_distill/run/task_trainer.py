"""`TaskTrainer`: a `DistillationTrainer` on the data of a task, with the task's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.patching import replaced
from hf_distill.tasks.evaluator import Predictions
from hf_distill.trainer import DistillationTrainer
from hf_distill.training.sharded import divides

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel
    from transformers.trainer_utils import EvalLoopOutput

    from hf_distill.tasks import Prepared
    from hf_distill.training_args import DistillationArguments


class TaskTrainer(DistillationTrainer):
    """Trains and evaluates a model on the data of a task.

    Evaluations have the metrics that the task's evaluator computes from logits. Metrics of generated texts are computed
    during training only if one of them chooses the best model, since generating takes longer than all the rest.

    Args:
        prepared: The data.
        model: The model to train or evaluate.
        args: Training arguments.
        **others: Other arguments of `DistillationTrainer`.

    Raises:
        UserError: A metric of generated texts chooses the best model, and FSDP shards it, so that it cannot generate.
    """

    def __init__(self, prepared: Prepared, model: PreTrainedModel, args: DistillationArguments, **others: Any) -> None:
        self.evaluator = evaluator = prepared.evaluator
        args.prediction_loss_only = not evaluator.needs_logits
        super().__init__(
            model,
            args,
            layout=prepared.layout,
            eval_dataset=prepared.eval,
            data_collator=prepared.collator,
            compute_metrics=self._compute if evaluator.names and evaluator.needs_logits else None,
            **others,
        )
        self.generates = evaluator.generates((args.metric_for_best_model or "").removeprefix("eval_"))
        if self.generates and divides(self):
            raise UserError(
                f"{args.metric_for_best_model} is a metric of generated texts, and a model whose weights are divided "
                "cannot generate during training. Choose the best model by loss.",
                key="training.metric_for_best_model",
            )
        if self.generates:
            self.decisions.append(
                f"{args.metric_for_best_model} chooses the best model: each evaluation generates "
                f"{len(prepared.eval):,} texts"
            )

    def _compute(self, found: EvalPrediction) -> dict[str, float]:
        return self.evaluator.evaluate(predictions_of(found))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and add the metrics of generated texts if one of them chooses the best model."""
        output = super().evaluation_loop(*args, **kwargs)
        if not (self.generates and self.is_in_train):
            return output
        # In the model's own precision, as for the report: without accelerate's autocast around the forward pass.
        own = vars(self.model).get("_original_forward", self.model.forward)
        with replaced(self.model, "forward", own):
            texts = self.evaluator.generate(self.model, self.args.per_device_eval_batch_size)
        found = self.evaluator.evaluate(Predictions(texts=texts))
        metrics = {f"eval_{name}": value for name, value in found.items() if self.evaluator.generates(name)}
        return output._replace(metrics={**(output.metrics or {}), **metrics})


def predictions_of(found: Any) -> Predictions:
    """Return what `Trainer` predicted on an eval split: one array of logits and one of labels."""
    return Predictions(found.predictions, found.label_ids)
