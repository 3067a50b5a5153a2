"""How the vectors of tokens become the vector of their text, and where sentence-transformers keeps that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from hf_distill.errors import UserError
from hf_distill.files import write_atomic

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Mode = Literal["mean", "cls", "lasttoken"]
# As sentence-transformers calls its modules, in the order they work in; the last one may be missing.
_MODULES = ("Transformer", "Pooling", "Normalize")
_TRANSFORMER = "sentence_bert_config.json"
_PACKAGE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Encoding:
    """How the vectors of tokens become the vector of their text.

    Attributes:
        pooling: `mean` of the tokens that are no padding, or the first of them (`cls`), or the last (`lasttoken`, as
            decoder-only models are made to embed: Qwen3-Embedding, E5-Mistral).
        normalize: Whether it is divided by its length.
        max_length: Where texts are cut, for those who tokenise; None where nothing limits them.
    """

    pooling: Mode = "mean"
    normalize: bool = False
    max_length: int | None = None

    def __call__(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Return the vectors of texts.

        Args:
            states: Of tokens, `(texts, tokens, width)`.
            mask: 0 where a token is padding, `(texts, tokens)`; None where none is.

        Returns:
            `(texts, width)`, in the dtype of `states`; the mean is taken in float32 or better.
        """
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else (mask != 0)
        if self.pooling != "mean":
            # After padding on the left the first token is not at 0; on the right the last is not at the end.
            last = mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)
            place = mask.int().argmax(-1) if self.pooling == "cls" else last
            pooled = states[torch.arange(len(states), device=states.device), place]
        else:
            exact = torch.promote_types(states.dtype, torch.float32)
            counted = mask.unsqueeze(-1).to(exact)
            pooled = ((states * counted).sum(1) / counted.sum(1).clamp(min=1e-9)).to(states.dtype)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_encoding(config: PretrainedConfig) -> Encoding | None:
    """Read how a model was made to pool by sentence-transformers.

    Args:
        config: As loaded with the model, which says where that was.

    Returns:
        None where there is no `modules.json`, as beside any other model.

    Raises:
        UserError: It does something to the vectors or the texts that is not done here.
    """
    modules = _read(config, "modules.json")
    if modules is None:
        return None
    kinds = tuple(str(module.get("type")).rpartition(".")[2] for module in modules)
    if kinds not in (_MODULES, _MODULES[:2]):
        raise _not_done(f"it is made of {', '.join(kinds)}", f"{', '.join(_MODULES[:2])} and perhaps {_MODULES[2]}")
    pooling = _read(config, f"{modules[1].get('path')}/config.json") or {}
    texts = {**(_read(config, _TRANSFORMER) or {}), **(_read(config, _PACKAGE) or {})}
    if texts.get("do_lower_case"):
        raise _not_done("it lower-cases texts before they reach its tokenizer", "do_lower_case: false, and such texts")
    if prompt := (texts.get("prompts") or {}).get(texts.get("default_prompt_name")):
        raise _not_done(f"it puts {prompt!r} before every text", "no default prompt, and texts that begin so")
    return Encoding(_pooling(pooling), len(kinds) == len(_MODULES), texts.get("max_seq_length"))


def _pooling(config: Mapping[str, Any]) -> Mode:
    """Return the one mode of a pooling module: named by `pooling_mode` from version 6 on, before that by true ones."""
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
    named = config.get("pooling_mode")
    if named is None:
        named = [old.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value]
    modes = [named] if isinstance(named, str) else list(named)
    if modes not in (["mean"], ["cls"], ["lasttoken"]):
        raise _not_done(f"it pools by {' and '.join(modes) or 'nothing'}", "mean, cls or lasttoken")
    mode: Mode = modes[0]
    return mode


def _not_done(what: str, wanted: str) -> UserError:
    return UserError(
        f"its modules.json describes a sentence encoder that is not reproduced here: {what}. Wanted {wanted}.",
        key="model",
    )


def _read(config: PretrainedConfig, name: str) -> Any:
    where = config.name_or_path
    if not where:
        return None
    try:
        file = cached_file(
            where,
            name,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"cannot tell how '{where}' pools, for its {name} cannot be read: {reason}", key="model"
        ) from error


def write_encoding(directory: Path, encoding: Encoding, config: PretrainedConfig) -> None:
    """Write what `SentenceTransformer(directory)` reads, in the format of its version 5, which version 6 reads too."""
    kinds = _MODULES if encoding.normalize else _MODULES[:2]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": encoding.pooling == "cls",
        "pooling_mode_mean_tokens": encoding.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": encoding.pooling == "lasttoken",
        "include_prompt": True,
    }
    package: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    (directory / paths[1]).mkdir(parents=True, exist_ok=True)
    contents = {
        "modules.json": modules,
        f"{paths[1]}/config.json": pooling,
        _TRANSFORMER: {"max_seq_length": encoding.max_length, "do_lower_case": False},
        _PACKAGE: {**package, "similarity_fn_name": "cosine"},
    }
    for name, content in contents.items():
        write_atomic(directory / name, json.dumps(content, indent=2))
