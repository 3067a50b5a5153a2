"""Training arguments that a run uses if its recipe does not set them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill import parallel

if TYPE_CHECKING:
    import torch

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.teachers.base import FineTuning

# A run must be resumable, and its report shows curves; Transformers' own defaults save and log only every 500 steps.
TRAINING_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.02,
}
# A teacher's fine-tuning uses the recipe's training arguments, except these and those that begin with them.
_LEARNING = ("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler", "warmup", "weight_decay")
SAMPLING = "train_sampling_strategy"
GROUPED = "group_by_length"


def training_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the default training arguments of a run.

    If the task's examples differ in length, batches group examples of similar length, since a batch is as wide as its
    longest example. They do not if an objective compares the examples of a batch with each other: their lengths should
    not decide which ones are compared.
    """
    grouped = recipe.task.groups_by_length and not within_batch(recipe)
    return {**TRAINING_DEFAULTS, **({SAMPLING: GROUPED} if grouped else {})}


def fine_tuning(
    recipe: Recipe, shared: Mapping[str, Any], how: FineTuning, metrics: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments of a teacher's fine-tuning: its own, and the run's except length and learning rate.

    What its student learns from does not change it: its batches group examples of similar length also where an
    objective of the student compares the examples of a batch. Else another objective would mean another teacher.

    Args:
        recipe: The recipe.
        shared: The run's training arguments.
        how: How the teacher is trained.
        metrics: Metrics that its evaluations have, the headline first; empty if not known.
    """
    order = {SAMPLING: GROUPED} if recipe.task.groups_by_length and SAMPLING not in recipe.training else {}
    others = {key: value for key, value in shared.items() if not key.startswith(_LEARNING)}
    return how.arguments({**others, **order}, metrics)


def within_batch(recipe: Recipe) -> list[str]:
    """Return the names of the objectives that compare the examples of a batch with each other."""
    return list(
        dict.fromkeys(one.name for stage in recipe.plan for one in stage.objectives if one.needs().within_batch)
    )


def sampling_remark(recipe: Recipe) -> str | None:
    """Return a line about the order of the examples; None if the recipe sets it, or if the task has no such default."""
    silent = any(SAMPLING not in {**recipe.training, **stage.training} for stage in recipe.plan)
    if not silent or not recipe.task.groups_by_length:
        return None
    if names := within_batch(recipe):
        return (
            f"batches hold examples of any length ({SAMPLING}: random, though {GROUPED} is the default in "
            f"{recipe.task.name}), so that {', '.join(names)} can compare them"
        )
    return f"batches group examples of similar length ({SAMPLING}: random mixes them)"


# Instructions that multiply in bf16, as `torch.cpu.get_capabilities` names them. Every CPU *can* compute in bf16, but
# without one of these it is several times slower than in fp32. Measured on a CPU with avx512_bf16 and without AMX, a
# quickstart-like training of 20 steps takes 5.2 s in bf16 and 8.5 s in fp32.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
# Values of ONEDNN_MAX_CPU_ISA with which oneDNN uses only older instructions, none of which multiplies in bf16.
_HELD_BACK = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Precision:
    """Whether bf16 is faster than fp32 on this machine, and the reason to print."""

    fast: bool
    reason: str


def fast_bf16(use_cpu: bool = False) -> Precision:
    """Return whether training in bf16 is faster than in fp32 here: on the accelerator, or else on the CPU.

    This is read from the hardware's features. Nothing is timed, so that the result does not depend on other programs.

    Args:
        use_cpu: Check the CPU even if there is an accelerator.
    """
    import torch

    device = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return _cpu() if device is None else _accelerator(device)


def resolve_bf16(training: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Replace `bf16: "auto"` by true or false; return the new arguments and a line to print, or None if not "auto".

    `fp16: true` and the `--mixed_precision` of `accelerate launch` are explicit and have priority. All processes of a
    run are assumed to be on machines of the same kind.

    Args:
        training: Keyword arguments of `TrainingArguments`; not changed.

    >>> resolve_bf16({"bf16": "auto", "fp16": True})
    ({'bf16': False, 'fp16': True}, 'bf16: off (fp16 is asked for)')
    >>> resolve_bf16({"bf16": False})
    ({'bf16': False}, None)
    """
    if training.get("bf16") != "auto":
        return {**training}, None
    launched = parallel.launched_precision()
    if training.get("fp16"):
        found = Precision(False, "fp16 is asked for")
    elif launched != "no":
        found = Precision(launched == "bf16", f"accelerate launch --mixed_precision {launched}")
    else:
        found = fast_bf16(bool(training.get("use_cpu")))
    return {**training, "bf16": found.fast}, f"bf16: {'on' if found.fast else 'off'} ({found.reason})"


def _accelerator(device: torch.device) -> Precision:
    """Return whether an accelerator has bf16 units; emulated bf16 (CUDA before Ampere) is slower than fp32."""
    import torch
    from transformers.utils.import_utils import is_torch_bf16_gpu_available

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this {device.type} device"
    if device.type == "mps":  # reported as supported where Metal emulates it (M1, M2)
        return Precision(False, "emulated on some Apple chips; write true where yours has it")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(is_torch_bf16_gpu_available())
    return Precision(fast, f"{name} {'has' if fast else 'has no'} bf16 units")


def _cpu() -> Precision:
    """Return whether the CPU has instructions for bf16."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in _HELD_BACK:
        return Precision(False, f"ONEDNN_MAX_CPU_ISA={limit} leaves out the instructions for it")
    found = next((name for name in INSTRUCTIONS if _capabilities().get(name)), None)
    return Precision(found is not None, f"this CPU has {found or 'no instructions for it'}")


def _capabilities() -> Mapping[str, Any]:
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # Before torch 2.10, for x86 only. Every CPU with AMX has this instruction, too.
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
