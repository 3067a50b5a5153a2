"""Questions about a trainer whose model is sharded by FSDP or DeepSpeed: is it, what to call, who saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_distill.models import sharding
from hf_distill.models.patching import replaced
from hf_distill.models.quantization import is_placed

Result = TypeVar("Result")


def engine(trainer: Trainer) -> str | None:
    """Return what shards the model, as `parallel.launched_engine` calls it; None for DDP, or one process."""
    if trainer.is_fsdp_enabled:
        return "FSDP"
    return "DeepSpeed" if trainer.is_deepspeed_enabled else None


def prepare_sharding(trainer: Trainer) -> None:
    """Settle how the engine will shard the student, where accelerate's own way fails or is inexact.

    - ZeRO-3 lets the first process save whole weights: without that, an export has none, and only a log says so.
    - Which layers FSDP2 shards one by one, if the policy is TRANSFORMER_BASED_WRAP and the user names none: those that
      Transformers does not split over devices (`_no_split_modules`), also of models inside the student. accelerate
      would take all of these classes; among them are BERT's embeddings, whose table it shards a second time on its own,
      and fails.
    - In which precision FSDP2's modules return tensors: as computed. The loss is computed inside the student's forward
      pass (`inside_forward`), and accelerate would round it to bf16.
    """
    trainer.is_deepspeed_enabled = _plugin(trainer) is not None  # the training before may have ended it
    if trainer.is_deepspeed_enabled:
        zero = _plugin(trainer).hf_ds_config.config.setdefault("zero_optimization", {})
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = _layers(trainer.model)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def _layers(student: Any) -> list[str]:
    named = {name for one in student.modules() for name in getattr(type(one), "_no_split_modules", None) or ()}
    tables = {_embeddings(one) for one in student.modules() if isinstance(one, PreTrainedModel)} - {None}
    layers = {type(one).__name__ for one in student.modules() if type(one).__name__ in named}
    holders = {type(one).__name__ for one in student.modules() if tables & set(one.modules())}
    return sorted(layers - holders)


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # a model without a table, such as one of images
        return None


@contextmanager
def preparing(trainer: Trainer) -> Iterator[None]:
    """Context manager around `Trainer`'s wrapping of the student: let FSDP2 shard a table that several modules share.

    accelerate shards the input embeddings, or them and the head, on their own. In T5 and BART encoder and decoder have
    the same table, and torch refuses one that is in two groups: there it stays with the rest of the model.
    """
    student: Any = trainer.model
    tables = [name for name in ("get_input_embeddings", "get_output_embeddings") if will_wrap_in_place(trainer)]
    if tables and isinstance(student, nn.Module):
        own = {getattr(student, name, lambda: None)() for name in tables}
        weights = {id(weight) for one in own if (weight := getattr(one, "weight", None)) is not None}
        holders = {one for one in student.modules() if weights & {id(each) for each in one._parameters.values()}}
        tables = tables if holders - own else []
    with ExitStack() as stack:
        for name in tables:
            stack.enter_context(replaced(student, name, lambda: None))
        if will_wrap_in_place(trainer):
            stack.enter_context(_loading_what_was_trained())
        yield


@contextmanager
def _loading_what_was_trained() -> Iterator[None]:
    """Context manager: load an optimizer that has no state of weights which no objective reaches, such as a pooler's.

    accelerate asks for a state of every weight that could be trained, and a resumed training would fail.
    """
    from accelerate.utils import fsdp_utils
    from transformers import trainer

    load = fsdp_utils.load_fsdp_optimizer
    options = fsdp_utils._prepare_sd_options

    def lenient(*args: Any, **kwargs: Any) -> Any:
        with replaced(fsdp_utils, "_prepare_sd_options", lambda plugin: replace(options(plugin), strict=False)):
            return load(*args, **kwargs)

    with replaced(trainer, "load_fsdp_optimizer", lenient):
        yield


def divides(trainer: Trainer) -> bool:
    """Return whether every process will hold a part of each weight only, while the student trains (FSDP, ZeRO-3)."""
    return will_wrap_in_place(trainer) or deepspeed_stage(trainer) == 3


def will_wrap_in_place(trainer: Trainer) -> bool:
    """Return whether the student itself becomes the sharded module (FSDP)."""
    return bool(trainer.is_fsdp_enabled)


def is_divided(trainer: Trainer) -> bool:
    """Return whether every process holds a part of each weight only now: not before the training, nor at its end."""
    model: Any = trainer.model
    return divides(trainer) and sharding.is_divided(model)


def saves_itself(trainer: Trainer) -> bool:
    """Return whether FSDP or DeepSpeed saves and loads all weights, including what objectives learned."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def is_held(trainer: Any) -> bool:
    """Return whether FSDP or DeepSpeed holds the student now: not before the training, nor at its end."""
    return trainer.deepspeed is not None if trainer.is_deepspeed_enabled else is_divided(trainer)


def loads_student(trainer: Trainer) -> bool:
    """Return whether the engine loads the student of a checkpoint itself, without `_load_from_checkpoint`."""
    return bool(trainer.is_deepspeed_enabled)


def is_wrapped(trainer: Trainer, model: nn.Module, student: nn.Module) -> bool:
    """Return whether `model` wraps `student`, so that its forward pass does more than the student's own."""
    return model is not student or is_divided(trainer)  # FSDP2 wraps in place


def to_evaluate(trainer: Trainer) -> Any:
    """Return the module to call for a forward pass of the student outside of training."""
    return trainer.model_wrapped if is_divided(trainer) else trainer.model


def finished(trainer: Trainer) -> Any:
    """Return the trainer's model without accelerate's changes: whole, and its forward pass no longer under autocast.

    accelerate leaves its autocast wrapper on the model, so that a measurement in float32 would measure bf16. It also
    marks the model as prepared, and would then not wrap it again for an evaluation in the precision of its training.
    With FSDP all processes must call this, and each needs memory for all weights.
    """
    if trainer.is_deepspeed_enabled:
        _end_deepspeed(trainer)
    wrapped: Any = trainer.model
    model = sharding.unwrapped(wrapped, autocast=False)
    sharding.undivide(model)
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def _end_deepspeed(trainer: Any) -> None:
    """Take the student out of the engine: whole in every process, and a model like any other."""
    sharding.leave_deepspeed(trainer.model)
    trainer.accelerator.free_memory()  # ends the engine
    trainer.deepspeed = trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.is_deepspeed_enabled = False


@contextmanager
def as_it_is(trainer: Any) -> Iterator[None]:
    """Context manager: evaluate or save a model that no engine holds, or not any more, as each process holds it.

    `Trainer` would have FSDP shard it, which accelerate refuses without an optimizer. It would make an engine of
    DeepSpeed to evaluate it, and cannot with ZeRO-2; and to save it, it would ask an engine for the weights.
    """
    model: Any = trainer.model
    if is_held(trainer) or not saves_itself(trainer):
        yield
        return
    if not is_placed(model, trainer.args.device):
        model.to(trainer.args.device)
    with replaced(trainer, "is_fsdp_enabled", False), replaced(trainer, "is_deepspeed_enabled", False):
        yield


@contextmanager
def in_own_precision(trainer: Any) -> Iterator[None]:
    """Context manager: move batches to the device as they are.

    With DeepSpeed, `Trainer` converts all that is not an integer to the precision of the weights: with bf16, the
    teacher's stored targets, the weights of examples, and values to predict would be rounded to three digits.
    """
    with replaced(trainer, "is_deepspeed_enabled", False):
        yield


def gathered_state(trainer: Trainer) -> dict[str, Any]:
    """Return all weights of a sharded student by name, in the process that saves it; all processes must call this.

    A weight that has several names (tied embeddings) is there under one of them, as `save_pretrained` wants it.
    """
    model: Any = trainer.model_wrapped
    state: dict[str, Any] = trainer.accelerator.get_state_dict(model) or {}
    tied: Any = getattr(trainer.model, "all_tied_weights_keys", None) or {}
    return {name: value for name, value in state.items() if tied.get(name) not in state}


def fsdp_version(trainer: Trainer) -> int | None:
    """Return the version of FSDP; None without FSDP."""
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return None if plugin is None else int(plugin.fsdp_version)


def writes_shards(trainer: Trainer) -> bool:
    """Return whether a checkpoint holds the weights as one file a process (`SHARDED_STATE_DICT`), and no whole ones."""
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return plugin is not None and "SHARDED" in str(plugin.state_dict_type)


def _plugin(trainer: Trainer) -> Any:
    return getattr(trainer.accelerator.state, "deepspeed_plugin", None)


def deepspeed_stage(trainer: Trainer) -> int | None:
    """Return DeepSpeed's ZeRO stage; None without DeepSpeed."""
    return int(_plugin(trainer).zero_stage) if trainer.is_deepspeed_enabled else None


def deferring_sync(trainer: Trainer, model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context manager for a micro-batch after which gradients are not exchanged yet, as `Trainer` has it.

    DeepSpeed's engine knows by itself, from the flag that accelerate passes to its backward pass.
    """
    if trainer.is_deepspeed_enabled or trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False):
        return nullcontext()
    found: AbstractContextManager[Any] = trainer.accelerator.no_sync(model=model)
    return found


def has_loss_scale(trainer: Trainer) -> bool:
    """Return whether the loss is scaled (float16), by `fp16: true`, an own accelerator or `accelerate launch`."""
    return "fp16" in (trainer.args.mixed_precision, trainer.accelerator.mixed_precision)


def with_weights(modules: Iterable[nn.Module], compute: Callable[[], Result]) -> Result:
    """Return `compute()`, which reads weights of some modules by hand: with ZeRO-3, inside their forward passes.

    There the engine holds the weights whole, and gives them their gradients. Modules whose weights are not divided stay
    as they are.

    Args:
        modules: Whose own weights are read.
        compute: Returns a tensor, or a tuple of tensors. It may call the modules.
    """
    for module in modules:
        if sharding.is_partitioned(module):
            compute = _inside(module, compute)
    return compute()


def _inside(module: nn.Module, compute: Callable[[], Result]) -> Callable[[], Result]:
    """Return a function that runs another inside the forward pass of a module."""

    def called() -> Result:
        def forward() -> Result:
            put_back()  # `compute` may call the module
            return compute()

        with replaced(module, "forward", forward) as put_back:
            result: Result = module()
        return result

    return called
