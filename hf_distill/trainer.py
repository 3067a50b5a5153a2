"""`DistillationTrainer`: `transformers.Trainer` with a loss that compares a student with a teacher."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, has_length

from hf_distill.layouts import base_model, infer_layout
from hf_distill.learned import attach, load_learned, save_learned
from hf_distill.objectives import Comparison, KLDivergence, Labels, LogitsMSE, Objective, RowObjective
from hf_distill.objectives.schedule import number
from hf_distill.redirect import inside_forward
from hf_distill.rows import UNITS, RowLayout
from hf_distill.sampler import EpochLengthGroupedSampler, SetEpoch
from hf_distill.stopwatch import Stopwatch
from hf_distill.training_args import DistillationArguments, check_arguments

if TYPE_CHECKING:
    from hf_distill.objectives.term import Term


logger = logging.getLogger(__name__)

# Examples of the train split shown to objectives that choose their layers by the data.
OBSERVED = 64


class DistillationTrainer(Trainer):
    """Trains a student to match a teacher.

    The loss of an optimiser step is `sum_k weight_k * S_k / N_k` over its objectives: `S_k` the sum of the
    objective, `N_k` the number of its unit, both over all micro-batches of the accumulation window and all
    processes. Gradients and logged losses are therefore the same for 8 x 1, 4 x 2 and 2 processes x 4.

    The teacher is an attribute of the trainer, not of the student: it stays in eval mode, out of the
    optimiser and out of every checkpoint.

    Logged besides what `Trainer` logs: `objective/<name>` (unweighted), `agreement` (share of rows where both
    models have the same top class) and, in training, `teacher_share` of the step time. Evaluation reports the same
    as `eval_...`, summed over examples, so that it does not depend on the batch size. An objective for which the
    data has nothing to count (`labels` without labels) is left out there.

    Args:
        model: The student.
        args: `DistillationArguments`, or `TrainingArguments` whose values pass the same check.
        teacher: The model to learn from, its task head trained. It is frozen and moved to the training device. None
            only where no objective needs it.
        objectives: Terms of the loss; by default half `kl` at temperature 2 (`logits_mse` for regression), half
            `labels`.
        layout: Which logits count; read from the student's class if left out.
        **trainer: Everything else as `transformers.Trainer`, except `compute_loss_func`.

    Raises:
        ValueError: The models, objectives or arguments do not fit together.
    """

    # compute_loss divides by counts of the whole accumulation window: Trainer must not divide again.
    loss_is_scaled_for_ga = True

    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: PreTrainedModel | nn.Module | None = None,
        objectives: Sequence[Objective] | None = None,
        layout: RowLayout | None = None,
        **trainer: Any,
    ) -> None:
        args = args if args is not None else DistillationArguments(output_dir="trainer_output")
        check_arguments(args)
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process (DataParallel) is not supported. Start one process a GPU: "
                "`accelerate launch ...`, or hide the others with CUDA_VISIBLE_DEVICES."
            )
        if trainer.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would be ignored: the loss is the sum of `objectives`.")
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model=model, args=args, **trainer)
        config: Any = getattr(self.model, "config", None)
        if config is not None and use_cache is not None:
            # Trainer turns it off for good, and the exported student would generate without a cache, many times slower.
            # Training has no use for one: see `_compare`.
            config.use_cache = use_cache
        self._check_parallelism()
        self.layout = layout or infer_layout(self.model, teacher, self.processing_class)
        self.objectives = tuple(_defaults(self.layout) if objectives is None else objectives)
        self._check_objectives(teacher)
        self.teacher = self._place(teacher)
        self.terms = self._prepare_terms()
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(["distillation", "hf_distill"])
        self.term_names = _unique([objective.name for objective in self.objectives])
        self.add_callback(SetEpoch)
        # Set by whoever writes the card, so that a push keeps it.
        self.has_model_card = False
        self._student_takes = _parameters(self.model)
        self._teacher_takes = _parameters(self.teacher) if self.teacher is not None else frozenset()
        self._outputs = {f"output_{name}": True for objective in self.objectives for name in objective.outputs}
        self._differentiates = any(objective.differentiates for objective in self.objectives)
        units = [UNITS.index(objective.unit) for objective in self.objectives]
        self._units = torch.tensor(units, device=self.args.device)
        # Terms and agreement, summed over the steps since the last log.
        self._totals = torch.zeros(len(self.objectives) + 1, device=self.args.device)
        self._steps = 0
        self._teacher_watch = Stopwatch(self.args.device)
        self._step_watch = Stopwatch(self.args.device)
        self._eval_sums: list[Tensor] = []
        self._settle_terms()

    # ---- Construction ----

    def _check_parallelism(self) -> None:
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO-3 is not supported: it would shard the teacher. Use ZeRO-2 or FSDP.")
        if max(self.get_tp_size(), self.get_cp_size(), self.get_sp_size()) > 1:
            raise ValueError("tensor, context and sequence parallelism are not supported.")

    def _check_objectives(self, teacher: nn.Module | None) -> None:
        if not self.objectives:
            raise ValueError("no objective: pass at least one, e.g. KLDivergence(temperature=2.0).")
        wanting = [objective.name for objective in self.objectives if objective.needs_teacher]
        if teacher is None and wanting:
            raise ValueError(f"objectives that need a teacher: {', '.join(wanting)}. Pass `teacher=`.")
        for objective in self.objectives:
            takes_values = not isinstance(objective, RowObjective) or objective.takes_values
            if not self.layout.has_classes and not takes_values:
                raise ValueError(
                    f"'{objective.name}' compares distributions over classes, but this is regression. Use logits_mse "
                    "for the teacher's values and labels for the true ones."
                )

    def _place(self, teacher: nn.Module | None) -> nn.Module | None:
        """Freeze the teacher and move it to the device.

        Not through `accelerator.prepare_model`: that would list it as a trained model, and `evaluation_loop` would
        then leave the student unprepared.
        """
        if teacher is None:
            return None
        trained = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        if teacher is self.model or any(id(parameter) in trained for parameter in teacher.parameters()):
            raise ValueError(
                "the teacher is the student, or shares weights with it that will be trained: it would change with "
                "every step. Make the student from a copy, e.g. copy.deepcopy(teacher)."
            )
        teacher.eval().requires_grad_(False)
        dispatched = getattr(teacher, "hf_device_map", None) or getattr(teacher, "is_quantized", False)
        return teacher if dispatched else teacher.to(self.args.device)

    def _prepare_terms(self) -> tuple[Term, ...]:
        """Make the objectives ready for the two models; what they learn becomes part of the student, for the time."""
        if any(objective.needs_eager_attention for objective in self.objectives):
            for model in (self.model, self.teacher):
                _use_eager_attention(model)
        teacher = None if self.teacher is None else base_model(self.teacher)
        terms = tuple(objective.prepare(base_model(self.model), teacher) for objective in self.objectives)
        self.learned = nn.ModuleDict(
            {str(index): term for index, term in enumerate(terms) if any(True for _ in term.state_dict())}
        )
        given: tuple[Any, ...] = (self.model_init, self.optimizer)
        if self.learned and any(one is not None for one in given):
            raise ValueError(
                "an objective here has parts of its own to learn, which the trainer must create together with the "
                "student and its optimizer. Pass `model`, not `model_init`, and no `optimizers`."
            )
        if self.learned and self.args.torch_compile:
            raise ValueError("torch_compile does not work with objectives that learn projections. Leave one out.")
        attach(self.model, self.learned.to(self.args.device, next(self.model.parameters()).dtype))
        return terms

    def _settle_terms(self) -> None:
        """Show a few batches to the terms that choose by them, the same on every process."""
        waiting = [term for term in self.terms if term.needs_data]
        if not waiting or self.train_dataset is None:
            return
        examples: Any = self._remove_unused_columns(self.train_dataset, "training")
        rows = range(min(len(examples), OBSERVED))
        training = self.model.training
        self.model.train(False)
        for start in range(0, len(rows), self._train_batch_size):
            batch = self.data_collator([examples[row] for row in rows[start : start + self._train_batch_size]])
            with torch.no_grad(), self._watching():
                comparison = self._compare(self.model, self._prepare_inputs(batch))
                for term in waiting:
                    term.observe(comparison)
        self.model.train(training)
        for term in waiting:
            if (text := term.settle()) and self.is_world_process_zero():
                logger.info(text)

    # ---- Data ----

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher takes (`token_type_ids` for a DistilBERT student of a BERT)."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            taken: Any = self._signature_columns
            self._signature_columns = taken + sorted(self._teacher_takes.difference(taken))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        # The data set handed in has lost its length column to `remove_unused_columns`.
        sampler = super()._get_train_sampler(self.train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        step = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthGroupedSampler(step, list(sampler.lengths), seed)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        """Keep the order of the data set: predictions of two models are compared row by row."""
        if self.args.train_sampling_strategy == "group_by_length" and has_length(eval_dataset):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    # ---- Loss ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Forget what an earlier or aborted training left unlogged."""
        self._totals.zero_()
        self._steps = 0
        self._step_watch.drain()
        self._teacher_watch.drain()
        return super()._inner_training_loop(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count every unit over the accumulation window and all processes: `(units,)` in the order of `UNITS`."""
        self._steps += bool(batch_samples)
        return self._count(batch_samples)

    def _count(self, batches: list[Any]) -> Tensor:
        totals = torch.zeros(len(UNITS), device=self.args.device)
        for batch in batches:
            counts = self.layout.units(batch)
            totals += torch.stack([counts[unit].sum() for unit in UNITS]).to(totals)
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
        counts = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count([inputs])
        for term, objective in zip(self.terms, self.objectives, strict=True):
            term.objective = objective.at(self.state.global_step, self.state.max_steps)
        sums, agreement, outputs = self._forward(model, inputs)
        # DDP averages gradients over processes, and the counts are global: hence the factor.
        processes = self.accelerator.num_processes
        weights = [number(term.objective.weight) for term in self.terms]
        terms = sums.sum(0) * processes / counts[self._units]
        if model.training:
            agreement = agreement.sum() * processes / counts[UNITS.index("row")]
            self._totals += torch.cat((terms.detach(), agreement.reshape(1).to(terms)))
        loss = torch.stack([term * weight for term, weight in zip(terms, weights, strict=True)]).sum()
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Run both models and compare them, all inside the student's forward pass (see `redirect`).

        Returns:
            The sum of every objective for every example, `(batch, objectives)`; the number of rows of each example
            where both models agree; and the student's output, detached.
        """
        student = self.accelerator.unwrap_model(model, keep_torch_compile=True)

        def compute() -> tuple[Tensor, Tensor, dict[str, Any]]:
            with self._watching():
                comparison = self._compare(student, inputs)
            outputs = {key: value.detach() for key, value in comparison.student.items() if isinstance(value, Tensor)}
            return self._per_example(comparison), comparison.rows.agreement(), outputs

        wrapped = model is not student or self.is_fsdp_enabled  # FSDP2 wraps in place
        if not wrapped or self.args.torch_compile:
            return compute()
        return inside_forward(model, student, compute, inputs)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for term in self.terms:
                stack.enter_context(term.watching())
            yield

    def _compare(self, model: nn.Module, inputs: Mapping[str, Any]) -> Comparison:
        """Run both models on the same batch, the teacher once."""
        teacher = None
        if self.teacher is not None:
            self.teacher.eval()  # whatever happened to it since the last batch: with dropout its targets are noise
            watch = self._teacher_watch.running() if model.training else nullcontext()
            with torch.set_grad_enabled(self._differentiates), self.accelerator.autocast(), watch:
                teacher = self.teacher(**self._forward_inputs(self._teacher_takes, inputs, use_cache=False))
        student = model(**self._forward_inputs(self._student_takes, inputs, use_cache=self.args.use_cache))
        rows = self.layout.select(
            self.layout.logits(student), None if teacher is None else self.layout.logits(teacher), inputs
        )
        tokens = self.layout.tokens(inputs)
        return Comparison(rows=rows, student=student, teacher=teacher, inputs=inputs, tokens=tokens)

    def _forward_inputs(self, taken: frozenset[str], inputs: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        given = {**settings, **inputs}
        return {**{key: value for key, value in given.items() if key in taken}, **self._outputs}

    def _per_example(self, comparison: Comparison) -> Tensor:
        """Return the sum of every objective for every example, `(batch, objectives)`, float32 or better."""
        columns = []
        for name, term in zip(self.term_names, self.terms, strict=True):
            sums = term(comparison)
            if sums.shape != (comparison.rows.examples,):  # a mean would go unnoticed, and be divided once more
                raise ValueError(
                    f"objective '{name}': per_example must return the sum of each of the {comparison.rows.examples} "
                    f"examples, shape ({comparison.rows.examples},); found {tuple(sums.shape)}."
                )
            columns.append(sums.to(torch.promote_types(sums.dtype, torch.float32)))
        return torch.stack(columns, -1)

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives, the agreement and the teacher's share to the training logs."""
        if "loss" in logs and self._steps:
            *terms, agreement = self.accelerator.reduce(self._totals / self._steps, reduction="mean").tolist()
            logs.update({f"objective/{name}": term for name, term in zip(self.term_names, terms, strict=True)})
            if self._reports_agreement:
                logs["agreement"] = agreement
            seconds, teacher_seconds = self._step_watch.drain(), self._teacher_watch.drain()
            if self.teacher is not None and seconds > 0:
                logs["teacher_share"] = teacher_seconds / seconds
            self._totals.zero_()
            self._steps = 0
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
        """Run both models on a batch; keep its sums for `evaluation_loop`.

        Returns no loss: `Trainer` would average it over batches.
        """
        inputs = self._prepare_inputs(inputs)
        for term, objective in zip(self.terms, self.objectives, strict=True):
            term.objective = objective.at(1, 1)  # as at the end, so that evaluations can be compared with each other
        with torch.set_grad_enabled(self._differentiates), self.compute_loss_context_manager():
            sums, agreement, outputs = self._forward(model, inputs)
        sums = sums.detach()
        counts = self.layout.units(inputs)
        others = torch.stack([agreement, *(counts[unit].to(sums) for unit in UNITS)], -1)
        # Per example, because gathering drops the examples that were repeated to fill the last batch.
        gathered: Tensor = self.accelerator.gather_for_metrics(torch.cat((sums, others.to(sums)), -1))
        self._eval_sums.append(gathered.sum(0))
        if prediction_loss_only:
            return None, None, None
        return None, self.layout.logits(outputs), inputs.get("labels")

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
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        figures = {f"{metric_key_prefix}_{name}": value for name, value in self._eval_figures().items()}
        return output._replace(metrics={**(output.metrics or {}), **figures})

    def _eval_figures(self) -> dict[str, float]:
        """Return loss, objectives and agreement over all that was evaluated; what has no count has no value."""
        if not self._eval_sums:
            return {}
        sums = torch.stack(self._eval_sums).cpu().double().sum(0).tolist()
        terms, agreed, counts = sums[: len(self.objectives)], sums[len(self.objectives)], sums[-len(UNITS) :]
        figures: dict[str, float] = {}
        loss = 0.0
        for name, objective, term in zip(self.term_names, self.objectives, terms, strict=True):
            if count := counts[UNITS.index(objective.unit)]:
                figures[f"objective/{name}"] = term / count
                loss += number(objective.at(1, 1).weight) * term / count
        if figures:
            figures = {"loss": loss, **figures}
        if self._reports_agreement and (rows := counts[UNITS.index("row")]):
            figures["agreement"] = agreed / rows
        return figures

    # ---- Saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as `Trainer` does; what is exported (not a checkpoint) holds no pickled arguments and no projections."""
        super()._save(output_dir, state_dict)
        directory = Path(output_dir or self.args.output_dir or ".")
        if not self.args.should_save:
            return
        if not directory.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            (directory / "training_args.bin").unlink(missing_ok=True)
        elif self.learned:
            save_learned(directory, self.learned, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_learned(Path(resume_from_checkpoint), self.learned)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            load_learned(Path(self.state.best_model_checkpoint), self.learned)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Draft a card, unless the run has already written one."""
        if not self.has_model_card:
            super().create_model_card(*args, **kwargs)


def _defaults(layout: RowLayout) -> tuple[Objective, ...]:
    match: Objective = KLDivergence(weight=0.5, temperature=2.0) if layout.has_classes else LogitsMSE(weight=0.5)
    return match, Labels(weight=0.5)


def _use_eager_attention(model: nn.Module | None) -> None:
    """Have attention computed as plain matrix products: the fused kernels keep no maps, and differentiate only once."""
    base: Any = model and base_model(model)
    if base is None or base.config._attn_implementation == "eager":
        return
    logger.warning(
        "%s computes attention with '%s', which an objective here cannot look into: switched to 'eager' for this "
        "training, which is slower and takes memory with the square of the length",
        *(type(base).__name__, base.config._attn_implementation),
    )
    base.set_attn_implementation("eager")


def _parameters(model: nn.Module) -> frozenset[str]:
    """Return what `forward` takes, without the labels: from them a model would compute a loss of its own."""
    return frozenset(inspect.signature(base_model(model).forward).parameters) - {"labels"}


def _unique(names: list[str]) -> list[str]:
    """Number repeated names: kl, kl_2."""
    return [
        name if (seen := names[:index].count(name)) == 0 else f"{name}_{seen + 1}" for index, name in enumerate(names)
    ]
