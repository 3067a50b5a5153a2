"""Everything about processes: ranks, and communication between them.

No other module of the package reads ranks, launchers' environment variables or `torch.distributed`, except
`run/launch.py` (how the run was started), `models/sharding.py` (models that are wrapped or divided) and
`training/sharded.py` (a trainer under FSDP or DeepSpeed). To know which process writes and prints, other modules also
use `Trainer.is_world_process_zero` and `TrainingArguments.should_save`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Value = TypeVar("Value")


# ---- Before the processes are connected: the environment variables of the launcher -----------------------------------


def started() -> int:
    """Return how many processes a launcher started, on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_of_machine() -> bool:
    """Return whether this is the first of the processes that a launcher started on this machine."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def is_first_of_all() -> bool:
    """Return whether this is the first of the processes that a launcher started, on all machines."""
    return os.environ.get("RANK", "0") == "0"


def on_this_machine() -> int:
    """Return how many of the processes that a launcher started run on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def on_one_machine() -> bool:
    """Return whether a launcher started all processes on this machine."""
    return on_this_machine() == started()


def first_machine() -> str:
    """Return the address of the machine of the first process."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


def forwards_signals() -> bool:
    """Return whether a launcher started this process that passes on the signals it gets, as `torchrun` does."""
    return started() > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def launched_precision() -> str:
    """Return the `--mixed_precision` of `accelerate launch`; `no` if it was not given."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def launched_engine() -> str | None:
    """Return the engine that `accelerate launch` or the training arguments ask for; None for DDP, or one process."""
    for engine, variable in _ENGINES.items():
        if os.environ.get(variable, "false").lower() == "true":
            return engine
    return None


_ENGINES = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}


# ---- Once the processes are connected, by building `TrainingArguments` -----------------------------------------------


def _state() -> Any:
    from accelerate import PartialState

    return PartialState()


def processes() -> int:
    """Return the number of processes of this training or run."""
    return int(_state().num_processes)


def rank() -> int:
    """Return the rank of this process among all, from 0."""
    return int(_state().process_index)


def is_first() -> bool:
    """Return whether this is the first of all processes, which writes files and prints."""
    return rank() == 0


def here() -> str:
    """Return in words which process this is, for a message about a file that another machine may not have."""
    return f"process {rank()} on {socket.gethostname()}"


def device() -> torch.device:
    """Return the device of this process."""
    found: torch.device = _state().device
    return found


def devices() -> list[int]:
    """Return the numbers of this machine's accelerators that belong to this process; none in a run on the CPU.

    Each process has its own and every n-th after it, of n processes on the machine.
    """
    import torch

    if device().type == "cpu":
        return []
    step = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return [*range(_state().local_process_index, torch.accelerator.device_count(), step)]


def is_sharding_possible() -> bool:
    """Return whether accelerate can use FSDP or DeepSpeed here; on CPUs it uses DDP instead, without a word."""
    from accelerate import DistributedType

    return not _state()._cpu and _state().distributed_type != DistributedType.NO


def share_of(number: int) -> range:
    """Return which of `number` pieces of work this process does: every n-th of n processes."""
    return range(rank(), number, processes())


def wait() -> None:
    """Wait until every process has called this."""
    _state().wait_for_everyone()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Context manager: run the block in the first process of each machine first; the others then use its cache."""
    state = _state()
    waits = state.num_processes > 1
    if waits and not state.is_local_main_process:
        wait()
    try:
        yield
    finally:  # also after an error: the others would wait without end
        if waits and state.is_local_main_process:
            wait()


# ---- Communication ---------------------------------------------------------------------------------------------------


def asked_once(find_out: Callable[[], Value]) -> Value:
    """Call a function in the first process; return its result in all processes, or raise its `UserError` in all.

    Otherwise processes could see different states of a file, would all spend the time, and would wait without end if
    one of them raised an error. If a run has several processes, all must call this, after building
    `TrainingArguments`.

    Raises:
        UserError: The first process raised it.
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
    """Do this process's part of some work; a `UserError` in one process is raised in all.

    Raises:
        UserError: One of the processes raised it.
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
    """Return the values of all processes in the order of their ranks; all must call this. Values are pickled."""
    if processes() == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Value] = gather_object([value])
    return found


def check_equal(values: Mapping[str, object], advice: str) -> None:
    """Refuse to go on if processes have different values of what must be the same; all must call this.

    Args:
        values: Short values, such as hashes, by the plural of what they are of.
        advice: What to do; the last sentence of the message.

    Raises:
        UserError: One differs; the message says what, and in which process.
    """
    (expected, first), *others = from_all((dict(values), here()))
    for found, where in others:
        for name in values:
            if found[name] != expected[name]:
                raise UserError(f"{name} of {where} differ from those of {first}. {advice}")


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; all must call this. The result has no gradient."""
    from accelerate.utils import reduce

    total: Tensor = reduce(values, reduction="sum")
    return total


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes; all must call this with parameters of equal shapes.

    Which parameters have a gradient may differ: an expert may have got no token in one of them. It counts as 0 there. A
    parameter without a gradient in any process stays without one.
    """
    trained = [one for one in parameters if one.requires_grad]
    if processes() == 1 or not trained:
        return
    import torch

    has = torch.tensor([float(one.grad is not None) for one in trained], device=trained[0].device)
    used = [one for one, number in zip(trained, summed(has).tolist(), strict=True) if number]
    for one in used:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    for some in _joined([one.grad for one in used if one.grad is not None]):
        means = summed(torch.cat([gradient.reshape(-1) for gradient in some])) / processes()
        start = 0
        for gradient in some:
            gradient.copy_(means[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def _joined(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype that are exchanged together: few exchanges, and no second copy of all of them."""
    for dtype in dict.fromkeys(one.dtype for one in tensors):
        some: list[Tensor] = []
        for one in tensors:
            if one.dtype != dtype:
                continue
            if some and sum(each.numel() for each in some) + one.numel() > _TOGETHER:
                yield some
                some = []
            some.append(one)
        yield some


_TOGETHER = 2**24  # numbers of an exchange


def first_to_all(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process, in place; all must call this with tensors of equal shapes."""
    if processes() == 1:
        return
    from accelerate.utils import broadcast

    for one in tensors:
        one.copy_(broadcast(one.contiguous()))


def gathered(values: Tensor) -> Tensor:
    """Return the tensors of all processes, of equal shape, concatenated along the first dimension."""
    from accelerate.utils import gather

    found: Tensor = gather(values)
    return found


def gathered_rows(rows: Tensor) -> Tensor:
    """Return the rows `(n, width)` of all processes in the order of their ranks, without a gradient; `n` may differ."""
    import torch
    from torch import distributed
    from torch.nn import functional as F

    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = torch.cat(sizes).tolist()
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
    found = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error may come from another process that has ended while this one exchanged something."""
    from torch import distributed

    text = str(error)
    words = "Connection closed", "Connection reset", "Connection refused", "Broken pipe", "remote process exited"
    lost = any(word in text for word in words)
    known = lost and (isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text)
    cause = error.__cause__ or error.__context__
    return known or (cause is not None and is_lost_connection(cause))


class ReadLater:
    """Numbers on a device that are read later, without making the host wait for what the device does after them.

    Args:
        values: The numbers, `(n,)`.
    """

    def __init__(self, values: Tensor) -> None:
        import torch

        self._values, self._copied = values, None
        if values.device.type != "cpu":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.Event(values.device)
            self._copied.record()

    def read(self) -> list[float]:
        """Return the numbers, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._values.tolist()
        return found
