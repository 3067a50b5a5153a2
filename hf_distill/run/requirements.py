"""Checks of training arguments before anything is loaded: packages that they need, and values that contradict.

Transformers would find these mistakes only when it makes the trainer or the optimizer, or never.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_distill.errors import UserError, did_you_mean
from hf_distill.locations import check_lengths, is_here, missing
from hf_distill.mistakes import join
from hf_distill.run.training_defaults import fine_tuning, training_defaults
from hf_distill.training.labelled import on_labels_alone
from hf_distill.training.rollback import lacking
from hf_distill.training_args import DistillationArguments

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

# Arguments that depend on the machine of the run, which may be another one than this.
_OF_THE_MACHINE = ("tf32", "deepspeed", "torch_compile", "torch_compile_backend", "torch_compile_mode")
# Finds the package that an optimizer lacks in the different messages of Transformers.
_LACKING = re.compile(r"(?:install|have|from) `?(?!https)([A-Za-z][\w-]*)")


class UnplacedArguments(DistillationArguments):
    """Training arguments whose values are checked without a device and without connecting processes."""

    distributed_state = None
    _n_gpu = 0

    @property
    def _setup_devices(self) -> torch.device:
        return torch.device("cpu")


def output_directory(recipe: Recipe) -> Path:
    """Return the output directory of a run.

    Raises:
        UserError: Its name is too long for a file system.
    """
    with recipe.locate("training"):
        check_lengths(str(recipe.training["output_dir"]), "output_dir")
    return Path(recipe.training["output_dir"]).expanduser()


def check_trainings(recipe: Recipe) -> None:
    """Refuse training arguments that contradict each other, or need a package that is not installed.

    Raises:
        UserError: There are mistakes; one line for each.
    """
    mistakes: dict[str, str] = {}
    for path, own, arguments in _trainings(recipe):
        for key, text in _mistakes(arguments):
            # If the stage does not set the key itself, the mistake is in the recipe's `training`.
            place = join(path, key) if key in own else join("training", key) if key else path
            mistakes.setdefault(place, text)
    if mistakes:
        raise UserError(*(line for path, text in mistakes.items() for line in recipe.mistake(path, text).mistakes))


def check_steps(recipe: Recipe, rows: int, labelled: int, processes: int) -> None:
    """Refuse a training without any step: its model would be saved unchanged, and reported as trained.

    Args:
        recipe: The recipe.
        rows: Number of rows of the train split.
        labelled: Number of rows with a label.
        processes: Number of processes of the run.

    Raises:
        UserError: Incomplete batches are dropped, and there is no complete one; or the student needs more steps.
    """
    alone = recipe.report.baseline or bool(recipe.teacher.fine_tuning)
    alone = alone or any(on_labels_alone(stage.objectives) for stage in recipe.plan)
    for path, own, arguments in _trainings(recipe):
        size = int(arguments.get("per_device_train_batch_size", 8)) * processes
        # A training on labels alone uses only the rows with a label.
        has, least = ("examples with a label", labelled) if alone and labelled < rows else ("examples", rows)
        if arguments.get("dataloader_drop_last") and least < size:
            where = path if "dataloader_drop_last" in own else "training"
            raise recipe.mistake(
                join(where, "dataloader_drop_last"),
                f"incomplete batches are dropped, and the train split has {least:,} {has} for batches of {size:,}: "
                "nothing would be trained. Remove it, or make the batches smaller (per_device_train_batch_size).",
            )

    stage = recipe.plan[0]
    own_rows = labelled if labelled and (recipe.report.baseline or on_labels_alone(stage.objectives)) else rows
    with recipe.locate("student"):
        recipe.student.check_steps(steps_of(next(_trainings(recipe))[2], own_rows, processes))


def repeated_rows(recipe: Recipe, rows: int, processes: int) -> str | None:
    """Return a line about the last step of an epoch, if accelerate fills it so that all processes have as many rows.

    Args:
        recipe: The recipe.
        rows: Number of rows of the train split.
        processes: Number of processes of the run.
    """
    arguments = next(_trainings(recipe))[2]
    more = -rows % (int(arguments.get("per_device_train_batch_size", 8)) * processes)
    if processes == 1 or not more or arguments.get("dataloader_drop_last"):
        return None
    return (
        f"the last step of each epoch repeats {more:,} row{'s' * (more != 1)}, so that all processes have as many "
        "(training.dataloader_drop_last: true leaves that step out)"
    )


def steps_of(arguments: Mapping[str, Any], rows: int, processes: int) -> int:
    """Return the number of optimiser steps of a training, as `Trainer` counts them."""
    if (steps := int(arguments.get("max_steps", -1))) > 0:
        return steps
    size = int(arguments.get("per_device_train_batch_size", 8)) * processes
    batches = rows // size if arguments.get("dataloader_drop_last") else math.ceil(rows / size)
    each = max(math.ceil(batches / int(arguments.get("gradient_accumulation_steps", 1))), 1)
    return math.ceil(float(arguments.get("num_train_epochs", 3.0)) * each)


def _trainings(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Yield, for each training of a run: key path of its own arguments, these arguments, and all with defaults."""
    shared = {**training_defaults(recipe), **recipe.training}
    for index, stage in enumerate(recipe.plan):
        own = stage.training if recipe.stages else recipe.training
        yield join(recipe.stage_path(index), "training"), own, {**shared, **stage.training}
    for path, how in recipe.teacher.fine_tuning.items():
        yield join("teacher", path), how.training, fine_tuning(recipe, shared, how)


def _mistakes(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and message of each mistake; the key is empty if it is not known."""
    # Copied, since Transformers writes defaults into the mappings that are passed.
    values = deepcopy({key: value for key, value in arguments.items() if key not in _OF_THE_MACHINE})
    try:
        args = UnplacedArguments(**{**values, "bf16": False, "bf16_full_eval": False, "use_cpu": True})
    except Exception as error:  # accelerate's own classes and configuration files raise errors of any type
        text = " ".join(str(error).split())
        yield next((key for key in arguments if _names(text, key)), ""), text
        return
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        yield "num_train_epochs", f"{args.num_train_epochs:g}: nothing would be trained. Wanted more than 0."
    if (why := lacking(args)) is not None:
        yield "on_nan", why
    yield from _reporting(args)
    yield from _optimizer(args)
    yield from _scheduler(args)
    if args.use_liger_kernel and not is_here("liger_kernel"):
        yield "use_liger_kernel", missing("liger_kernel", "it")
    if arguments.get("deepspeed") and not is_here("deepspeed"):
        yield "deepspeed", missing("deepspeed", "it")


def _names(text: str, key: str) -> bool:
    """Return whether an error names an argument, or the class that its value becomes (`AcceleratorConfig`)."""
    return re.search(rf"\b({re.escape(key)}|{re.escape(key.title().replace('_', ''))})\b", text) is not None


def _reporting(args: DistillationArguments) -> Iterator[tuple[str, str]]:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    available: Any = get_available_reporting_integrations  # it has no types
    here = available() if args.report_to else []
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(str(name), [*INTEGRATION_TO_CALLBACK, "all", "none"])
            yield "report_to", f"Transformers reports to no '{name}'.{hint}"
        elif name not in here:
            # The constructor of a callback raises an error if its package is missing; its __del__ would raise another.
            asked = type(name, (INTEGRATION_TO_CALLBACK[name],), {"__del__": lambda self: None})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    asked()
            except Exception as error:
                text = " ".join(str(error).split())
                yield "report_to", missing(name, f"'{name}'") if "to be installed" in text else f"'{name}': {text}"


def _optimizer(args: DistillationArguments) -> Iterator[tuple[str, str]]:
    from transformers import Trainer

    name = str(getattr(args.optim, "value", args.optim))
    if args.optim_args and not all(len(part.split("=")) == 2 for part in args.optim_args.split(",")):
        yield "optim_args", f"wanted key=value, key=value, found '{args.optim_args}'."
        return
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        if "pass a" in text and "model" in text:  # only the model is missing, which is not there yet
            return
        package = _LACKING.search(text)
        lacks = isinstance(error, ImportError) or "nstall" in text or "failed to import" in text
        yield "optim", missing(package[1].replace("-", "_"), f"'{name}'") if lacks and package else f"'{name}': {text}"


def _scheduler(args: DistillationArguments) -> Iterator[tuple[str, str]]:
    from transformers import get_scheduler

    settings: Any = args.lr_scheduler_kwargs or {}  # a mapping, also if it was given as JSON
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=settings,
        )
    except (ValueError, TypeError) as error:
        key = "lr_scheduler_kwargs" if args.lr_scheduler_kwargs else "lr_scheduler_type"
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        yield key, f"'{name}' cannot be made with these settings: {' '.join(str(error).split())}"
