"""`DistillationTrainer`: `transformers.Trainer` with a loss that compares a student with a teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import datasets
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from hf_distill import parallel
from hf_distill.cache.replay import TrainingData
from hf_distill.completions.backends import Writer
from hf_distill.completions.section import Completions
from hf_distill.data.example_columns import check_weights
from hf_distill.errors import NotFinite, UserError, under
from hf_distill.models import sharding
from hf_distill.models.inspection import base_model, taken_by
from hf_distill.models.quantization import evaluable, leave_in_place
from hf_distill.models.sentence_encoder import encoding_of
from hf_distill.models.target_model import TargetSource, as_source
from hf_distill.objectives import Comparison, KLDivergence, Labels, LogitsMSE, Objective
from hf_distill.objectives.settled_groups import settle_group_weights
from hf_distill.rows.base import UNITS, RowLayout
from hf_distill.rows.inferred import infer_layout
from hf_distill.rows.padding import Padding
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.tasks import Task
from hf_distill.tasks.inferred import tasks_of
from hf_distill.teachers import Teacher
from hf_distill.teachers.opening import Given, can_open, open_teacher
from hf_distill.teachers.storing import store_targets
from hf_distill.training.argument_checks import check_terms, check_with_arguments
from hf_distill.training.batches import BatchingTrainer, SetEpoch
from hf_distill.training.checks import (
    check_data,
    check_objectives,
    check_parallelism,
    check_separate,
    check_types,
    facts_of,
)
from hf_distill.training.chunked.compiled import compiler_for, warn_nothing_compiled
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.class_weights import settle_class_weights
from hf_distill.training.evaluation import EvalSums
from hf_distill.training.finite import Watch
from hf_distill.training.following import AfterStep, check_following
from hf_distill.training.forward import BothModels, inside_forward
from hf_distill.training.guarding import is_of_training
from hf_distill.training.input_values import check_input_values
from hf_distill.training.interrupt import StopOnInterrupt
from hf_distill.training.label_values import check_label_values, reaches_models
from hf_distill.training.labelled import check_labelled, is_labelled
from hf_distill.training.learners import Learners
from hf_distill.training.liger import layers_only, undone_afterwards
from hf_distill.training.meter import Meter
from hf_distill.training.own_loss import ComparesModels
from hf_distill.training.padding_free.choice import PaddingFree
from hf_distill.training.randomness import undisturbed
from hf_distill.training.rollback import RollbackTrainer
from hf_distill.training.rollouts import Rollouts
from hf_distill.training.running import ContinueSums, Running
from hf_distill.training.saving import attach, detached, place
from hf_distill.training.search import compare_by
from hf_distill.training.sharded import (
    as_it_is,
    deepspeed_stage,
    has_loss_scale,
    is_wrapped,
    prepare_sharding,
    will_wrap_in_place,
    with_weights,
)
from hf_distill.training.sharing import SharingTrainer
from hf_distill.training.split_models import check_split
from hf_distill.training.streams import TextStream, check_stream, check_stream_features, collected, first_rows
from hf_distill.training.terms import OBSERVED, Terms
from hf_distill.training.text_columns import holds_text, text_columns
from hf_distill.training.token_batches import MicroBatches, TokenBatches, Uncollated, flat, joined
from hf_distill.training.weighing import WeighGroups, Weighing, positive, weighted_mean
from hf_distill.training.writing_models import beside, check_any_text, check_whole
from hf_distill.training_args import DistillationArguments, check_arguments, check_devices

logger = logging.getLogger(__name__)

Split: TypeAlias = "Dataset[Any] | datasets.Dataset | datasets.IterableDataset"


class DistillationTrainer(RollbackTrainer, SharingTrainer, BatchingTrainer):
    """Trains a student to match a teacher.

    The loss of an optimiser step is `sum_k weight_k * S_k / N_k` over its objectives: `S_k` is the sum of the
    objective, `N_k` the number of its unit, both over all micro-batches of the accumulation window and all
    processes. Gradients and logged losses are therefore the same for 8 x 1, 4 x 2 and 2 processes x 4.

    The teacher is an attribute of the trainer, not of the student: it stays in eval mode, and is part of neither the
    optimiser nor any checkpoint. `training/overrides.py` lists the methods of `Trainer` that are overridden, and why.

    Logged in addition to what `Trainer` logs: `objective/<name>` (unweighted), `agreement` (share of rows where both
    models have the same top class) and, in training, `teacher_share` (of the time of the steps), `tokens_per_second`
    and `peak_memory` (MiB). Evaluation reports objectives and agreement as `eval_...`, computed from sums over
    examples, so that they do not depend on the batch size. An objective with a count of 0 (`labels` on data without
    labels) is left out there.

    Args:
        model: The student.
        args: `DistillationArguments`, or `TrainingArguments` whose values pass the same check.
        teacher: The model to learn from, with a trained task head; or its id or path, or a recipe's entry such as
            `PretrainedTeacher(model=..., dtype="bfloat16")`, which is loaded with the class of the student's head; or
            another source of targets (`models.target_model.TargetSource`). It is frozen and moved to the training
            device. None if no objective needs a teacher.
        objectives: Terms of the loss; by default half `kl` at temperature 2 (`logits_mse` for regression), half
            `labels`.
        layout: Which logits count; by default as the student's class says.
        task: The task that tokenises data sets of text, such as `TextGeneration(packing=True)`; by default that of the
            student's class.
        completions: Who writes the completions that a language model learns from; by default they are in the data.
        data_collator: As in `transformers.Trainer`, like all arguments that follow.
        train_dataset: Tokenised; or with text columns, named as the task names them (`docs/trainer.md`), which are
            tokenised here unless a `data_collator` is given. A stream of text (`datasets.IterableDataset`) is tokenised
            as it is read, and needs `max_steps`.
        eval_dataset: Tokenised or with text columns, as `train_dataset`; or a dict of several.
        processing_class: The tokenizer. It is saved with the student, and its size tells which outputs of a head are
            only padding.
        model_init: Makes the student, in place of `model`.
        compute_loss_func: Refused: the loss is the sum of the objectives.
        compute_metrics: Called with `EvalPrediction(predictions, label_ids)`: logits and labels of the rows that count.
        callbacks: Added to the default ones.
        optimizers: Optimizer and scheduler.
        optimizer_cls_and_kwargs: Class of the optimizer, and its arguments.
        preprocess_logits_for_metrics: `(logits, labels) -> what is stored for compute_metrics`.

    Raises:
        TypeError: An argument has a wrong type, such as the name of an objective in place of the object.
        ValueError: The models, objectives or arguments do not fit together.
    """

    # Gives the targets: the teacher itself, a wrapper around it, or stored targets.
    source: TargetSource | None
    # Stops all processes at the end of the same step.
    interrupt: StopOnInterrupt | None = None

    # `compute_loss` divides by counts of the whole accumulation window: `Trainer` must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: Given | None = None,
        objectives: Sequence[Objective] | None = None,
        layout: RowLayout | None = None,
        task: Task | None = None,
        completions: Completions | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Split | None = None,
        eval_dataset: Split | dict[str, Split] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        check_types(
            model=model,
            args=args,
            teacher=None if can_open(teacher) else teacher,
            objectives=objectives,
            layout=layout,
        )
        args = args if args is not None else DistillationArguments(output_dir="trainer_output")
        check_arguments(args)
        check_devices(args)
        check_stream(train_dataset, args)
        eval_dataset = collected(eval_dataset)
        self.completions = completions or Completions()
        # It would replace a loss that is NaN in the logs, and read the loss from the device in every micro-batch.
        args.logging_nan_inf_filter = False
        if compute_loss_func is not None:
            raise ValueError("compute_loss_func would be ignored: the loss is the sum of `objectives`.")
        heads = objectives is None or any(one.needs().rows for one in objectives)
        self._reaches_head = heads and encoding_of(model) is None  # no vector of a text passes a backbone's pooler
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        with evaluable(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                model_init=model_init,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        leave_in_place(self.accelerator, self.model)
        sharding.load_models_whole()
        config: Any = getattr(self.model, "config", None)
        if config is not None and use_cache is not None:
            # `Trainer` turns it off for good, and the exported student would generate without a cache, many times
            # slower. During training it is not used: `BothModels` sets it for each forward pass.
            config.use_cache = use_cache
        check_parallelism(self)
        prepare_sharding(self)
        self.brings_optimizer = any(one is not None for one in optimizers)
        # A model that is loaded here may draw random numbers; one that is brought has not.
        with undisturbed(self.args.device):
            self.teacher, stored = open_teacher(teacher, self.model)
        check_following(self)
        self._begin_targets()
        if data_collator is None:
            self._tokenise(self.teacher, task, completions)
            layout = layout or self._layout_of_texts()
        self.layout = layout or infer_layout(self.model, self.teacher, self.processing_class)
        if self.source is not None:
            self.source.read_by(self.layout, getattr(self.processing_class, "tokenizer", self.processing_class))
        chosen = _defaults(self.layout) if objectives is None else objectives
        if isinstance(self.train_dataset, TextStream):
            assert self.texts is not None
            check_stream_features(self.texts.task, chosen, stored, self.accelerator.dataloader_config)
        settled = settle_class_weights(chosen, self.layout, self.model, self.known_rows)
        self.objectives = settle_group_weights(settled, self.known_rows)
        # With the default objectives, data without labels is allowed.
        labelled = self._labelled()
        if objectives is None and labelled is False and self.is_world_process_zero():
            logger.warning(
                "train_dataset has no labels (column labels, or label beside text): only the teacher's targets are "
                "learned. Pass objectives= if that is what you want."
            )
        check_objectives(self, self.source, labelled=True if objectives is None else labelled)
        self._check_splits()
        if stored is not None:
            self._store_targets(stored, task)
            check_objectives(self, self.source, labelled=None)
        if self.source is not None:
            student: Any = getattr(base_model(self.model), "config", None)  # asked for by nobody who compares logits
            narrowed = self.source.for_objectives(self.objectives, student, self.data_collator)
            self.source, self.data_collator = narrowed
        self._place_teacher()
        self.terms = self._make_terms()
        if self.source is not None:
            check_split(self.source.models.values(), differentiates=self.terms.differentiates)
        self.weighing = Weighing(self.terms, self.known_rows, self.args.device)
        self.add_callback(WeighGroups(lambda: self.weighing))
        self.learners = Learners.of(self, labelled)
        self._made_for = self._models()
        self._heads = self._open_heads()
        if self._heads is None and getattr(self.args, "compile_loss", "auto") is True:
            warn_nothing_compiled()
        self.padding_free = PaddingFree(self.args, self.model, self.source, self.terms)
        self.padding = self._make_padding()
        self.token_batches = self._make_token_batches()
        self.rollouts = self._make_rollouts(self.completions)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(["distillation", "hf_distill"])
        self.add_callback(SetEpoch)
        self._compared = False
        self.add_callback(AfterStep(self))
        self.running = Running(self)
        self.add_callback(ContinueSums(self.running))
        self.add_callback(ComparesModels(lambda: self._compared))
        self.takes = taken_by(self.model), frozenset() if self.source is None else self.source.takes
        self._taken = self._taken_by_each()
        # Terms and agreement, summed over the steps since the last log.
        self._totals = torch.zeros(len(self.terms) + 1, device=self.args.device)
        # For each count of a step, in how many of these steps it was above 0.
        self._counted = torch.zeros_like(self.weighing.no_counts())
        self.watch = Watch(self.terms.names)
        self._steps = 0
        self._meter = Meter(self.args.device)
        self.add_callback(self._meter)
        self.eval_sums = EvalSums(self.terms)
        self.decisions = [*self._settle_terms(), *self.padding_free.decisions, *self.padding.decisions]
        self.decisions += [] if self.learners is None else self.learners.decisions

    # ---- Construction ----

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Let DDP look for unused parameters if no objective reaches the head.

        With activation checkpointing `Trainer` would turn this off, and the second step would fail.
        """
        args: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        if not self._reaches_head and self.args.ddp_find_unused_parameters is None:
            args["kwargs_handlers"][0].find_unused_parameters = True
        return args

    @property
    def teacher(self) -> Any:
        """The model to learn from; None if there is none."""
        return None if self.source is None else self.source.model

    @teacher.setter
    def teacher(self, teacher: nn.Module | None) -> None:
        self.source = as_source(teacher)

    @property
    def known_rows(self) -> Any:
        """The train rows that are known before the first step: of a stream of texts the first ones, else all."""
        return self.train_dataset.first if isinstance(self.train_dataset, TextStream) else self.train_dataset

    def _tokenise(self, teacher: nn.Module | None, task: Task | None, completions: Completions | None) -> None:
        """Tokenise data sets with text columns, as a run of the student's task does."""
        with parallel.first_process_first():
            rows = first_rows(self.train_dataset)
            self.texts = text_columns(
                self.model, teacher, rows, self.eval_dataset, self.processing_class, task, completions
            )
            if self.texts is None:
                return
            if rows is self.texts.train:
                stream = rows is not self.train_dataset
                made = TextStream(self.train_dataset, self.texts) if stream else self.texts.prepared.train
                self.train_dataset = made
            self.eval_dataset = self.texts(self.eval_dataset)
        self.data_collator = self.texts.prepared.collator
        logger.info("data sets of text are %s", self.texts.describe())

    def _store_targets(self, entry: Teacher, task: Task | None) -> None:
        """Store the teacher's targets, or find them stored, and let the student train from them."""
        texts, model = self.texts, self.teacher
        known = task or (texts.task if texts is not None else next(iter(tasks_of(self.model)), None))
        if known is None:
            raise UserError(
                "teacher: what is stored depends on the task, which the student's class does not say. Pass task=."
            )
        data: Any = TrainingData(self.train_dataset, self.eval_dataset, self.data_collator, self.layout)
        with undisturbed(self.args.device):  # the same dropout, stored or not
            stored, self.source = store_targets(
                entry,
                model,
                self.model,
                data,
                task=known,
                objectives=self.objectives,
                facts=facts_of(self.train_dataset, self.layout, labelled=None),
                takes=taken_by(self.model) | taken_by(model) | frozenset(self.layout.columns),
                tokenizer=getattr(self.processing_class, "tokenizer", self.processing_class),
                max_length=None if texts is None else texts.setup.max_length,
                args=self.args,
            )
        collator: Any = stored.collator
        self.train_dataset, self.eval_dataset, self.data_collator = stored.train, stored.eval, collator

    def _layout_of_texts(self) -> RowLayout | None:
        """Return the layout for data sets of text; None for a head over a vocabulary, which depends on both models."""
        layout = None if self.texts is None else self.texts.prepared.layout
        return None if getattr(layout, "classes", None) else layout

    def _labelled(self) -> bool | None:
        """Return whether the train split has labels; None if only its batches show that."""
        split = self.known_rows
        return is_labelled(split, self.layout) if reaches_models(split, self.data_collator) else None

    def _check_splits(self) -> None:
        """Refuse rows that the models cannot read or learn from; splits changed by a transform are not checked."""
        every = {"train_dataset": self.known_rows, **_named(self.eval_dataset)}
        for name, split in every.items():
            check_weights(split, name)
        splits = {name: split for name, split in every.items() if reaches_models(split, self.data_collator)}
        check_labelled(splits.get("train_dataset"), self.objectives)
        for name, split in splits.items():
            if holds_text(split, taken_by(self.model)):
                raise UserError(
                    f"{name} holds text ({', '.join(split.column_names)}), and data_collator pads tokens only. Leave "
                    "data_collator out, so that the text is tokenised here, or tokenise it first."
                )
            check_label_values(split, name, self.layout, self.model)
            check_input_values(split, name, {"student": self.model, **self._teachers})
        check_data(self, self.layout, self.teacher)

    @property
    def _teachers(self) -> Mapping[str, nn.Module]:
        """The models that run beside the student, by their names in messages."""
        return {} if self.source is None else self.source.models

    def _taken_by_each(self) -> Mapping[str, frozenset[str]]:
        return {"student": self.takes[0], **{name: taken_by(one) for name, one in self._teachers.items()}}

    def _begin_targets(self) -> None:
        """Pass the student to the source of targets, which may follow the student's weights."""
        # Between the trials of a search there is no student, and no source follows one that `model_init` makes.
        if self.source is not None and self.model is not None:
            with detached(self.model):
                self.source.begin(self.model)

    def _place_teacher(self) -> None:
        """Freeze the teacher and move it to the device.

        `accelerator.prepare_model` is not used: it would list the teacher as a trained model, and `evaluation_loop`
        would then not prepare the student.
        """
        if self.source is not None:
            check_separate(self.model, self.source.model)
            self.share_weights()
            self.source.place(self.args.device)

    def _make_terms(self) -> Terms:
        """Prepare the objectives for the two models; what they learn is part of the student during training."""
        terms = Terms(self.objectives, self.model, self.teacher)
        check_terms(terms, self)
        attach(self.model, place(terms.learned, self.model, self.args.device))
        return terms

    def _make_padding(self) -> Padding:
        """Return what knows on which side the two models are padded."""
        terms = self.terms
        # Hooks, hidden states, derivatives and separate heads need the whole batch in one forward pass.
        inside = terms.watch or terms.differentiates or terms.outputs or self._heads
        whole = bool(inside or isinstance(self.layout, SimilarityRows))
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        models = {"student": self.model, **self._teachers}
        return Padding(models, self.layout, whole=whole, pad=getattr(tokenizer, "pad_token_id", None))

    def _make_token_batches(self) -> TokenBatches | None:
        """Return what splits a step by the tokens of its examples; None for micro-batches of a fixed size."""
        limit = getattr(self.args, "max_tokens_per_batch", None)
        if limit is None:
            return None
        for one in self.objectives:
            check_with_arguments(one.needs(), {"max_tokens_per_batch": limit})
        config: Any = getattr(base_model(self.model), "config", None)
        return TokenBatches(
            limit, padded=not self.padding_free.always, decoder=bool(getattr(config, "is_encoder_decoder", False))
        )

    def _make_rollouts(self, completions: Completions) -> Rollouts | None:
        """Return what lets the student write while it trains; None if the completions are there before."""
        if not completions.in_training:
            return None
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        if tokenizer is None:
            raise UserError(
                "completions: the student writes, and its tokenizer says where a text ends. Pass processing_class=."
            )
        with under("completions"):
            check_whole(will_wrap_in_place(self), deepspeed_stage(self))
            check_any_text(self.source)
            rereading = getattr(self.layout, "rereading", None)
            if rereading is None and getattr(self.layout, "mapping", None) is not None:
                raise UserError(
                    "the teacher has other tokens than the student, and what the student writes is written in these by "
                    "a run of a recipe alone. Wanted: a recipe, or a teacher with the student's tokenizer."
                )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        writer = self._open_writer(completions, tokenizer)
        return Rollouts(completions, writer, seed, self.args.device, tokenizer.all_special_ids, rereading)

    def _open_writer(self, completions: Completions, tokenizer: Any) -> Writer:
        with under("completions"):
            second = beside(completions, self.source, self.layout)
            return completions.backend.open(sharding.unwrapped(self.model), tokenizer, second)

    def _open_heads(self) -> Heads | None:
        """Separate both models from their heads, to compute logits in chunks; None if all are computed at once."""
        # With float16, a gradient computed in the forward pass would lack the loss scale, and vanish.
        whole = has_loss_scale(self) or self.learners is not None
        if whole or self.args.torch_compile or self.terms.needs_logits or not self.layout.by_position:
            return None
        compiler = compiler_for(getattr(self.args, "compile_loss", "auto"), self.args.device, self.objectives)
        heads = Heads.open(self.model, self._teachers, compiler)
        if heads is None and (classes := getattr(self.layout, "classes", None)):
            logger.warning(
                "the logits of %s or of its teacher cannot be computed in chunks (its head has an adapter, quantized "
                "weights, or a class of its own): all are computed at once, at about %s KB of memory a token",
                *(type(base_model(self.model)).__name__, f"{28 * classes // 1024:,}"),
            )
        return heads

    def _follow_models(self) -> None:
        """Rebuild what depends on the models if they have changed: `model_init` makes a student for every training."""
        now = self._models()
        made = False
        if any(one is not other for one, other in zip(now, self._made_for, strict=True)):
            self._place_teacher()
            made = not self.terms.learned or now[0] is not self._made_for[0]  # what is learned is part of the student
            if made:
                self.terms = self._make_terms()
                self.weighing = Weighing(self.terms, self.known_rows, self.args.device)
            self.padding_free = PaddingFree(self.args, now[0], self.source, self.terms)
            self._taken = self._taken_by_each()
            if self.rollouts is not None and (now[0] is not self._made_for[0] or self.completions.by == "mixture"):
                tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
                self.rollouts.writer = self._open_writer(self.completions, tokenizer)
            self._made_for = now
        if self._heads is not None and not self._heads.are_of(now[0], self._teachers):
            self._heads = self._open_heads()
        if made:
            self._settle_terms()

    def _models(self) -> tuple[nn.Module, nn.Module | None]:
        return sharding.unwrapped(self.model), self.teacher

    def _settle_terms(self) -> list[str]:
        """Show the same few batches to the undecided terms in every process; return a line about each decision."""
        data: Any = self.train_dataset
        if not self.terms.undecided or data is None:
            return []
        if will_wrap_in_place(self):
            raise UserError(
                "layers: 'similarity' is not supported with FSDP. Run a few steps without FSDP, which logs the "
                "pairs, and write them in the recipe: layers: [[1, 2], ...]."
            )
        collate: Any = self.weighing.collating(self.padding.collating(self.data_collator))
        if isinstance(data, datasets.Dataset):
            data = self._remove_unused_columns(data, "training")
        else:
            collate = self._get_collator_with_removed_columns(collate, "training")
        examples = list(islice(iter(data), OBSERVED))
        size = self._train_batch_size
        batches = [collate(examples[start : start + size]) for start in range(0, len(examples), size)]
        training = self.model.training
        self.model.train(False)
        said = list(self.terms.settle(map(self._prepare_inputs, batches), partial(self._compare, self.model)))
        for text in said:
            if self.is_world_process_zero():
                logger.info(text)
        self.model.train(training)
        return said

    # ---- Loss ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; at the end, undo Liger's changes of the model (`use_liger_kernel`)."""
        prepare_sharding(self)
        self._begin_targets()
        self.weighing.begin()
        if self.learners is not None:
            self.learners.begin()
        if self.rollouts is not None:
            self.rollouts.begin()
        if not self.args.use_liger_kernel:
            return super().train(*args, **kwargs)
        self.args.liger_kernel_config = layers_only(self.args.liger_kernel_config)
        with undone_afterwards(lambda: self.model):
            return super().train(*args, **kwargs)

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search as `Trainer` does; by default, trials are compared by `training.search.compare_by`."""
        return super().hyperparameter_search(hp_space, compute_objective or compare_by, *args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load what is stored beside the student into what belongs to the student of this training."""
        self._follow_models()
        super()._load_from_checkpoint(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, after resetting the sums of an earlier or aborted training."""
        self._follow_models()
        self._compared = False
        self._totals.zero_()
        self._counted.zero_()
        self._steps = 0
        self._meter.reset()
        # For the whole training, since activation checkpointing computes attention again in the backward pass.
        with self.terms.eager_attention():
            return super()._inner_training_loop(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the counts of the accumulation window of all processes, as `Weighing` counts them."""
        self._steps += bool(batch_samples)
        self._begin_step()
        counts = self._count(batch_samples, self.interrupt)
        self._counted += counts > 0
        self._meter.count(torch.stack([counts[UNITS.index(unit)] for unit in self.layout.token_units]).sum())
        counts = positive(counts)
        self.weighing.start_step(counts)
        return counts

    def _count(self, batches: list[Any], interrupt: StopOnInterrupt | None = None) -> Tensor:
        totals = self.weighing.no_counts()
        for batch in flat(batches):
            totals += self.weighing.count(batch, self.layout.units(batch)).to(totals)
        if interrupt is None or parallel.processes() == 1:
            return parallel.summed(totals)
        both = parallel.summed(torch.cat((totals, interrupt.flags(totals))))
        interrupt.agree(both[len(totals) :])
        return both[: len(totals)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the optimiser step's loss.

        A subclass may add a term of its own to what this returns. A subclass that never calls it is refused, since it
        would train without the teacher (`docs/extending.md`).

        Args:
            model: The student, wrapped or not.
            inputs: A collated batch.
            return_outputs: Also return the student's outputs, a mapping, with their graph. All logits are then
                computed at once.
            num_items_in_batch: Counts of the whole step, as `_get_num_items_in_batch` returns it. If left
                out, the batch is counted in all processes; during training with gradient accumulation, that is refused.

        Returns:
            A scalar whose mean over processes, summed over micro-batches, is the loss of the step.

        Raises:
            UserError: The counts of the step are missing during training, an objective returned a wrong tensor, or no
                objective has a gradient.
        """
        self._compared = True
        counts = num_items_in_batch
        if not isinstance(counts, Tensor):
            if self.is_in_train and model.training and self.args.gradient_accumulation_steps > 1:
                raise UserError(
                    "compute_loss was called without num_items_in_batch, and gradients are accumulated over "
                    f"{self.args.gradient_accumulation_steps} micro-batches: each would count as a whole step. In an "
                    "overridden compute_loss, pass num_items_in_batch on."
                )
            counts = positive(self._count([inputs]))
        self.terms.go_to(self.state.global_step, self.state.max_steps)
        # DDP averages gradients over processes, and the counts are global: hence the factor.
        processes = parallel.processes()
        counted = self.weighing.divisors(counts)
        heads = None if return_outputs else self._heads
        weights = self.weighing.of(inputs, counts)
        sums, (agreement, extremes), outputs = self._forward(
            model, inputs, heads, processes / counted, weights, attached=return_outputs
        )
        terms = weighted_mean(sums, weights, counted) * processes
        if model.training:
            agreement = agreement.sum() * processes / counts[UNITS.index("row")].to(agreement)
            self._totals += torch.cat((terms.detach(), agreement.reshape(1).to(terms)))
            self._note(inputs, sums, extremes)
            self.weighing.note(inputs, sums)
            if self.learners is not None:
                self.learners.compute(counts, weights)
        loss = self.terms.weighted(terms)
        if model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise UserError(
                "no objective trains any parameter: all that they compare comes from frozen parts of the student. "
                "Freeze less, or add an objective that depends on the other parts."
            )
        return (loss, outputs) if return_outputs else loss

    def _forward(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        heads: Heads | None,
        shares: Tensor | None = None,
        weights: Tensor | None = None,
        attached: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], dict[str, Any]]:
        """Run both models and compare them, all inside the forward pass of the student's wrapper (`inside_forward`).

        Args:
            model: The student, wrapped or not.
            inputs: A batch.
            heads: The heads of the models, to compute the logits in chunks; None to compute all logits at once.
            shares: What the loss multiplies each sum by, without its weight, `(objectives,)`; None if no gradient is
                needed.
            weights: What the loss multiplies the sums of each example by besides, `(batch, objectives)`; None for 1.
            attached: Whether to return the student's outputs with their graph.

        Returns:
            The sum of every objective for every example, `(batch, objectives)`, not weighted; the number of rows of
            each example where both models agree, `(batch,)`, and the largest logits, `(batch, 2)`; and the student's
            outputs.
        """
        student = sharding.unwrapped(model)

        def compute() -> tuple[Tensor, tuple[Tensor, Tensor], dict[str, Any]]:
            with self.terms.watching():
                comparison = self._compare(student, inputs, heads)
            if self.rollouts is not None and student.training:
                self.rollouts.log.look(comparison.rows)
            outputs = {key: value for key, value in comparison.student.items() if isinstance(value, Tensor)}
            if not attached:
                outputs = {key: value.detach() for key, value in outputs.items()}

            def compare() -> tuple[Tensor, Tensor, Tensor]:
                sums = self.terms.per_example(comparison, shares, weights)
                return sums, comparison.rows.agreement(), comparison.rows.extremes()

            read = [*([] if heads is None else heads.layers), *self.terms.learned.modules()]
            sums, agreement, extremes = with_weights(read, compare)
            return sums, (agreement, extremes), outputs

        with self.terms.eager_attention():  # a user may call `compute_loss` outside of training
            if not is_wrapped(self, model, student) or self.args.torch_compile:
                return compute()
            return inside_forward(model, student, compute, inputs)

    def _compare(self, model: nn.Module, inputs: Mapping[str, Any], heads: Heads | None = None) -> Comparison:
        both = BothModels(
            source=self.source,
            layout=self.layout,
            terms=self.terms,
            padding_free=self.padding_free,
            padding=self.padding,
            accelerator=self.accelerator,
            meter=self._meter,
            learners=self.learners,
            takes=self._taken,
            use_cache=self.args.use_cache,
        )
        return both.compare(model, inputs, heads)

    def compare(self, batch: Mapping[str, Any]) -> Comparison:
        """Return what objectives compare on a collated batch, all logits at once, without a gradient."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._compare(sharding.unwrapped(self.model), self._prepare_inputs(dict(batch)))

    def evaluate_batch(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the sums of all terms, `(batch, terms)`, and the largest logits, `(batch, 2)`, without a gradient."""
        with torch.set_grad_enabled(self.terms.differentiates), self.compute_loss_context_manager():
            sums, (_, extremes), _ = self._forward(model, inputs, self._heads)
        return sums.detach(), extremes

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train as `Trainer` does, then compute the gradients of models that train beside the student."""
        if isinstance(inputs, MicroBatches):  # not by calling this method, which a subclass may add to
            return self._sum_of(model, inputs, lambda batch: self._train_on(model, batch, num_items_in_batch))
        return self._train_on(model, inputs, num_items_in_batch)

    def _train_on(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, counts)
        if self.learners is not None:
            self.learners.backward()
        return loss

    def _norms_beside(self) -> Sequence[Tensor]:
        return [] if self.learners is None else self.learners.gather()

    def _sums(self) -> Sequence[Tensor]:
        return [*super()._sums(), self._totals, self._counted, self.weighing.sums]

    def running_sums(self) -> dict[str, Tensor]:
        """Return what this process has added up since the last log, for a checkpoint."""
        steps = torch.tensor([self._steps, *self._window])
        return {"totals": self._totals, "counted": self._counted, "steps": steps}

    def continue_sums(self, found: Mapping[str, Tensor]) -> None:
        """Continue with what `running_sums` returned."""
        self._totals += found["totals"].to(self._totals)
        self._counted += found["counted"].to(self._counted)
        self._steps, *window = found["steps"].tolist()
        self._window = window[0], window[1]

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objectives, the agreement and what the steps cost to the training logs."""
        if is_of_training(logs):
            self.check_finite()
        if "loss" in logs and self._steps:
            logs.update(self._means())
            logs.update(self.weighing.logged())
            logs.update(self._meter.read(parallel.gathered))
            logs.update({} if self.rollouts is None else self.rollouts.figures())
            self._totals.zero_()
            self._counted.zero_()
            self._steps = 0
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        """Return the objectives and the agreement, each averaged over the steps in which its count was above 0.

        A step without a label rightly adds 0 to the loss; averaged into `labels`, the 0 would pull the curve down.
        """
        totals = parallel.summed(self._totals) / parallel.processes()
        rows = self._counted[UNITS.index("row")].reshape(1)
        *sums, agreement = torch.stack(
            (totals, torch.cat((self.weighing.of_terms(self._counted), rows)).to(totals)), -1
        ).tolist()
        named = zip(self.terms.names, sums, strict=True)
        means = {f"objective/{name}": total / steps for name, (total, steps) in named if steps}
        if self._reports_agreement and agreement[1]:
            means["agreement"] = agreement[0] / agreement[1]
        return means

    @property
    def _reports_agreement(self) -> bool:
        return self.source is not None and self.layout.has_classes

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Run both models on a batch, and add its sums to `eval_sums`.

        Returns:
            No loss, since `Trainer` would average it over batches; logits and labels, unless `prediction_loss_only`.
        """
        self.terms.go_to_end()
        batches: list[Any] = [inputs]
        if isinstance(inputs, Uncollated):
            assert self.token_batches is not None
            parts = self.token_batches.split(inputs.examples, ordered=True)
            batches = [self._collate_eval(examples) for examples in parts]
        found = [self._predict(model, self._prepare_inputs(batch), prediction_loss_only) for batch in batches]
        columns, logits, labels = zip(*found, strict=True)
        # Per example, because gathering drops the examples that were repeated to fill the last batch.
        self.eval_sums.add(self.accelerator.gather_for_metrics(torch.cat(columns)))
        return None, joined(logits), joined(labels)

    def _predict(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the columns of `EvalSums` of a batch; and its logits and labels, unless `prediction_loss_only`."""
        with torch.set_grad_enabled(self.terms.differentiates), self.compute_loss_context_manager():
            heads = self._heads if prediction_loss_only else None
            sums, (agreement, extremes), outputs = self._forward(model, inputs, heads)
        units, weighing = self.layout.units(inputs), self.weighing
        weights, groups = weighing.of(inputs), weighing.groups(inputs, agreement)
        columns = EvalSums.columns(sums.detach(), agreement, units, extremes, weights, groups)
        if prediction_loss_only:
            return columns, None, None
        return columns, self.layout.logits(outputs), self.layout.labels(inputs)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, but compute the loss over all examples instead of averaging it over batches.

        Raises:
            NotFinite: A loss, a target or a prediction is not finite, so that the figures would be meaningless.
        """
        self.check_finite()
        self._follow_models()
        self.eval_sums = EvalSums(self.terms)
        with undisturbed(self.args.device), as_it_is(self):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if (fault := self.eval_sums.fault(self.state.global_step)) is not None:
            raise NotFinite(self._line(fault))
        figures = self.eval_sums.figures(agreement=self._reports_agreement)
        named = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})


def _named(split: Any) -> dict[str, Any]:
    """Return the eval split, or the several of a dict, by their names in messages."""
    if isinstance(split, dict):
        return {f"eval_dataset['{name}']": one for name, one in split.items()}
    return {"eval_dataset": split}


def _defaults(layout: RowLayout) -> tuple[Objective, ...]:
    match: Objective = KLDivergence(weight=0.5, temperature=2.0) if layout.has_classes else LogitsMSE(weight=0.5)
    return match, Labels(weight=0.5)
