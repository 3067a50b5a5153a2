"""Sentence encoders in tests: what sentence-transformers writes beside a model, and its arithmetic in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
OLD = "sentence_transformers.models."


def copied(model: Path, directory: Path) -> Path:
    shutil.copytree(model, directory)
    return directory


def describe(
    directory: Path,
    *modules: str,
    pooling: dict[str, Any] | None = None,
    dense: Sequence[tuple[Mapping[str, Any], Mapping[str, Array]]] = (),
    **files: Any,
) -> Path:
    """Write what sentence-transformers writes beside a model.

    Args:
        directory: Of the model.
        *modules: Names of its modules; `m.` stands for the package's.
        pooling: Settings of the second.
        dense: Settings and weights of those from the third on.
        **files: Other files by name.
    """
    directory.mkdir(exist_ok=True)
    names = [OLD + name.removeprefix("m.") if name.startswith("m.") else name for name in modules]
    kinds = [name.rpartition(".")[2] for name in names]
    paths = ["", *(f"{at}_{kind}" for at, kind in enumerate(kinds) if at)]
    listed = [{"idx": at, "name": str(at), "path": paths[at], "type": name} for at, name in enumerate(names)]
    contents = {"modules.json": listed, **{f"{name}.json": content for name, content in files.items()}}
    if len(paths) > 1:
        contents[f"{paths[1]}/config.json"] = {"word_embedding_dimension": 32, **(pooling or {"pooling_mode": "mean"})}
    for path, (config, weights) in zip(paths[2:], dense, strict=False):
        contents[f"{path}/config.json"] = config
        (directory / path).mkdir(exist_ok=True)
        from safetensors.numpy import save_file

        save_file(
            {name: np.ascontiguousarray(value) for name, value in weights.items()},
            directory / path / "model.safetensors",
        )
    for name, content in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def layer(
    width: int, out: int, activation: str = "torch.nn.modules.activation.Tanh", bias: bool = True, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return settings and weights of a Dense."""
    chance = np.random.default_rng(seed)
    weights = {"linear.weight": chance.normal(0, 0.3, (out, width)).astype(np.float32)}
    if bias:
        weights["linear.bias"] = chance.normal(0, 0.3, out).astype(np.float32)
    return {"in_features": width, "out_features": out, "bias": bias, "activation_function": activation}, weights


def states(directory: Path, text: str, limit: int = 64) -> Array:
    """Return the states of a text's tokens by AutoModel: no batch, no padding, none of our code."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        found = model(**tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")).last_hidden_state[0]
    exact: Array = found.double().numpy()
    return exact


def pooled(found: Array, modes: Sequence[str], skipped: int = 0) -> Array:
    """Return the vector of a text from the states of its tokens, in float64."""
    kept, place = found[skipped:], np.arange(1, len(found) + 1)[skipped:, None]
    by_mode = {
        "cls": lambda: kept[0],
        "max": lambda: kept.max(0),
        "mean": lambda: kept.mean(0),
        "mean_sqrt_len_tokens": lambda: kept.sum(0) / np.sqrt(len(kept)),
        "weightedmean": lambda: (kept * place).sum(0) / place.sum(),
        "lasttoken": lambda: kept[-1],
    }
    return np.concatenate([by_mode[mode]() for mode in modes])
