"""Runs a job, or a whole `hf-distill RECIPE`, in several processes under an engine, on CPUs with gloo.

accelerate shards on accelerators only; on a CPU it uses plain DDP without a word. So the processes of a sharding engine
are told that they have one (`_relabel`), and every training in them is looked at: does the engine really hold the
student? A new engine is one line of `ENGINES`.

Three ways to run something:

- `run(engine, work, directory)`: a function, in processes that are forked off. Starts at once.
- `command(engine, recipe, ..., directory=...)`: the command, in processes that are forked off.
- `launch(engine, recipe, ...)`: the command by `accelerate launch`, for tests that need a launcher; 10 s to start.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from forked import SECONDS, free_port, processes

ROOT = Path(__file__).parents[1]


def _nothing(*_: Any) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Engine:
    """How the processes of a training share the student.

    Attributes:
        processes: Their number, if a test does not say.
        environment: Variables of each process, as `accelerate launch` sets them.
        prepare: Called in each process before anything else.
        check: Called with the trainer before its first step; fails if the engine does not hold the student.
    """

    processes: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = _nothing
    check: Callable[[Any], None] = _nothing


# ---- DDP -------------------------------------------------------------------------------------------------------------


def _is_ddp(trainer: Any) -> None:
    from torch.nn.parallel import DistributedDataParallel

    assert isinstance(trainer.model_wrapped, DistributedDataParallel), type(trainer.model_wrapped)


# ---- FSDP2 -----------------------------------------------------------------------------------------------------------

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def _relabel() -> None:
    """Tell accelerate that the CPU of this process is an accelerator, once the process group is there."""
    import torch
    from accelerate import DistributedType, PartialState

    connect = PartialState.__init__

    def relabelled(self: Any, *args: Any, **kwargs: Any) -> None:
        connect(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.device, self._cpu = DistributedType.MULTI_GPU, torch.device("cpu"), False

    PartialState.__init__ = relabelled  # type: ignore[method-assign]


def _is_fsdp2(trainer: Any) -> None:
    from accelerate import DistributedType
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    assert trainer.is_fsdp_enabled
    assert trainer.accelerator.distributed_type == DistributedType.FSDP
    assert isinstance(trainer.model, FSDPModule), type(trainer.model)
    whole = [name for name, one in trainer.model.named_parameters() if not isinstance(one, DTensor)]
    assert not whole, f"not sharded: {whole}"
    if "TRANSFORMER" in os.environ["FSDP_AUTO_WRAP_POLICY"]:
        assert sum(isinstance(one, FSDPModule) for one in trainer.model.modules()) > 1, "the layers are not wrapped"


# ---- DeepSpeed -------------------------------------------------------------------------------------------------------


def _zero(stage: int) -> Engine:
    settings: dict[str, Any] = {"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"}
    settings |= {f"train_{name}": "auto" for name in ("batch_size", "micro_batch_size_per_gpu")}
    settings |= {"gradient_accumulation_steps": "auto"}
    if stage == 3:  # by default small weights are not divided, and all of a test's are small
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    written = json.dumps(settings).encode()
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": base64.urlsafe_b64encode(written).decode(),  # as DeepSpeed reads it too
        "DS_ACCELERATOR": "cpu",
    }
    return Engine(environment=environment, prepare=_relabel_for_deepspeed, check=partial(_is_zero, stage))


def _relabel_for_deepspeed() -> None:
    """Tell accelerate that the CPU of this process is an accelerator that DeepSpeed trains on."""
    import deepspeed
    import torch
    from accelerate import DistributedType, PartialState
    from deepspeed.comm import torch as communication

    # It would be compiled, and a process that is killed meanwhile leaves a lock that all others wait for.
    communication.build_shm_op = _nothing
    os.environ.pop("ACCELERATE_USE_CPU", None)
    connect = PartialState.__init__

    def relabelled(self: Any, cpu: bool = False, **kwargs: Any) -> None:
        connect(self, True, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.device, self._cpu = DistributedType.DEEPSPEED, torch.device("cpu"), False
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)

    PartialState.__init__ = relabelled  # type: ignore[method-assign]


def _is_zero(stage: int, trainer: Any) -> None:
    from deepspeed import DeepSpeedEngine

    engine = trainer.model_wrapped
    assert isinstance(engine, DeepSpeedEngine), type(engine)
    assert engine.zero_optimization_stage() == stage
    if stage == 3:
        whole = [name for name, one in trainer.model.named_parameters() if one.numel()]
        assert not whole, f"not divided: {whole}"


NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: make engines")
# For `pytest.mark.parametrize`: the engines that are slow to test, besides fsdp2.
_MARKS = (pytest.mark.slow, pytest.mark.deepspeed, NO_DEEPSPEED)
ZERO = tuple(pytest.param(name, marks=_MARKS) for name in ("zero2", "zero3"))

ENGINES: dict[str, Engine] = {
    "one": Engine(processes=1),
    "ddp": Engine(check=_is_ddp),
    "fsdp2": Engine(environment=FSDP2, prepare=_relabel, check=_is_fsdp2),
    "fsdp2-whole": Engine(environment={**FSDP2, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, prepare=_relabel, check=_is_fsdp2),
    "fsdp2-shards": Engine(
        environment={**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, prepare=_relabel, check=_is_fsdp2
    ),
    "zero2": _zero(2),
    "zero3": _zero(3),
}


# ---- Running ---------------------------------------------------------------------------------------------------------


def enter(engine: str) -> None:
    """Make this process one of the engine's: call it before anything is connected, and only in a process of its own."""
    from transformers import Trainer

    chosen = ENGINES[engine]
    os.environ.update(chosen.environment)
    chosen.prepare()
    begin = Trainer._prepare_for_training

    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = begin(self, *args, **kwargs)
        chosen.check(self)
        return prepared

    Trainer._prepare_for_training = checked  # type: ignore[method-assign]


def run(
    engine: str,
    work: Callable[[], Any],
    directory: Path,
    *,
    count: int | None = None,
    seconds: float = SECONDS,
    logged: bool = False,
) -> list[Any]:
    """Return what a function returns in each of the engine's processes, by rank.

    Args:
        engine: A name of `ENGINES`.
        work: It trains; what it returns can be pickled.
        directory: For the results; nothing else is in it.
        count: Number of processes; by default the engine's.
        seconds: After this time all are killed, and the test fails.
        logged: Whether what a process prints goes to `RANK.log` in the directory.
    """
    return processes(partial(_entered, engine, work), directory, count or ENGINES[engine].processes, seconds, logged)


def _entered(engine: str, work: Callable[[], Any]) -> Any:
    enter(engine)
    return work()


def command(engine: str, *words: str | Path, directory: Path, **how: Any) -> list[int]:
    """Return the exit statuses of `hf-distill WORDS`, by rank; what each process prints is in `RANK.log`.

    Args:
        engine: A name of `ENGINES`.
        words: The recipe and its overrides.
        directory: For statuses and logs; nothing else is in it.
        how: As of `run`.
    """

    def work() -> int:
        from hf_distill.cli import main

        sys.argv = ["hf-distill", *map(str, words)]
        return main()

    return run(engine, work, directory, **{"logged": True, **how})


def launch(engine: str, *words: str | Path, count: int | None = None) -> tuple[list[str], dict[str, str]]:
    """Return what to start, and its environment: `accelerate launch` of `hf-distill WORDS` under an engine.

    Judge it by the files that it writes, and give every wait a limit: gloo on a busy machine now and then loses a
    connection at the start, or its threads abort at the end.
    """
    launcher = (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count or ENGINES[engine].processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()),
    )  # fmt: skip
    paths = (str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}
    return [sys.executable, *launcher, __file__, engine, *map(str, words)], {**os.environ, **environment}


if __name__ == "__main__":
    from hf_distill.cli import main

    enter(sys.argv.pop(1))
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # else one run in ten aborts in the interpreter's shutdown, after all its work (threads of gloo)
