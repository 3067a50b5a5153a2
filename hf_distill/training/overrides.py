"""What the package overrides and reads of `transformers.Trainer`, and why: the list to go through with an update.

Most of it is private there and may change with any release. `tests/training/test_overrides.py` holds this list to the
installed version and to our classes, so that a renamed hook fails a test and is not silently never called.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Override:
    """A method of `Trainer` that one of our classes replaces.

    Attributes:
        takes: Its parameters in `Trainer`, without `self`.
        why: What would go wrong without it.
    """

    takes: str
    why: str


OVERRIDES: dict[str, Override] = {
    # ---- trainer.py: DistillationTrainer ----
    "__init__": Override(
        "model args data_collator train_dataset eval_dataset processing_class model_init compute_loss_func "
        "compute_metrics callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics",
        "takes the teacher and the objectives; refuses `compute_loss_func`, which they would make useless",
    ),
    "_build_accelerator_args": Override(
        "**kwargs", "DDP must expect parameters without a gradient where no objective reaches the head"
    ),
    "train": Override(
        "resume_from_checkpoint trial ignore_keys_for_eval", "undoes what Liger changes in the student's classes"
    ),
    "_inner_training_loop": Override(
        "batch_size args resume_from_checkpoint trial ignore_keys_for_eval",
        "forgets the sums of an earlier training; `model_init` has made a new student by then",
    ),
    "_get_num_items_in_batch": Override(
        "batch_samples device",
        "counts tokens, examples, pairs, ...: one number for each unit in place of the number of labels",
    ),
    "compute_loss": Override("model inputs return_outputs num_items_in_batch", "is the loss"),
    "log": Override("logs start_time", "adds objectives, agreement and cost, and the steps that were left out"),
    "prediction_step": Override(
        "model inputs prediction_loss_only ignore_keys",
        "runs both models, and adds up each objective per example; `Trainer` computes no loss without labels",
    ),
    "evaluation_loop": Override(
        "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "`eval_loss` over all examples: `Trainer` averages over batches, so that it depends on their size",
    ),
    # ---- training/guarding.py: GuardedTrainer, nothing that is NaN or infinite passes ----
    "_get_grad_norm": Override("model grad_norm", "the last place before a step where it can be left out (`on_nan`)"),
    "_init_training_state": Override(
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "goes on counting the steps left out; compares intervals given as shares of the training with a checkpoint's",
    ),
    "evaluate": Override(
        "eval_dataset ignore_keys metric_key_prefix",
        "refuses to choose the best model by a figure without a value: the last would be taken for the best",
    ),
    "_save_checkpoint": Override(
        "model trial",
        "checks that all is finite, seals with checksums, then removes older ones",
    ),
    "save_model": Override("output_dir _internal_call", "saves nothing that is not finite"),
    # ---- training/saving.py: SavingTrainer, an export is the student alone ----
    "_save": Override("output_dir state_dict", "keeps what objectives learn in checkpoints and out of exports"),
    "_load_from_checkpoint": Override("resume_from_checkpoint model", "loads what objectives have learned"),
    "_load_best_model": Override("", "the same, and refuses a damaged best model, where `Trainer` keeps the last one"),
    "create_model_card": Override(
        "language license tags model_name finetuned_from tasks dataset_tags dataset dataset_args",
        "leaves the report's model card as it is",
    ),
    # ---- training/batches.py: BatchingTrainer ----
    "_set_signature_columns_if_needed": Override("", "keeps columns that only the teacher or the layout reads"),
    "_get_dataloader": Override(
        "dataset description batch_size sampler_fn is_training dataloader_key",
        "lets the collator note what padding-free layers have to know of a batch",
    ),
    "_get_train_sampler": Override(
        "train_dataset", "groups by length by seed and epoch alone: the same steps after a resume, on N processes"
    ),
    "_get_eval_sampler": Override("eval_dataset", "keeps the order: predictions of two models are compared row by row"),
    "get_batch_samples": Override(
        "epoch_iterator num_batches device", "takes no half step at the end of data that has no length"
    ),
}

# Class attributes of `Trainer` with another value here.
ATTRIBUTES = {"loss_is_scaled_for_ga": "`compute_loss` divides by counts of the whole step; `Trainer` must not again"}

# Private methods and attributes of `Trainer` that ours call or read.
READ = (
    "_get_collator_with_removed_columns",
    "_get_output_dir",
    "_initial_global_step",
    "_prepare_inputs",
    "_remove_unused_columns",
    "_signature_columns",
    "_tr_loss",
    "_train_batch_size",
    "_trial",
)
