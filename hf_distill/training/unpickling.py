"""Load checkpoints without running code: a pickle in them may hold tensors and plain values, and call nothing.

The seal of a checkpoint (`checkpoints.seal`) does not help here: who writes a file for somebody else can write its
checksum too. Transformers and accelerate ask for `weights_only` in all they load by themselves. PyTorch's sharded
checkpoints (FSDP) unpickle their table of contents, and DeepSpeed all of its files, without it.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PosixPath, WindowsPath
from typing import IO, Any

import torch

from hf_distill.errors import UserError, first_line

# torch.load then reads with `weights_only`, also where its caller says otherwise.
_FORCE = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
# In the table of contents of a sharded checkpoint: module -> its classes, which only hold values.
_TABLE = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "ChunkStorageMetadata"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix", "StorageTransformExtension"),
}
_PLAIN: Mapping[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib", "WindowsPath"): WindowsPath,
    # Python 3.13 and later name the private module.
    ("pathlib._local", "PosixPath"): PosixPath,
    ("pathlib._local", "WindowsPath"): WindowsPath,
}
# In files of DeepSpeed: module -> its classes, which only hold values. They exist only where it is at work.
_VALUES = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}


@contextmanager
def only_values(checkpoint: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: what is unpickled from files holds tensors and plain values, and runs no code.

    Args:
        checkpoint: What is loaded, for the message.

    Raises:
        UserError: A file holds something else.
    """
    before = {name: os.environ.get(name) for name in _FORCE}
    load = pickle.load
    refused: list[pickle.UnpicklingError] = []

    def read(file: IO[bytes], **options: Any) -> Any:
        try:
            return _Unpickler(file, **options).load()
        except pickle.UnpicklingError as error:
            refused.append(error)  # PyTorch goes on without it, to fail later with something else
            raise

    _set(_FORCE)
    pickle.load = read  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(_known_values()):
            yield
    except BaseException as error:
        if not (refused := refused or [*_unpickling(error)]):
            raise
        raise UserError(
            f"{checkpoint} cannot be loaded: a pickle in it is damaged, or holds something else than tensors and plain "
            f"values, which could run any code ({first_line(refused[0])}). If this checkpoint was not made by you, do "
            "not use it; otherwise start over with --restart."
        ) from error
    finally:
        pickle.load = load
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _known_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    found = ((sys.modules.get(module), name) for module, names in _VALUES.items() for name in names)
    return [getattr(module, name) for module, name in found if hasattr(module, name)]


def _unpickling(error: BaseException) -> Iterator[pickle.UnpicklingError]:
    """Yield the errors of unpickling in an error; PyTorch's sharded loading wraps those of every process in its own."""
    if isinstance(error, pickle.UnpicklingError):
        yield error
    failures: Mapping[int, Any] = getattr(error, "failures", None) or {}
    for failure, *_ in failures.values():
        yield from _unpickling(failure)


class _Unpickler(pickle.Unpickler):
    """Unpickles the table of contents of a sharded checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names.

        Raises:
            UnpicklingError: It is nothing that such a table holds.
        """
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if name in _TABLE.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")
