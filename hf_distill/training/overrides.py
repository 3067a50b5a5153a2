"""The methods and attributes of `transformers.Trainer` that the package overrides or reads, and why.

Most of them are private and may change with any release: check this list with each update of Transformers.
`tests/training/test_overrides.py` compares it with the installed version and with our classes, so that a renamed method
fails a test; otherwise ours would silently never be called.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Override:
    """A method of `Trainer` that one of our classes replaces.

    Attributes:
        takes: Names of its parameters in `Trainer`, without `self`.
        why: What it does, or what would go wrong without it.
    """

    takes: str
    why: str


OVERRIDES: dict[str, Override] = {
    # ---- trainer.py: DistillationTrainer ----
    "__init__": Override(
        "model args data_collator train_dataset eval_dataset processing_class model_init compute_loss_func "
        "compute_metrics callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics",
        "takes the teacher and the objectives; refuses `compute_loss_func`, which would be ignored",
    ),
    "_build_accelerator_args": Override(
        "**kwargs", "DDP must expect parameters without a gradient if no objective reaches the head"
    ),
    "train": Override(
        "resume_from_checkpoint trial ignore_keys_for_eval", "undoes what Liger changes in the student's classes"
    ),
    "hyperparameter_search": Override(
        "hp_space compute_objective n_trials direction backend hp_name **kwargs",
        "compares trials by the user's metrics or the loss; `Trainer` would add agreement and objectives up",
    ),
    "_inner_training_loop": Override(
        "batch_size args resume_from_checkpoint trial ignore_keys_for_eval",
        "resets the sums of an earlier training, and prepares a new student that `model_init` has made",
    ),
    "_get_num_items_in_batch": Override(
        "batch_samples device",
        "counts tokens, examples, pairs, ...: one number for each unit in place of the number of labels",
    ),
    "training_step": Override(
        "model inputs num_items_in_batch", "computes the gradients of models that train beside the student"
    ),
    "compute_loss": Override("model inputs return_outputs num_items_in_batch", "computes the distillation loss"),
    "log": Override("logs start_time", "adds objectives, agreement, cost, and the number of skipped steps"),
    "prediction_step": Override(
        "model inputs prediction_loss_only ignore_keys",
        "runs both models, and adds up each objective per example; `Trainer` computes no loss without labels",
    ),
    "evaluation_loop": Override(
        "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "computes `eval_loss` over all examples: `Trainer` averages over batches, so that it depends on their size",
    ),
    # ---- training/guarding.py: GuardedTrainer refuses NaN and infinite values ----
    "_get_grad_norm": Override("model grad_norm", "the last place before a step where it can be skipped (`on_nan`)"),
    "_init_training_state": Override(
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "continues the count of skipped steps; compares intervals given as shares of the training with a checkpoint's",
    ),
    "evaluate": Override(
        "eval_dataset ignore_keys metric_key_prefix",
        "refuses to choose the best model by a metric that is NaN: `Trainer` would take the last model for the best",
    ),
    "_save_checkpoint": Override(
        "model trial",
        "checks that all is finite, adds checksums, then removes older checkpoints",
    ),
    "save_model": Override("output_dir _internal_call", "refuses to save a model that is not finite"),
    # ---- training/saving.py: SavingTrainer exports the student alone ----
    "_save": Override("output_dir state_dict", "saves what objectives learn with checkpoints, but not with exports"),
    "_prepare_for_training": Override(
        "max_steps train_dataloader resume_from_checkpoint", "loads no code with the states of a checkpoint"
    ),
    "_load_rng_state": Override("checkpoint", "the same, with one line that says so"),
    "_load_from_checkpoint": Override("resume_from_checkpoint model", "loads what objectives have learned"),
    "_load_optimizer_and_scheduler": Override(
        "checkpoint", "loads what is stored beside the student; with DeepSpeed `_load_from_checkpoint` is not called"
    ),
    "_load_best_model": Override("", "the same, and refuses a damaged best model; `Trainer` would use the last model"),
    "create_model_card": Override(
        "language license tags model_name finetuned_from tasks dataset_tags dataset dataset_args",
        "does not overwrite the report's model card",
    ),
    # ---- training/batches.py: BatchingTrainer ----
    "_prepare_input": Override("data", "keeps stored targets and weights in their precision, which DeepSpeed rounds"),
    "_set_signature_columns_if_needed": Override("", "keeps columns that only the teacher or the layout reads"),
    "_get_dataloader": Override(
        "dataset description batch_size sampler_fn is_training dataloader_key",
        "lets the collator add what layers without padding need to know about a batch",
    ),
    "_get_train_sampler": Override(
        "train_dataset", "groups by length, by seed and epoch alone: the same steps after a resume and on N processes"
    ),
    "_get_eval_sampler": Override("eval_dataset", "keeps the order: predictions of two models are compared row by row"),
    "floating_point_ops": Override("inputs", "counts all micro-batches that `max_tokens_per_batch` makes of one"),
    "_track_num_input_tokens": Override("inputs", "the same, for `include_num_input_tokens_seen`"),
    "get_batch_samples": Override(
        "epoch_iterator num_batches device", "takes no incomplete step at the end of data that has no length"
    ),
}

# Class attributes of `Trainer` with another value here.
ATTRIBUTES = {"loss_is_scaled_for_ga": "`compute_loss` divides by counts of the whole step; `Trainer` must not do so"}

# Private methods and attributes of `Trainer` that ours call or read.
READ = (
    "_get_collator_with_removed_columns",
    "_get_output_dir",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_prepare_inputs",
    "_remove_unused_columns",
    "_signature_columns",
    "_total_loss_scalar",
    "_tr_loss",
    "_train_batch_size",
    "_trial",
)
