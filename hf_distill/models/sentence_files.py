"""Read and write the files in which sentence-transformers describes how a model pools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from hf_distill.errors import UserError, first_line
from hf_distill.files.atomic import write_atomic
from hf_distill.models.dense import WEIGHTS, Dense, read_dense, save_layer
from hf_distill.models.pooling import MODES, Encoding, Mode, Prompts

if TYPE_CHECKING:
    from torch import Tensor

# Newest name first; versions before 2 named the file after the backbone.
_BACKBONES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TRANSFORMER = [f"sentence_{name}_config.json" for name in _BACKBONES]
_PACKAGE = "config_sentence_transformers.json"
# Keys of versions before 6, one for each mode, in the order in which modes are concatenated.
_OLD_KEYS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_encoding(config: PretrainedConfig) -> Encoding | None:
    """Read from the files beside a model how sentence-transformers pools it.

    Args:
        config: The loaded model's configuration, which says where the files are.

    Returns:
        How to pool; None if there is no `modules.json`, so that it is not a sentence encoder.

    Raises:
        UserError: The files describe a step that is not supported here.
    """
    modules = _modules(config)
    if modules is None:
        return None
    kinds = [str(module.get("type")) for module in modules]
    names = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind in kinds]
    normalize = names[-1] == "Normalize"
    if names != ["Transformer", "Pooling", *["Dense"] * (len(names) - 2 - normalize), *["Normalize"] * normalize]:
        raise _not_done(f"it is made of {', '.join(names)}", "Transformer, Pooling, perhaps Dense, perhaps Normalize")
    if modules[0].get("path"):
        raise _not_done(
            f"its Transformer lies in the folder {modules[0]['path']}",
            "it beside modules.json, as SentenceTransformer(...).save_pretrained writes it today",
        )
    paths = [str(module.get("path")) for module in modules]
    if normalize and (_read(config, f"{paths[-1]}/config.json") or {}).get("module_input_name") == "token_embeddings":
        raise _not_done("its Normalize is for the vectors of tokens", "one for those of texts")
    pooling = _read(config, f"{paths[1]}/config.json") or {}
    texts: dict[str, Any] = next(filter(None, (_read(config, name) for name in _TRANSFORMER)), {})
    if texts.get("do_lower_case"):
        raise _not_done("it lower-cases texts before they reach its tokenizer", "do_lower_case: false, and such texts")
    if "message" in (texts.get("modality_config") or {}):
        raise _not_done("it wraps texts in a chat template", "a model that reads them as they are")
    modes = _modes(pooling)
    dense = tuple(_dense(config, path) for path in paths[2 : len(paths) - normalize])
    _check_widths(dense, len(modes) * config.hidden_size)
    return Encoding(
        modes[0] if len(modes) == 1 else modes,
        normalize,
        texts.get("max_seq_length"),
        dense,
        _prompts(_read(config, _PACKAGE) or {}, bool(pooling.get("include_prompt", True))),
    )


def width_of(config: PretrainedConfig) -> int:
    """Return the width of a sentence encoder's vectors from the files beside it; without files, its hidden size."""
    return (read_encoding(config) or Encoding()).width(config.hidden_size)


def dense_files(config: PretrainedConfig) -> list[Path]:
    """Return the files with the weights of a model's Dense layers, in their order.

    Raises:
        UserError: One of the files is missing.
    """
    modules = _modules(config) or []
    return [_weights(config, str(one.get("path"))) for one in modules if str(one.get("type")).endswith(".Dense")]


def at(directory: Path | str) -> PretrainedConfig:
    """Return a configuration that holds only the location of a model."""
    config = PretrainedConfig()
    config.name_or_path = str(directory)
    return config


def _modules(config: PretrainedConfig) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] | None = _read(config, "modules.json")
    where = Path(config.name_or_path or "")
    if found is None and config.name_or_path and where.is_dir():
        above = at(where.resolve().parent)
        if any(one.get("path") == where.resolve().name for one in _read(above, "modules.json") or []):
            raise _not_done(
                f"'{where}' is a part of it",
                f"the whole: load '{above.name_or_path}' with SentenceTransformer, and write it with save_pretrained",
            )
    return found


def _modes(config: Mapping[str, Any]) -> tuple[Mode, ...]:
    """Return the modes of a pooling module: `pooling_mode` from version 6 on, before that one true key per mode."""
    named = config.get("pooling_mode")
    if named is None:
        unknown = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        unknown = [key for key in unknown if key not in _OLD_KEYS]
        named = [mode for key, mode in _OLD_KEYS.items() if config.get(key)] + unknown or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    if not modes or not set(modes) <= set(MODES):
        raise _not_done(f"it pools by {' and '.join(map(str, modes)) or 'nothing'}", f"of {', '.join(MODES)}")
    return modes


def _dense(config: PretrainedConfig, path: str) -> Dense:
    try:
        found = read_dense(_read(config, f"{path}/config.json") or {})
    except ValueError as error:
        raise _not_done(f"it has a Dense ({path}) {error}", "one that sentence-transformers loads by itself") from error
    _weights(config, path)
    return found


def _weights(config: PretrainedConfig, path: str) -> Path:
    file = _find(config, f"{path}/{WEIGHTS}")
    if file is not None:
        return Path(file)
    if _find(config, f"{path}/pytorch_model.bin") is not None:
        raise UserError(
            f"the weights of its Dense ({path}) are pickled (.bin), and loading a pickle runs any code in it; only "
            "safetensors are read. If you trust the file, load the model once with SentenceTransformer and write it "
            "with save_pretrained.",
            key="model",
        )
    raise UserError(f"its modules.json lists a Dense, and {path}/{WEIGHTS} is missing. Fetch it again.", key="model")


def _check_widths(dense: Sequence[Dense], width: int) -> None:
    for layer in dense:
        if layer.in_features != width:
            raise UserError(
                f"a Dense of its modules.json reads vectors of width {layer.in_features}, and what comes before it "
                f"gives {width}. Fetch or save the model again.",
                key="model",
            )
        width = layer.out_features


def _prompts(package: Mapping[str, Any], pooled: bool) -> Prompts:
    named = {str(name): str(prompt or "") for name, prompt in (package.get("prompts") or {}).items()}
    default = package.get("default_prompt_name")
    if default is not None and default not in named:
        raise _not_done(
            f"its default prompt '{default}' is not among its prompts ({', '.join(named) or 'none'})",
            f"one of them as default_prompt_name in {_PACKAGE}",
        )
    return Prompts(tuple(named.items()), default, pooled)


def _not_done(what: str, wanted: str) -> UserError:
    return UserError(
        f"its modules.json describes a sentence encoder that is not supported: {what}. Wanted {wanted}.",
        key="model",
    )


def _find(config: PretrainedConfig, name: str) -> str | None:
    where = config.name_or_path
    if not where:
        return None
    try:
        found: str | None = cached_file(
            where,
            name,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError) as error:
        raise _unreadable(where, name, error) from error
    return found


def _read(config: PretrainedConfig, name: str) -> Any:
    file = _find(config, name)
    try:
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(str(config.name_or_path), name, error) from error


def _unreadable(where: str, name: str, error: Exception) -> UserError:
    why = f"its {name} cannot be read: {first_line(error)}"
    return UserError(f"cannot tell how '{where}' pools, since {why}", key="model")


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_encoding(
    directory: Path, encoding: Encoding, config: PretrainedConfig, weights: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Write the files that `SentenceTransformer(directory)` needs, in the format of version 5 (version 6 reads it too).

    Args:
        directory: Where the backbone is saved.
        encoding: How the model pools.
        config: Configuration of the backbone.
        weights: Name -> tensor for each Dense layer.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(encoding.dense), *["Normalize"] * encoding.normalize]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    prompts = encoding.prompts
    package: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": dict(prompts.named)}
    contents = {
        "modules.json": modules,
        f"{paths[1]}/config.json": _pooling_config(encoding, config.hidden_size),
        _TRANSFORMER[0]: {"max_seq_length": encoding.max_length, "do_lower_case": False},
        _PACKAGE: {**package, "default_prompt_name": prompts.default, "similarity_fn_name": "cosine"},
    }
    for path, layer, tensors in zip(paths[2:], encoding.dense, weights, strict=False):
        contents[f"{path}/config.json"] = layer.config()
        (directory / path).mkdir(parents=True, exist_ok=True)
        save_layer(directory / path, tensors)
    for name, content in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, json.dumps(content, indent=2))


def _pooling_config(encoding: Encoding, hidden: int) -> dict[str, Any]:
    """Return the settings of the pooling, in keys of all versions if these can express the order of modes."""
    modes = encoding.modes
    usual = tuple(mode for mode in MODES if mode in modes) == modes
    named = {key: mode in modes for key, mode in _OLD_KEYS.items()} if usual else {"pooling_mode": list(modes)}
    return {"word_embedding_dimension": hidden, **named, "include_prompt": encoding.prompts.pooled}
