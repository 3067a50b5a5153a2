"""`DistillationTrainer`: `transformers.Trainer` with a loss that compares a student with a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, has_length

from hf_distill.layouts import infer_layout
from hf_distill.objectives import Comparison, KLDivergence, Labels, Objective
from hf_distill.rows import UNITS, RowLayout
from hf_distill.sampler import EpochLengthGroupedSampler
from hf_distill.stopwatch import Stopwatch
from hf_distill.training_args import DistillationArguments

DEFAULT_OBJECTIVES: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5))


class DistillationTrainer(Trainer):
    """Trains a student to match a teacher.

    The loss of an optimiser step is `sum_k weight_k * S_k / N_k` over its objectives: `S_k` the sum of the
    objective, `N_k` the number of its unit, both over all micro-batches of the accumulation window and all
    processes. Gradients and logged losses are therefore the same for 8 x 1, 4 x 2 and 2 processes x 4.

    The teacher is an attribute of the trainer, not of the student: it stays in eval mode, out of the
    optimiser and out of every checkpoint.

    Logged besides what `Trainer` logs: `objective/<name>` (unweighted), `agreement` (share of rows where both
    models have the same top class) and, in training, `teacher_share` of the step time. Evaluation reports the same
    as `eval_...`, summed over examples, so that it does not depend on the batch size.

    Args:
        model: The student.
        args: `DistillationArguments`, or `TrainingArguments` whose values pass the same check.
        teacher: The model to learn from, its task head trained. None only where no objective needs it.
        objectives: Terms of the loss; by default half `kl` at temperature 2, half `labels`.
        layout: Which logits count; read from the student's class if left out.
        **trainer: Everything else as `transformers.Trainer`.

    Raises:
        ValueError: The models, objectives or arguments do not fit together.
    """

    # compute_loss divides by counts of the whole accumulation window: Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationArguments | None = None,
        *,
        teacher: PreTrainedModel | None = None,
        objectives: Sequence[Objective] | None = None,
        layout: RowLayout | None = None,
        **trainer: Any,
    ) -> None:
        args = args if args is not None else DistillationArguments(output_dir="trainer_output")
        self.objectives = tuple(DEFAULT_OBJECTIVES if objectives is None else objectives)
        if not self.objectives:
            raise ValueError("no objective: pass at least one, e.g. KLDivergence(temperature=2.0).")
        wanting = [objective.name for objective in self.objectives if objective.needs_teacher]
        if teacher is None and wanting:
            raise ValueError(f"the objectives {', '.join(wanting)} need a teacher; pass `teacher=`.")
        if teacher is not None and teacher is model:
            raise ValueError("teacher and student are the same object; the teacher would be trained too.")
        super().__init__(model=model, args=args, **trainer)
        self._refuse_unsupported()
        self.layout = layout or infer_layout(self.model, teacher, self.processing_class)
        self.teacher = self._place(teacher)
        self.term_names = _unique([objective.name for objective in self.objectives])
        # Set by whoever writes the card, so that a push keeps it.
        self.has_model_card = False
        self._forward_keys = {
            id(one): set(inspect.signature(one.forward).parameters) for one in (self._base_model(), self.teacher) if one
        }
        self._requests = {f"output_{name}": True for objective in self.objectives for name in objective.outputs}
        self._weights = torch.tensor([objective.weight for objective in self.objectives], device=self.args.device)
        self._units = torch.tensor([UNITS.index(objective.unit) for objective in self.objectives], device=self.args.device)
        self._totals = torch.zeros(len(self.objectives) + 1, device=self.args.device)
        self._windows = 0
        self._teacher_watch = Stopwatch(self.args.device)
        self._step_watch = Stopwatch(self.args.device)
        self._eval_sums: list[Tensor] = []

    # ---- Construction ----

    def _refuse_unsupported(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) is not supported. Start one process a GPU: "
                "`accelerate launch ...`, or hide the others with CUDA_VISIBLE_DEVICES."
            )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO-3 is not supported: it would shard the teacher. Use ZeRO-2 or FSDP.")
        if max(self.get_tp_size(), self.get_cp_size(), self.get_sp_size()) > 1:
            raise ValueError("tensor, context and sequence parallelism are not supported.")

    def _place(self, teacher: PreTrainedModel | None) -> PreTrainedModel | None:
        """Freeze the teacher and move it to the device.

        Not through `accelerator.prepare_model`: that would list it as a trained model, and `evaluation_loop` would
        then leave the student unprepared.
        """
        if teacher is None:
            return None
        teacher.eval().requires_grad_(False)
        if hasattr(teacher.config, "use_cache"):
            teacher.config.use_cache = False
        dispatched = getattr(teacher, "hf_device_map", None) or getattr(teacher, "is_quantized", False)
        return teacher if dispatched else teacher.to(self.args.device)

    def _base_model(self) -> nn.Module:
        get_base_model = getattr(self.model, "get_base_model", None)
        base: nn.Module = get_base_model() if get_base_model else self.model
        return base

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher takes (`token_type_ids` for a DistilBERT student of a BERT)."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            if self.teacher is not None:
                taken = inspect.signature(self.teacher.forward).parameters
                self._signature_columns += [name for name in taken if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        # The data set handed in here has lost its length column to `remove_unused_columns`.
        column = self.args.length_column_name
        if column in getattr(self.train_dataset, "column_names", []):
            lengths = list(self.train_dataset[column])
        else:
            lengths = [len(example["input_ids"]) for example in dataset]
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthGroupedSampler(step, lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        """Keep the order of the data set: predictions of two models are compared row by row."""
        if self.args.train_sampling_strategy == "group_by_length" and has_length(eval_dataset):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count every unit over the accumulation window and all processes: `(units,)` in the order of `UNITS`."""
        self._windows += 1
        return self._count(batch_samples, device)

    def _count(self, batches: list[Any], device: torch.device) -> Tensor:
        totals = torch.zeros(len(UNITS), device=device)
        for batch in batches:
            counts = self.layout.counts(batch)
            totals += torch.stack([counts[unit].sum() for unit in UNITS]).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        # Nothing to count means nothing to sum: 0 / 1, not NaN.
        return totals.clamp(min=1)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass, timed."""
        with self._step_watch.running():
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the optimiser step's loss.

        Args:
            model: The student, wrapped or not.
            inputs: A collated batch.
            return_outputs: Also return the student's output.
            num_items_in_batch: Counts of every unit in the whole step, as `_get_num_items_in_batch` gives them; this
                batch's own on all processes if left out.

        Returns:
            A scalar whose mean over processes, summed over micro-batches, is the loss of the step.
        """
        counts = num_items_in_batch
        if not isinstance(counts, Tensor):
            counts = self._count([inputs], self.args.device)
        comparison = self._compare(model, inputs)
        sums = [objective.per_example(comparison).sum() for objective in self.objectives]
        # DDP averages gradients over processes, and the counts are global: hence the factor.
        scale = self.accelerator.num_processes / counts
        terms = torch.stack(sums) * scale[self._units]
        if model.training:
            agreement = comparison.rows.agreement().sum() * scale[UNITS.index("row")]
            self._totals += torch.cat((terms.detach(), agreement.reshape(1))).to(self._totals)
        loss = (terms * self._weights).sum()
        return (loss, comparison.student) if return_outputs else loss

    def _compare(self, model: nn.Module, inputs: Mapping[str, Any]) -> Comparison:
        """Run both models on the same batch, the teacher once and without gradient."""
        teacher = None
        if self.teacher is not None:
            if self.teacher.training:  # somebody called .train() on it; dropout would make its targets noise
                self.teacher.eval()
            with torch.no_grad(), self.accelerator.autocast(), self._teacher_watch.running():
                teacher = self.teacher(**self._forward_inputs(self.teacher, inputs))
        student = model(**self._forward_inputs(self._base_model(), inputs))
        rows = self.layout.select(student["logits"], None if teacher is None else teacher["logits"], inputs)
        return Comparison(rows=rows, student=student, teacher=teacher, inputs=inputs)

    def _forward_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        # Without labels: the model would compute a loss of its own, and not always the right one.
        taken = self._forward_keys[id(model)]
        kept = {key: value for key, value in inputs.items() if key in taken and key != "labels"}
        return {**kept, **self._requests}

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives, the agreement and the teacher's share to the training logs."""
        if "loss" in logs and self._windows:
            totals = self.accelerator.reduce(self._totals / self._windows, reduction="mean").tolist()
            logs.update({f"objective/{name}": value for name, value in zip(self.term_names, totals, strict=False)})
            if self._reports_agreement:
                logs["agreement"] = totals[-1]
            seconds = self._step_watch.drain()
            if self.teacher is not None and seconds > 0:
                logs["teacher_share"] = self._teacher_watch.drain() / seconds
            self._totals.zero_()
            self._windows = 0
        super().log(logs, start_time)

    @property
    def _reports_agreement(self) -> bool:
        return self.teacher is not None and self.layout.has_classes

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Run both models on a batch; keep the sums of each example for `evaluation_loop`.

        Returns no loss: `Trainer` would average it over batches.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            comparison = self._compare(model, inputs)
            counts = self.layout.counts(inputs)
            columns = [objective.per_example(comparison) for objective in self.objectives]
            columns += [comparison.rows.agreement(), *(counts[unit] for unit in UNITS)]
            sums = torch.stack([column.to(columns[0]) for column in columns], -1)
        # Per example, because gathering drops the examples that were repeated to fill the last batch.
        self._eval_sums.append(self.gather_function(sums).cpu().double().sum(0))
        if prediction_loss_only:
            return None, None, None
        logits: Tensor = comparison.student["logits"].detach()
        return None, logits, inputs.get("labels")

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, with the loss taken over all examples rather than averaged over batches."""
        self._eval_sums = []
        self._teacher_watch.drain()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        self._teacher_watch.drain()
        if self._eval_sums:
            sums = torch.stack(self._eval_sums).sum(0)
            split = len(self.objectives)
            counts = sums[split + 1 :].clamp(min=1)
            terms = (sums[:split] / counts[self._units.cpu()]).tolist()
            loss = sum(weight * term for weight, term in zip(self._weights.tolist(), terms, strict=True))
            output.metrics[f"{metric_key_prefix}_loss"] = loss
            for name, term in zip(self.term_names, terms, strict=True):
                output.metrics[f"{metric_key_prefix}_objective/{name}"] = term
            if self._reports_agreement:
                agreement = (sums[split] / counts[UNITS.index("row")]).item()
                output.metrics[f"{metric_key_prefix}_agreement"] = agreement
        return output

    # ---- Saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as `Trainer` does; what is exported (not a checkpoint) holds no pickled arguments."""
        super()._save(output_dir, state_dict)
        directory = Path(output_dir or self.args.output_dir)
        if self.args.should_save and not directory.name.startswith(PREFIX_CHECKPOINT_DIR):
            (directory / "training_args.bin").unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Draft a card, unless the run has already written one."""
        if not self.has_model_card:
            tags = kwargs.pop("tags", None) or []
            kwargs["tags"] = [*([tags] if isinstance(tags, str) else tags), "distillation", "hf_distill"]
            super().create_model_card(*args, **kwargs)


def _unique(names: list[str]) -> list[str]:
    """Number repeated names: kl, kl_2."""
    return [
        name if (seen := names[:index].count(name)) == 0 else f"{name}_{seen + 1}" for index, name in enumerate(names)
    ]
