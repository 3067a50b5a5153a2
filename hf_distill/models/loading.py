"""Load models with the task's head; errors become one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.errors import UserError, first_line
from hf_distill.locations import require, resolve, sibling
from hf_distill.models.adapters import Adapter, check_not_quantized, check_task, describe, find_adapter
from hf_distill.models.merging import merge
from hf_distill.models.outline import HeadKind, head_kind, outline
from hf_distill.models.placement import Placement
from hf_distill.models.quantization import Quantization, check_whole, loading, ready
from hf_distill.outside import may_run

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_LABELS = ("num_labels", "id2label", "label2id", "problem_type")
# Files of tokenizers: a model with a tokenizer has at least one of them.
_OF_TOKENIZERS = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)


@dataclass(frozen=True)
class Head:
    """The task's head: the Auto class that loads a model with it, and its settings.

    Attributes:
        auto_class: Name of a `transformers` Auto class, e.g. `"AutoModelForSequenceClassification"`.
        settings: Configuration overrides: `num_labels`, `id2label`, `problem_type`, `pad_token_id`, ...
        adapt: Changes a loaded or new model in place into the one that the task trains; it may be called twice with the
            same model. None if the Auto class is enough.
    """

    auto_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[PreTrainedModel], PreTrainedModel] | None = None

    @property
    def kind(self) -> HeadKind:
        """What the head predicts."""
        return head_kind(self.auto_class)


# ---- Opening ---------------------------------------------------------------------------------------------------------


def _place(model: str, key: str) -> tuple[str, dict[str, str]]:
    """Return the directory or Hub id of a model, and for a GGUF file the argument that names the file."""
    where = resolve(model, key)
    if not os.path.isfile(where):
        return where, {}
    directory, name = os.path.split(where)
    if not name.lower().endswith(".gguf"):
        raise UserError(f"'{model}' is a file. Wanted the directory that save_pretrained wrote, or a Hub id.", key=key)
    require("gguf", f"'{model}'", key)
    return directory or ".", {"gguf_file": name}


def open_config(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return a model's configuration.

    Raises:
        UserError: The model does not exist, cannot be reached, or is not a Transformers model.
    """
    where, file = _place(model, "model")
    if (adapter := find_adapter(model)) is not None:
        beside = os.path.isfile(os.path.join(where, "config.json"))
        base = _open(model, where, None, trust_remote_code) if beside else _open_base(adapter, trust_remote_code)
        return describe(adapter, base, trust_remote_code=trust_remote_code)
    if not file and os.path.isdir(where) and not os.path.isfile(os.path.join(where, "config.json")):
        reason = f"it has no config.json.{_hint(where)}"
        raise UserError(f"'{model}' is not a Transformers model: {reason}", key="model")
    return _open(model, where, revision, trust_remote_code, **file)


def _open_base(adapter: Adapter, trust_remote_code: bool) -> PretrainedConfig:
    return open_config(adapter.base, revision=adapter.revision, trust_remote_code=trust_remote_code)


def _open(model: str, where: str, revision: str | None, trust_remote_code: bool, **file: str) -> PretrainedConfig:
    from transformers import AutoConfig

    trust_remote_code = trust_remote_code and may_run()
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code, **file
        )
    # Configuration classes raise their own types of errors; remote code may raise anything.
    except Exception as error:
        raise _cannot_open(f"'{model}'", where, error, "model") from error
    return config if trust_remote_code else _without_code(config)


def _without_code(config: PretrainedConfig) -> PretrainedConfig:
    """Return a configuration without what it says about Python code.

    With it, a model made later from this configuration would run that code if code of another model may run; and a
    model that is saved with it would name the code as its own.
    """
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        part.__dict__.pop("auto_map", None)
    return config


def _hint(directory: str) -> str:
    """Return what to do about a directory without a model: name a folder in it that has one, if there is one."""
    inside = sorted(Path(directory).glob("*/config.json"))
    if inside:
        return f" Did you mean '{inside[-1].parent}'?"
    return " Wanted the directory that save_pretrained wrote."


def _cannot_open(what: str, where: str, error: Exception, key: str) -> UserError:
    """Return the error, in one line, for an exception of Transformers."""
    if "trust_remote_code" in str(error):
        return UserError(
            f"{what} comes with its own Python code, which would run with your rights. Read it, then set "
            "trust_remote_code: true.",
            key=key,
        )
    if not os.path.exists(where) and isinstance(error, OSError):
        reason = f"is not a directory here and cannot be loaded from the Hub: {first_line(error)}"
        return UserError(f"{what} {reason}{sibling(where)}", key=key)
    return UserError(f"cannot open {what}: {first_line(error)}", key=key)


def names_code(model: str | None) -> bool:
    """Return whether a model on this machine comes with Python code; of an adapter, whether its base does."""
    if model is None:
        return False
    if (adapter := find_adapter(model)) is not None and names_code(adapter.base):
        return True
    place = Path(resolve(model))
    return any(_says(place / name, b"auto_map") for name in ("config.json", "tokenizer_config.json"))


def _says(file: Path, word: bytes) -> bool:
    return file.is_file() and word in file.read_bytes()


def open_tokenizer(
    model: str, *, key: str = "tokenizer", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer.

    Raises:
        UserError: The model has no tokenizer, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    trust_remote_code = trust_remote_code and may_run()
    where, file = _place(model, key)
    adapter = find_adapter(model, key)
    if adapter is not None and not any(os.path.isfile(os.path.join(where, name)) for name in _OF_TOKENIZERS):
        return open_tokenizer(adapter.base, key=key, revision=adapter.revision, trust_remote_code=trust_remote_code)
    what = f"the tokenizer of '{model}'"
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code, **file
        )
    # For damaged files, each parser raises its own type of error.
    except Exception as error:
        raise _cannot_open(what, where, error, key) from error
    if not trust_remote_code:
        tokenizer.init_kwargs.pop("auto_map", None)  # as `_without_code`
    # If the files are missing, Transformers 5 returns a tokenizer that has only special tokens.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise UserError(
            f"'{model}' has no tokenizer. Save one in its directory, or name a model whose tokenizer fits both: "
            "tokenizer: ...",
            key=key,
        )
    return tokenizer


# ---- Weights ---------------------------------------------------------------------------------------------------------


def load_model(
    model: str,
    head: Head,
    *,
    own_head: bool = False,
    dtype: str = "float32",
    quantization: Quantization | None = None,
    placement: Placement | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with the task's head.

    The weights of a GGUF file are dequantized: they can be trained and saved like any others.

    Args:
        model: Hub id, local path (a directory or a .gguf file) or `package:NAME/PATH`.
        head: The task's Auto class and head settings.
        own_head: Keep the checkpoint's own label settings instead of the task's.
        dtype: Precision of the weights. The default is float32, not the checkpoint's: a student trained in pure
            bfloat16 loses most of its small updates.
        quantization: Quantize the linear layers, except the head, on the device of the run. The model is then frozen.
        placement: Where the weights lie. Default: in memory, to be moved to the device of the run. Otherwise the model
            is frozen where it is.
        revision: Git revision on the Hub.
        trust_remote_code: Run model code from the checkpoint.

    Returns:
        The model in eval mode, and the names of weights with random initial values. The checkpoint does not have them
        (usually a head), or has them in another size (the head of another task).

    Raises:
        UserError: The model does not exist, cannot be reached, has no safetensors, or other weights than its
            configuration describes; or it cannot be quantized in this way, or does not run quantized on this device.
    """
    import transformers

    if (adapter := find_adapter(model)) is not None:
        if quantization is not None:
            check_not_quantized(model)
        _check_placement(placement, model, "is an adapter, which is merged into its base")
        config = open_config(model, trust_remote_code=trust_remote_code)
        return _load_merged(adapter, config, head, own_head=own_head, dtype=dtype, trust_remote_code=trust_remote_code)
    auto_class = getattr(transformers, head.auto_class)
    settings = {key: value for key, value in head.settings.items() if not (own_head and key in _LABELS)}
    where, file = _place(model, "model")
    if file:
        # Without this Transformers also dequantizes, but treats the model as a quantized one that cannot be trained.
        settings |= {**file, "quantization_config": transformers.GgufConfig(dequantize=True)}
        _check_placement(placement, model, "is a GGUF file, which is expanded")
    if quantization is not None:
        settings |= _quantized(quantization, auto_class, model, dtype, revision, trust_remote_code)
    if placement:
        config = open_config(model, revision=revision, trust_remote_code=trust_remote_code)
        settings |= placement.arguments(outline(auto_class, config, trust_remote_code=trust_remote_code))
    try:
        with _quiet():
            loaded, info = auto_class.from_pretrained(
                where,
                dtype=dtype,
                # "main" instead of None: only then does Transformers look for converted weights of old repositories.
                revision=revision or "main",
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # for the head; `_check_backbone` checks the other weights
                output_loading_info=True,
                **settings,
            )
    # SafetensorError derives directly from Exception, and model code may raise anything.
    except Exception as error:
        if file:
            raise _cannot_open(f"'{model}'", where, error, "model") from error
        raise _cannot_load(model, where, error) from error
    if not trust_remote_code:
        _without_code(loaded.config)
    new = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    _check_backbone(loaded, new, model)
    if getattr(loaded, "is_quantized", False):
        ready(loaded, model, key="quantization" if quantization else "model")
    if placement:
        loaded.requires_grad_(False)
    return _adapted(loaded, new, head)


def _check_placement(placement: Placement | None, model: str, why: str) -> None:
    if placement:
        key = "offload" if placement.device_map is None else "device_map"
        raise UserError(
            f"'{model}' {why} in memory. Leave this out, or save it once as a plain model (save_pretrained).", key=key
        )


def _adapted(loaded: PreTrainedModel, new: list[str], head: Head) -> tuple[PreTrainedModel, list[str]]:
    if head.adapt is not None:
        # Only the backbone is used: its pooler may be random.
        spread = getattr(loaded, "hf_device_map", None)
        loaded, new = head.adapt(loaded), [name for name in new if "pooler" not in name]
        if spread is not None:
            loaded.hf_device_map = spread  # another object, whose parts are not moved either
    loaded.train(False)
    return loaded, new


def _load_merged(
    adapter: Adapter, config: PretrainedConfig, head: Head, *, own_head: bool, dtype: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base of an adapter and merge the adapter into it.

    Args:
        adapter: The adapter.
        config: Configuration of the merged model, from `adapters.describe`.
        head: The task's Auto class and head settings.
        own_head: Keep the label settings of `config` instead of the task's.
        dtype: Precision of the weights.
        trust_remote_code: Run model code from the base.

    Returns:
        The merged model and the names of its random weights, as `load_model` returns them.
    """
    check_task(adapter.name, head.auto_class)
    settings = head.settings
    if own_head and head.kind == "labels":
        settings = {**settings, **{key: getattr(config, key) for key in _LABELS}}
    base, new = load_model(
        adapter.base,
        Head(head.auto_class, settings),
        dtype=dtype,
        revision=adapter.revision,
        trust_remote_code=trust_remote_code,
    )
    with _quiet():
        merged = merge(adapter, base)
    return _adapted(merged, [name for name in new if name not in adapter.shapes], head)


def _quantized(
    quantization: Quantization, auto_class: Any, model: str, dtype: str, revision: str | None, trust_remote_code: bool
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize the model."""
    import torch

    config = open_config(model, revision=revision, trust_remote_code=trust_remote_code)
    check_whole(model, config)
    whole = outline(auto_class, config, trust_remote_code=trust_remote_code)
    computed: Any = (config.dtype if dtype == "auto" else getattr(torch, dtype)) or torch.float32
    return loading(quantization, whole, computed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: silence Transformers' report of missing weights; a new head is expected, others are checked."""
    from logging import ERROR

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_backbone(loaded: PreTrainedModel, new: list[str], model: str) -> None:
    """Refuse a checkpoint that lacks more than a head: the rest of the model would be random."""
    prefix = "" if loaded.base_model is loaded else f"{loaded.base_model_prefix}."
    # A pooler counts as part of the head, since language models are saved without it.
    random = [name for name in new if name.startswith(prefix) and "pooler" not in name]
    if random:
        raise UserError(
            f"the weights of '{model}' do not fit its config.json: {len(random)} tensors of "
            f"{type(loaded).__name__} are missing or of another size ({random[0]}, ...).",
            key="model",
        )


def _cannot_load(model: str, where: str, error: Exception) -> UserError:
    files = sorted(Path(where).glob("*.safetensors"))
    pointer = next((file for file in files if _begins_with(file, b"version https://git-lfs")), None)
    if pointer is not None:
        reason = f"'{pointer.name}' is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`."
    elif type(error).__name__ == "SafetensorError":
        reason = f"a safetensors file is damaged or cut off ({first_line(error)}). Fetch or save it again."
    elif not files and any(Path(where).glob("*.bin")):
        reason = (
            "its weights are pickled (.bin), and loading a pickle runs any code in it; only safetensors are read. If "
            "you trust the file, load it once with from_pretrained and write it with save_pretrained."
        )
    elif os.path.isdir(where) and not files:
        reason = "it has no model.safetensors."
    else:
        return _cannot_open(f"'{model}'", where, error, "model")
    return UserError(f"cannot load '{model}': {reason}", key="model")


def _begins_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(start)) == start
