"""`DistillationArguments`: `transformers.TrainingArguments` with a few more arguments, other defaults, and checks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal

import torch
from accelerate.utils import is_torch_xla_available
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.import_utils import is_liger_kernel_available

from hf_distill.errors import UserError
from hf_distill.metrics.score import greater_is_better
from hf_distill.mistakes import former_name
from hf_distill.models import sharding


def _say_new_names(cls: type[TrainingArguments]) -> Any:
    """Class decorator: if an argument's former name is given, the error names the new one."""
    construct = cls.__init__

    @wraps(construct)
    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if former := former_name(name, (item.name for item in fields(cls))):
                raise TypeError(f"{cls.__name__}: unknown argument. {former}")
        construct(self, *args, **kwargs)

    cls.__init__ = constructed  # type: ignore[method-assign]
    return cls


@_say_new_names
@dataclass
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments` with four more arguments, four other defaults, and checks.

    The loss itself is described by the objectives, not here.

    Defaults that differ: `logging_nan_inf_filter` is false (it logs a loss that is NaN as 0), `greater_is_better` is
    false for objectives and errors too, `hub_strategy` is `"end"` (only a finished student is published) and `use_cpu`
    is true on a machine without an accelerator (`bf16=True` then works on CPUs, and processes started by `torchrun` on
    a CPU-only machine find each other).

    Attributes:
        compile_loss: Compile the loss over a vocabulary's logits, with its gradient. `auto`: on a GPU with Triton, for
            objectives of this package; true: also on a CPU, and for objectives of your own; false: never. Compiling
            takes up to a minute, once. Without a compiler, or if it fails, the loss is computed as usual.
        max_tokens_per_batch: Largest number of tokens that are computed at once, with padding: examples x longest. Each
            process splits its examples of a step, `per_device_train_batch_size x gradient_accumulation_steps`, into as
            few micro-batches as that allows, and its eval batches too. Steps, loss and gradient stay the same; memory
            and speed change. Default: no limit.
        on_nan: What to do with a step whose loss or gradient is NaN or infinite. `stop`: end the training with one line
            that says where it was. `skip`: leave the step out and count it (`skipped_steps`); stop if more than a tenth
            of the steps were left out. It reads one number from the device in every step. `rollback`: return to the
            last checkpoint and leave the step out there; if the training fails again after the same checkpoint, leave
            out all steps since; it gives up after three returns to one checkpoint, or above a tenth of the steps.
        padding_free: Run the layers of both models without padding. `auto`: in batches that become at least 10 %
            smaller, for models that can; true: wherever that saves anything; false: never.

    Raises:
        ValueError: A value is wrong, or a distillation does not support it; the message says what to use instead.
        TypeError: An argument is unknown.
    """

    # Not `bool | ...`: HfArgumentParser would take that for a flag, and fail on its default.
    padding_free: Literal["auto", True, False] = field(
        default="auto",
        metadata={"help": "Run the layers of both models on tokens alone, without padding; auto: where it pays."},
    )
    hub_strategy: HubStrategy | str = HubStrategy.END
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Largest number of tokens computed at once; a step is split into as few parts as it allows."},
    )
    on_nan: Literal["stop", "skip", "rollback"] = field(
        default="stop",
        metadata={
            "help": "A step whose loss or gradient is not finite: stop the training, skip the step, or roll back to "
            "the last checkpoint and skip it there."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Not used: a loss that is not finite is never logged; on_nan says what happens to its step."},
    )
    # Not `bool | ...`: HfArgumentParser would take that for a flag, and fail on its default.
    compile_loss: Literal["auto", True, False] = field(
        default="auto",
        metadata={"help": "Compile the loss over a vocabulary: true, false, or 'auto', on a GPU with Triton."},
    )

    def __post_init__(self) -> None:
        """Check, then let Transformers do its own checks."""
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True
        check_arguments(self)
        if self.logging_nan_inf_filter:
            raise ValueError(
                "logging_nan_inf_filter would replace a loss that is NaN in the logs; leave it off. on_nan says what "
                "happens to such a step: 'stop', 'skip' or 'rollback'."
            )
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = _is_better_when_greater(self.metric_for_best_model.removeprefix("eval_"))
        super().__post_init__()  # type: ignore[no-untyped-call]
        sharding.load_models_whole()


def _is_better_when_greater(figure: str) -> bool:
    """Return whether a figure is better when greater.

    Transformers takes every figure for that whose name does not end in `loss`, also `objective/kl` and `mse`.
    """
    if figure.endswith("loss") or figure.startswith("objective/"):
        return False
    try:
        return greater_is_better(figure)
    except UserError:  # not one of our metrics: the agreement, or a name of the user's own
        return True


def check_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that `DistillationTrainer` would ignore, or that would make its loss or logs wrong.

    Raises:
        ValueError: There is one; the message says what is wrong and what to use instead.
    """
    if args.label_smoothing_factor != 0:
        raise ValueError("label_smoothing_factor is not applied to a distillation loss; leave it at 0.")
    if (compile_loss := getattr(args, "compile_loss", "auto")) not in (True, False, "auto"):
        raise ValueError(f"compile_loss must be true, false or 'auto', found {compile_loss!r}.")
    if args.ignore_data_skip:
        raise ValueError(
            "ignore_data_skip=True would train a resumed run on other examples than an uninterrupted one; leave it out."
        )
    if not args.average_tokens_across_devices:
        raise ValueError(
            "average_tokens_across_devices=False makes the loss depend on the number of processes; leave it on."
        )
    if "loss" in args.include_for_metrics:
        raise ValueError(
            "include_for_metrics=['loss'] asks for the loss of every batch, which is not computed; `eval_loss` and "
            "`eval_objective/...` are taken over the whole data set. Remove it."
        )
    if args.hub_token is not None:
        raise ValueError(
            "hub_token would be written to training_args.bin as plain text. Set the environment variable HF_TOKEN, or "
            "run `hf auth login` instead."
        )
    if (on_nan := getattr(args, "on_nan", "stop")) not in ("stop", "skip", "rollback"):
        raise ValueError(f"on_nan must be 'stop', 'skip' or 'rollback', found {on_nan!r}.")
    limit = getattr(args, "max_tokens_per_batch", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"max_tokens_per_batch must be a number of tokens of at least 1, found {limit!r}.")
    sampling = args.train_sampling_strategy
    if limit is not None and getattr(sampling, "value", sampling) == "batch_rebalance":
        raise ValueError(
            "max_tokens_per_batch and batch_rebalance both choose micro-batches by length. Leave one of the two out."
        )
    padding_free = getattr(args, "padding_free", "auto")
    if padding_free not in (True, False, "auto"):
        raise ValueError(f"padding_free must be true, false or 'auto', found {padding_free!r}.")
    if padding_free is True and args.torch_compile:
        raise ValueError(
            "padding_free is true, but torch_compile would compile again for every shape. Leave one of the two out."
        )
    if args.push_to_hub and HubStrategy(args.hub_strategy) is not HubStrategy.END:
        raise ValueError(
            "hub_strategy must be 'end': only the finished student is published. Use DistillationArguments."
        )


def check_devices(args: TrainingArguments) -> None:
    """Refuse several GPUs in one process, and Liger's kernels without a GPU or without Liger.

    Raises:
        ValueError: The message says how to start one process per GPU, or what is missing.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported. Start one process per GPU with "
            "`accelerate launch ...`, or hide the others with CUDA_VISIBLE_DEVICES."
        )
    if args.use_liger_kernel and args.device.type == "cpu":
        raise ValueError("use_liger_kernel needs a GPU, and this run is on the CPU. Remove it.")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("use_liger_kernel needs Liger, which is not installed: `pip install liger-kernel`.")
