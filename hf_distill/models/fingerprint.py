"""Compute a hash of a model's configuration, weights and adapters."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from hf_distill.files.fingerprint import _digest
from hf_distill.models.placement import stored_state
from hf_distill.models.quantization import plain_tensors

if TYPE_CHECKING:
    import torch


WHOLE_BYTES = 16 * 2**20
"""Tensors up to this size are hashed byte by byte, larger ones by exact sums of their rows and samples."""

SAMPLES = 2**16

_VOLATILE = frozenset(
    {
        *("_name_or_path", "_commit_hash", "architectures", "transformers_version", "dtype", "torch_dtype"),
        *("use_cache", "output_attentions", "output_hidden_states", "return_dict"),
    }
)
"""Keys of a model's config that change on saving, loading or training, or do not change what it computes."""


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of what a model computes: its config and the name, shape, dtype and values of every tensor.

    The hash covers what `save_pretrained` stores, and also the pooling of a sentence encoder and the scale of PEFT
    adapters. It is the same after saving and loading, on any device and with any number of threads. For tensors above
    16 MB it uses, for each row, the exact sum of its bits as integers (changed by one changed value, or by swapped
    rows) and a sample of 65,536 values (changed by swapped columns).
    """
    digest = _digest()
    config = getattr(model, "config", None)
    if config is not None:
        digest.update(json.dumps(_stable(config.to_dict()), sort_keys=True, default=str).encode())
    if (encoding := getattr(model, "sentence_encoding", None)) is not None:
        digest.update(repr(encoding).encode())
    digest.update(_adapters(model).encode())
    state = stored_state(model)
    for whole in sorted(state):
        for name, tensor in plain_tensors(whole, state[whole]):
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            _hash_tensor(digest, tensor)
    return digest.hexdigest()


def _adapters(model: torch.nn.Module) -> str:
    """Return which PEFT adapters are active in each layer, and their scale, which no tensor holds."""
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
        # Integer sums may overflow but do not round, so the order of a parallel reduction does not matter.
        sums = bits.view(-1, tensor.shape[-1] if tensor.ndim > 1 else 1).sum(-1, dtype=torch.int64)
        digest.update(sums.cpu().numpy().tobytes())
        flat = flat[:: (flat.numel() // SAMPLES) | 1]  # an odd step, so that the samples come from all columns
    digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
