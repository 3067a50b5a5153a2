"""Models that are wrapped, or divided among processes: their weights (FSDP2, ZeRO-3), or their layers (tensors)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_distill import parallel

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def unwrapped(model: nn.Module, *, autocast: bool = True) -> nn.Module:
    """Return a model without the wrappers of DDP, FSDP and DeepSpeed; that of `torch.compile` stays.

    Args:
        model: The model, wrapped or not.
        autocast: Whether accelerate's own forward method, which runs under autocast, stays.
    """
    from accelerate.utils import extract_model_from_parallel

    inside: nn.Module = extract_model_from_parallel(model, keep_fp32_wrapper=autocast, keep_torch_compile=True)
    return inside


def inside_wrapper(model: nn.Module) -> nn.Module | None:
    """Return the module inside a `DataParallel`, DDP or FSDP wrapper; None if `model` is not such a wrapper."""
    from torch import nn

    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model._modules["module"]
    return model._modules.get("_fsdp_wrapped_module")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, also of a sharded one (`DTensor`); all processes must call this."""
    found: Any = tensor
    return found.full_tensor() if hasattr(found, "full_tensor") else tensor


def shape(tensor: Tensor) -> torch.Size:
    """Return the shape of a whole tensor, also of a weight that ZeRO-3 divides."""
    found: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return found


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor in this process (of a `DTensor`, or a weight that ZeRO-3 divides); else all of it."""
    found: Any = tensor
    if getattr(found, "ds_tensor", None) is None or found.numel() == found.ds_numel:
        return found.to_local() if hasattr(found, "to_local") else tensor
    part: Tensor = found.ds_tensor.detach()
    filled = found.ds_numel - found.get_partition_rank() * part.numel()  # the end of the last part is never written
    return part[: max(0, min(filled, part.numel()))]


# ---- Models whose weights are divided among processes ----------------------------------------------------------------


def is_divided(model: nn.Module) -> bool:
    """Return whether FSDP2 or ZeRO-3 divides the weights of a model now."""
    return bool(divided_modules(model)) or any(map(is_partitioned, model.modules()))


def divided_modules(model: nn.Module) -> list[Any]:
    """Return the modules of a model whose weights FSDP2 divides, each with its own; none if it divides nothing."""
    if parallel.processes() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [one for one in model.modules() if isinstance(one, FSDPModule)]


def undivide(model: nn.Module) -> None:
    """Undo in place what FSDP2 did to a model: every process then holds all of its weights as plain tensors.

    What accelerate put around layers for activation checkpointing goes too. All processes must call this. It does
    nothing to a model that is not divided.
    """
    divided = divided_modules(model)
    for module in divided:
        module.reshard()
    weights = _whole_weights(model) if divided else {}
    for module in model.modules() if divided else ():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = weights[one]
    for module in divided:
        _undo(module)
    for name, module in [*model.named_modules()] if divided else ():
        if (inside := getattr(module, "_checkpoint_wrapped_module", None)) is not None:
            model.set_submodule(name.replace("_checkpoint_wrapped_module.", ""), inside)


def _whole_weights(model: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Return a whole parameter for each parameter; a tied one is one again."""
    from torch import nn

    found = {}
    for one in model.parameters():
        found[one] = nn.Parameter(whole(one.detach()), requires_grad=one.requires_grad)
    return found


def _undo(module: Any) -> None:
    """Remove what `fully_shard` added to a module: its hooks, its state and its class."""
    from torch.distributed import _composable_state as composable
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

    state = module._get_fsdp_state()
    hooks = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        hooks += [
            *group._module_to_pre_save_state_dict_hook_handle.values(),
            *group._module_to_pre_load_state_dict_hook_handle.values(),
        ]
    for hook in hooks:
        hook.remove()
    composable._module_state_mapping.pop(module, None)
    for key in (STATE_KEY, REGISTRY_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params"):
        module.__dict__.pop(key, None)
    module.__class__ = type(module).__mro__[type(module)._orig_cls_mro_index]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Context manager: let a process run a divided model by itself; until the end each holds all of its weights.

    All processes must enter and leave it together. In between they may run the model as often as they like, without a
    gradient.
    """
    with _unsharded(model), _gathered(model.parameters()), _without_hooks(model):
        yield


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Context manager: hold weights that FSDP2 divides whole."""
    divided = divided_modules(model)
    groups = [group for module in divided for group in module._get_fsdp_state()._fsdp_param_groups]
    after = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None  # what a forward pass does with the weights: it leaves them whole
        for module in divided:
            module.unshard()
        yield
    finally:
        for group, before in zip(groups, after, strict=True):
            group.post_forward_mesh_info = before
        for module in divided:
            module.reshard()


# ---- Models whose weights DeepSpeed divides --------------------------------------------------------------------------


def load_models_whole() -> None:
    """Have Transformers load models whole; after a configuration of ZeRO-3 was read, it would divide each at once.

    Students are made of weights that are read, and the teacher runs in every process by itself. What is to be divided,
    DeepSpeed divides when training begins. Call this after whatever may have read a configuration.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def is_partitioned(module: nn.Module) -> bool:
    """Return whether ZeRO-3 divides a module's own weights: they are whole only in its forward pass."""
    return any(hasattr(one, "ds_id") for one in module._parameters.values())


@contextmanager
def _gathered(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context manager: hold weights that ZeRO-3 divides whole in every process, for reading."""
    divided = [one for one in weights if hasattr(one, "ds_id")]
    if not divided:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(divided):
        yield


def leave_deepspeed(model: nn.Module) -> None:
    """Give a model whole weights of its own again, after DeepSpeed has trained it; all processes must call this."""
    from torch import nn

    own: dict[int, nn.Parameter] = {}
    for one in model.parameters():
        if hasattr(one, "ds_id"):
            with _gathered([one]):
                own[id(one)] = nn.Parameter(one.detach().clone(), requires_grad=one.requires_grad)
        else:
            one.data, one.grad = one.data.clone(), None  # it was a view of a buffer that held several
    for module in model.modules():
        _take_hooks(module)
        for name in [name for name in vars(module) if name.startswith("ds_") or name in _OF_DEEPSPEED]:
            delattr(module, name)  # another training would take it for its own
        module._parameters = {name: own.get(id(one), one) for name, one in module._parameters.items()}


def _take_hooks(module: nn.Module) -> list[tuple[dict[int, Any], dict[int, Any]]]:
    """Remove DeepSpeed's hooks from a module; return each dictionary of hooks as it was."""
    taken = []
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        taken.append((hooks, dict(hooks)))
        for key in [key for key, hook in hooks.items() if hook.__module__.startswith("deepspeed.")]:
            del hooks[key]
    return taken


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Context manager: run a model without DeepSpeed's hooks, which would divide its weights again."""
    taken = [one for module in model.modules() for one in _take_hooks(module)]
    try:
        yield
    finally:
        for hooks, before in taken:
            hooks.clear()
            hooks.update(before)


_OF_DEEPSPEED = (
    "pre_bwd_fn",
    "post_bwd_fn",
    "applied_pre_backward_ref_cnt",
    "_external_params",
    "_original_parameters",
)


# ---- Models whose layers are split over processes (tensor parallelism) -----------------------------------------------


def split_over(model: nn.Module) -> Any:
    """Return the group of processes over which the layers of a model are split; None if each process has whole layers.

    All of them have to run it together, on the same batch.
    """
    if (getattr(model, "_tp_size", None) or 1) == 1:
        return None
    meshes = (getattr(one, "device_mesh", None) for one in model.parameters())
    mesh = next(one for one in meshes if one is not None)
    return mesh["tp"].get_group() if len(mesh.mesh_dim_names or ()) > 1 else mesh.get_group()


def rows_of_group(inputs: Mapping[str, Tensor], group: Any) -> tuple[dict[str, Tensor], int]:
    """Return the inputs of a group's processes as one batch, padded to the longest, and where the own rows begin.

    Args:
        inputs: Tensors `(rows, tokens)`, whose sizes may differ between processes; their names may not.
        group: The processes; all must call this.
    """
    import torch
    from torch import distributed
    from torch.nn import functional as F

    some = next(iter(inputs.values()))
    sizes = [torch.zeros(2, dtype=torch.long, device=some.device) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(sizes, torch.tensor([*some.shape], device=some.device), group=group)
    rows, lengths = torch.stack(sizes).T.tolist()
    found = {}
    for name, one in inputs.items():
        padded = F.pad(one, (0, max(lengths) - one.shape[1], 0, max(rows) - len(one))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, group=group)
        found[name] = torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])
    return found, sum(rows[: distributed.get_rank(group)])
