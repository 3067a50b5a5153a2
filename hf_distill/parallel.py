"""Everything about processes: which one this is, what all of them find out or know, and what wraps or shards a model.

Nothing else in the package reads ranks, launchers' variables or `torch.distributed`, but `run/launch.py` (how the run
was started) and `training/sharded.py` (a trainer under FSDP or DeepSpeed). Of `Trainer` the rest uses what says who
writes and speaks: `is_world_process_zero` and `should_save`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Value = TypeVar("Value")


# ---- What the launcher says, before the processes have found each other ----------------------------------------------


def started() -> int:
    """Return how many processes a launcher started, on all machines; 1 where there was none."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_of_machine() -> bool:
    """Whether this is the first of the processes that a launcher started on this machine, whose screen it has."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def launched_precision() -> str:
    """Return the `--mixed_precision` of `accelerate launch`; `no` where it was not given."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


# ---- What they are to each other, once there are `TrainingArguments`, which settle how they talk ---------------------


def _state() -> Any:
    from accelerate import PartialState

    return PartialState()


def processes() -> int:
    """Return how many processes this training or run has."""
    return int(_state().num_processes)


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(_state().process_index)


def is_first() -> bool:
    """Whether this is the first of all processes, which writes files and speaks."""
    return rank() == 0


def device() -> torch.device:
    """Return the device of this process."""
    found: torch.device = _state().device
    return found


def share_of(number: int) -> range:
    """Return which of `number` pieces of work are this process's: every n-th, where there are n processes."""
    return range(rank(), number, processes())


def wait() -> None:
    """Wait until every process is here."""
    _state().wait_for_everyone()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run a block on the first process of each machine before the others, which find cached what it computed."""
    state = _state()
    waits = state.num_processes > 1
    if waits and not state.is_local_main_process:
        wait()
    try:
        yield
    finally:  # also after a mistake, for which the others would wait
        if waits and state.is_local_main_process:
            wait()


# ---- What they find out and tell each other --------------------------------------------------------------------------


def asked_once(find_out: Callable[[], Value]) -> Value:
    """Have the first process find something out; all go on with what it returns, or raise its mistake.

    Files may change between two looks, questions cost time, and a lone error would leave the others waiting. Where a
    run has several processes, all must call this, after building `TrainingArguments`.

    Raises:
        UserError: That of the first process, on all of them.
    """
    if started() < 2:
        return find_out()
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None]
    if is_first():
        try:
            told = [find_out()]
        except UserError as error:
            told = [error]
    broadcast_object_list(told)
    if isinstance(told[0], UserError):
        raise told[0]
    found: Value = told[0]
    return found


def together(work: Callable[[], None]) -> None:
    """Do this process's part of some work; what stops one process stops all, with the same line.

    Raises:
        UserError: One of the processes was stopped by it.
    """
    error: UserError | None = None
    try:
        work()
    except UserError as found:
        error = found
    error = next((one for one in from_all(error) if one is not None), None)
    if error is not None:
        raise error


def from_all(value: Value) -> list[Value]:
    """Return a value of every process (anything that can be pickled), in the order of their ranks, on every one."""
    if processes() == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Value] = gather_object([value])
    return found


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on every one; no gradient passes."""
    from accelerate.utils import reduce

    total: Tensor = reduce(values, reduction="sum")
    return total


def gathered(values: Tensor) -> Tensor:
    """Return the tensors of all processes, equal in shape, one after the other along the first dimension."""
    from accelerate.utils import gather

    found: Tensor = gather(values)
    return found


def gathered_rows(rows: Tensor) -> Tensor:
    """Return `(n, width)` of all processes in the order of their ranks; `n` may differ. No gradient passes."""
    import torch
    from torch import distributed
    from torch.nn import functional as F

    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
    found = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


# ---- Models that are wrapped or sharded ------------------------------------------------------------------------------


def unwrapped(model: nn.Module, *, autocast: bool = True) -> nn.Module:
    """Return a model without DDP, FSDP and the like; `torch.compile` stays.

    Args:
        model: The model, wrapped or not.
        autocast: Whether accelerate's own forward pass, under autocast, stays.
    """
    from accelerate.utils import extract_model_from_parallel

    inside: nn.Module = extract_model_from_parallel(model, keep_fp32_wrapper=autocast, keep_torch_compile=True)
    return inside


def inside_wrapper(model: nn.Module) -> nn.Module | None:
    """Return the module that `DataParallel`, DDP or FSDP is around; None where `model` is not one of them."""
    from torch import nn

    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model._modules["module"]
    return model._modules.get("_fsdp_wrapped_module")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, also of one that is sharded (`DTensor`); all processes have to ask."""
    found: Any = tensor
    return found.full_tensor() if hasattr(found, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of one that is not sharded (`DTensor`)."""
    found: Any = tensor
    return found.to_local() if hasattr(found, "to_local") else tensor
