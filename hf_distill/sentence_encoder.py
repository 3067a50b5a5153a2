"""Sentence encoders: a backbone that answers with one vector for each text, and what is saved beside it.

To everybody but its caller such a model is the plain backbone: same class name, same state dict, same `config.json`.
`AutoModel` loads what it saves, and so does the package sentence-transformers, for which a few files say how the
vectors of tokens become one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from hf_distill.errors import UserError
from hf_distill.files import write_atomic

if TYPE_CHECKING:
    from hf_distill.tasks.sentence_similarity import Pooling

# As sentence-transformers calls its modules, in the order they work in; the last one may be missing.
_MODULES = ("Transformer", "Pooling", "Normalize")
_TRANSFORMER = "sentence_bert_config.json"
_PACKAGE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Encoding:
    """How the vectors of tokens become the vector of their text.

    Attributes:
        pooling: `mean` of the tokens that are no padding, or the first of them (`cls`).
        normalize: Whether it is divided by its length.
        max_length: Where texts are cut, for those who tokenise; None where nothing limits them.
    """

    pooling: Pooling = "mean"
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
        if self.pooling == "cls":
            first = mask.int().argmax(-1)  # after padding on the left, the first token is not at 0
            pooled = states[torch.arange(len(states), device=states.device), first]
        else:
            exact = torch.promote_types(states.dtype, torch.float32)
            counted = mask.unsqueeze(-1).to(exact)
            pooled = ((states * counted).sum(1) / counted.sum(1).clamp(min=1e-9)).to(states.dtype)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


@dataclass
class SentenceOutput(ModelOutput):
    """What a sentence encoder answers.

    Attributes:
        sentence_embedding: `(batch, width)`; of several texts an example `(batch, texts, width)`.
        last_hidden_state: `(sequences, tokens, width)`; of several texts an example, all first ones come first.
        hidden_states: As the backbone gives them, where asked for.
        attentions: Likewise.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# ---- The model -------------------------------------------------------------------------------------------------------


def sentence_encoder(model: PreTrainedModel, encoding: Encoding | None = None) -> PreTrainedModel:
    """Make a backbone answer with the vectors of texts, in place.

    Args:
        model: A backbone that reads text, as `AutoModel` loads it. One that is a sentence encoder is left as it is.
        encoding: What to make of its tokens; by default their mean.

    Returns:
        The same model. Its inputs may have a dimension more, `(batch, texts, tokens)`, where an example is several
        texts.

    Raises:
        UserError: It is no such backbone.
    """
    if encoding_of(model) is None:
        check_backbone(model.config)
        if not {"input_ids", "attention_mask"} <= set(signature(model.forward).parameters):
            raise UserError(f"{type(model).__name__} does not take input_ids and attention_mask.", key="model")
        # Weights, hooks and configuration stay; only `forward` and `save_pretrained` do more than before.
        kind: Any = type(model)
        model.__class__ = _sentence_class(kind, encoding or Encoding())
    return model


def encoding_of(model: object) -> Encoding | None:
    """Return how a model makes vectors of texts; None where it does not."""
    found = getattr(model, "sentence_encoding", None)
    return found if isinstance(found, Encoding) else None


def check_backbone(config: PretrainedConfig) -> None:
    """Refuse a model whose tokens cannot be pooled.

    Raises:
        UserError: It has a decoder of its own, or reads more than text.
    """
    if config.is_encoder_decoder:
        what = "an encoder and a decoder, and a text would have to be encoded without the latter"
    elif config.get_text_config() is not config or not getattr(config, "vocab_size", None):
        what = "more than one input, or no text"
    else:
        return
    raise UserError(
        f"{type(config).__name__} describes a model with {what}. Wanted a text encoder (BERT, MPNet, ModernBERT, ...) "
        "or a decoder-only model.",
        key="model",
    )


@cache
def _sentence_class(backbone: type[PreTrainedModel], encoding: Encoding) -> type[PreTrainedModel]:
    """Return a subclass of a backbone that pools. It has the backbone's name.

    Transformers writes the name of a model's class into its configuration, and looks up by module and name what
    hidden states it can record.
    """

    @wraps(backbone.forward)  # the trainer and the stopwatch read from its signature what it takes
    def forward(self: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> SentenceOutput:
        texts = input_ids.shape[1:-1]
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        flat = {key: _sequences(value) if isinstance(value, Tensor) else value for key, value in given.items()}
        outputs = backbone.forward(self, **flat)
        pooled = encoding(outputs.last_hidden_state, flat["attention_mask"])
        if texts:
            pooled = pooled.reshape(*texts, len(input_ids), -1).transpose(0, 1)
        return SentenceOutput(
            sentence_embedding=pooled,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def save_pretrained(self: Any, save_directory: Any, is_main_process: bool = True, **settings: Any) -> None:
        # First, for `push_to_hub` uploads what is there.
        if is_main_process:
            _write(Path(save_directory), encoding, self.config)
        backbone.save_pretrained(self, save_directory, is_main_process=is_main_process, **settings)

    def reduce(self: Any) -> tuple[Any, ...]:
        return _blank, (backbone, encoding), self.__dict__

    body = {
        "sentence_encoding": encoding,
        "forward": forward,
        "save_pretrained": save_pretrained,
        "__reduce__": reduce,  # by name, pickle would find the backbone
        "__module__": backbone.__module__,
        "__qualname__": backbone.__qualname__,
        "__doc__": backbone.__doc__,
    }
    return type(backbone.__name__, (backbone,), body)


def _sequences(values: Tensor) -> Tensor:
    """Return `(texts * batch, tokens)` of `(batch, texts, tokens)`: all first texts, then all second ones."""
    return values.transpose(0, 1).flatten(0, 1) if values.dim() == 3 else values


def _blank(backbone: type[PreTrainedModel], encoding: Encoding) -> PreTrainedModel:
    kind: Any = backbone
    wanted = _sentence_class(kind, encoding)
    return wanted.__new__(wanted)


# ---- What sentence-transformers knows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsSentenceEncoder:
    """Makes sentence encoders of loaded models (`models.Head.adapt`).

    Attributes:
        default: For models that do not say how they pool.
        max_length: Where this run cuts texts.
    """

    default: Encoding
    max_length: int | None

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """Pool as the model's own files say, else as the default does."""
        found = read_encoding(model.config) or self.default
        return sentence_encoder(model, replace(found, max_length=self.max_length))


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
    kinds = tuple(str(module["type"]).rpartition(".")[2] for module in modules)
    if kinds not in (_MODULES, _MODULES[:2]):
        raise _not_done(f"it is made of {', '.join(kinds)}", f"{', '.join(_MODULES[:2])} and perhaps {_MODULES[2]}")
    pooling = _read(config, f"{modules[1]['path']}/config.json") or {}
    texts = {**(_read(config, _TRANSFORMER) or {}), **(_read(config, _PACKAGE) or {})}
    if texts.get("do_lower_case"):
        raise _not_done("it lower-cases texts before they reach its tokenizer", "do_lower_case: false, and such texts")
    if prompt := (texts.get("prompts") or {}).get(texts.get("default_prompt_name")):
        raise _not_done(f"it puts {prompt!r} before every text", "no default prompt, and texts that begin so")
    return Encoding(_pooling(pooling), len(kinds) == len(_MODULES), texts.get("max_seq_length"))


def _pooling(config: Mapping[str, Any]) -> Pooling:
    """Return the one mode of a pooling module: named by `pooling_mode` from version 6 on, before that by true ones."""
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    named = config.get("pooling_mode")
    if named is None:
        named = [old.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value]
    modes = [named] if isinstance(named, str) else list(named)
    if modes not in (["mean"], ["cls"]):
        raise _not_done(f"it pools by {' and '.join(modes) or 'nothing'}", "mean or cls")
    mode: Literal["mean", "cls"] = modes[0]
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


def _write(directory: Path, encoding: Encoding, config: PretrainedConfig) -> None:
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
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }
    package: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    for path in paths:
        (directory / path).mkdir(parents=True, exist_ok=True)
    contents = {
        "modules.json": modules,
        f"{paths[1]}/config.json": pooling,
        _TRANSFORMER: {"max_seq_length": encoding.max_length, "do_lower_case": False},
        _PACKAGE: {**package, "similarity_fn_name": "cosine"},
    }
    for name, content in contents.items():
        write_atomic(directory / name, json.dumps(content, indent=2))
