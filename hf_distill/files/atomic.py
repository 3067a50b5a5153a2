"""Files that are either whole or absent, and fingerprints of content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.files.durable import sync
from hf_distill.models.quantization import plain_tensors

if TYPE_CHECKING:  # torch, arrow and datasets take seconds to import; `--check` needs none of them
    import pyarrow as pa  # type: ignore[import-untyped]
    import torch
    from datasets import Dataset

BATCH_ROWS = 10_000
"""Rows hashed at a time; part of the value of `dataset_fingerprint`."""

WHOLE_BYTES = 16 * 2**20
"""Tensors up to this size are hashed byte by byte, larger ones by exact sums of their rows and samples."""

SAMPLES = 2**16

_LEFT_OVER = re.compile(r"_.+\.\d+\.[0-9a-f]{8}\.tmp")

_VOLATILE = frozenset(
    {
        *("_name_or_path", "_commit_hash", "architectures", "transformers_version", "dtype", "torch_dtype"),
        *("use_cache", "output_attentions", "output_hidden_states", "return_dict"),
    }
)
"""Keys of a model's config that change on saving, loading or training, or do not change what it computes."""


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a crash.

    The content goes to a temporary file beside the target, is forced to disk and renamed over it. The temporary
    name starts with an underscore: if the process is killed, `Trainer.push_to_hub` does not publish what is left.

    Args:
        path: The file; its directory must exist. A link is followed.
        content: Text is written as UTF-8, with its line ends as they are.

    Raises:
        OSError: With `path` as its file name; what was there before is untouched.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.json"
    >>> write_atomic(file, "{}")
    >>> file.read_text(), os.listdir(file.parent)
    ('{}', ['report.json'])
    """
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    temporary = _beside(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f"_{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def is_left_over(name: str) -> bool:
    """Whether a file name is one that `write_atomic` or `check_writable` gives to what a killed process leaves.

    >>> is_left_over("_recipe.yaml.4711.0a1b2c3d.tmp"), is_left_over("_notes.tmp")
    (True, False)
    """
    return _LEFT_OVER.fullmatch(name) is not None


def check_writable(directory: str | os.PathLike[str], need_bytes: int | None = None) -> None:
    """Create `directory` and prove that files can be written there, before hours of work depend on it.

    Args:
        directory: Created, with its parents, when it does not exist.
        need_bytes: What the run is going to write; refused when the disk has less free space.

    Raises:
        UserError: One line: the directory, why it cannot be written, what to do.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        probe = _beside(Path(directory) / "probe")
        try:
            # An empty file fits on a full disk, so write a block and force it out.
            probe.write_bytes(bytes(4096))
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{directory} cannot be made: there is a file in its place; name another place") from error
    except OSError as error:
        what_to_do = {
            errno.EACCES: "give this user the right to write there, or name another place",
            errno.EPERM: "give this user the right to write there, or name another place",
            errno.EROFS: "it is on a read-only file system; name another place",
            errno.ENOSPC: "its disk is full; free some space or name another place",
            errno.EDQUOT: "the disk quota is used up; free some space or name another place",
        }.get(error.errno or 0, "name another place")
        raise UserError(f"cannot write to {directory} ({error.strerror}): {what_to_do}") from error
    free = shutil.disk_usage(directory).free
    if need_bytes is not None and free < need_bytes:
        raise UserError(
            f"{directory} needs {need_bytes / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB free: "
            "free some space or name another place"
        )


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-able parts; the order of mapping keys does not matter, that of parts does.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    >>> fingerprint("a", "b") == fingerprint("ab")
    False
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return _digest(text.encode()).hexdigest()


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return a hash of a dataset's content: column names, types and every value, in order.

    *Relations*: `dataset._fingerprint` names the way a dataset was made, and changes with the version of a function
    or a random seed while the rows stay equal; this one depends on the rows alone. It does not depend on how the
    table is cut into chunks or on cache files, and follows the indices of `select` and `shuffle`.
    """
    digest = _digest()
    names = sorted(dataset.column_names)
    digest.update(json.dumps([len(dataset), names]).encode())
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for name in names:
            _hash_array(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


def _hash_array(digest: hashlib.blake2b, array: pa.Array) -> None:
    """Feed an array to the hash: type, length, which values are null, then the values, nested ones by level.

    Raw buffers will not do: slices share them, and what lies in a null slot is arbitrary.
    """
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if isinstance(array, pa.ChunkedArray):  # several chunks that could not be one, or none at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    digest.update(f"{str(kind).replace('large_', '')}:{len(array)}:{array.null_count};".encode())
    if array.null_count:
        digest.update(pc.is_null(array).to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode())
            _hash_array(digest, child)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype("int64").tobytes())
        _hash_array(digest, array.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        digest.update(array.drop_null().to_numpy(zero_copy_only=False).tobytes())
    else:  # text, bytes, dates, decimals: rare enough in tokenised data for the slow, exact way
        digest.update(repr(array.drop_null().to_pylist()).encode(errors="surrogatepass"))


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of what a model computes: its config and the name, shape, dtype and values of every tensor.

    Only what `save_pretrained` keeps goes in (of a sentence encoder also how it pools, of PEFT's adapters how strong
    each is), so the hash is the same after saving and loading, on any device and with any number of threads. Tensors
    above 16 MB are read in place: for each row the exact sum of its bits as integers (one changed value, or exchanged
    rows, change these) and a sample of 65,536 values (exchanged columns change it).
    """
    digest = _digest()
    config = getattr(model, "config", None)
    if config is not None:
        digest.update(json.dumps(_stable(config.to_dict()), sort_keys=True, default=str).encode())
    if (encoding := getattr(model, "sentence_encoding", None)) is not None:
        digest.update(repr(encoding).encode())
    digest.update(_adapters(model).encode())
    for whole, quantized in sorted(model.state_dict().items()):
        for name, tensor in plain_tensors(whole, quantized):
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            _hash_tensor(digest, tensor)
    return digest.hexdigest()


def _adapters(model: torch.nn.Module) -> str:
    """Return which adapters of PEFT count in each layer, and how much: no tensor says so."""
    found = []
    for name, module in model.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            active = [] if getattr(module, "disable_adapters", False) else getattr(module, "active_adapters", [])
            found.append(
                (name, sorted((one, float(scaling.get(one, 0))) for one in active), getattr(module, "merged", False))
            )
    return repr(found) if found else ""


def _stable(value: Any) -> Any:
    """Return a config without the keys that change on saving and loading, at any depth."""
    if isinstance(value, dict):
        return {str(key): _stable(item) for key, item in value.items() if key not in _VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, list | tuple) else value


def _hash_tensor(digest: hashlib.blake2b, tensor: torch.Tensor) -> None:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    if flat.nbytes > WHOLE_BYTES:
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(flat.element_size(), torch.int64)
        bits = flat.view(integer)
        # Integer sums wrap around but do not round: no dependence on the order of a parallel reduction.
        sums = bits.view(-1, tensor.shape[-1] if tensor.ndim > 1 else 1).sum(-1, dtype=torch.int64)
        digest.update(sums.cpu().numpy().tobytes())
        flat = flat[:: (flat.numel() // SAMPLES) | 1]  # an odd step does not stay in one column of a matrix
    digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)
