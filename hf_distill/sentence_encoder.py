"""Sentence encoders: a backbone that answers with one vector for each text, and what is saved beside it.

To everybody but its caller such a model is the plain backbone: same class name, same state dict, same `config.json`.
`AutoModel` loads what it saves, and so does the package sentence-transformers, for which a few files say how the
vectors of tokens become one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from hf_distill.errors import UserError
from hf_distill.pooling import Encoding, read_encoding, write_encoding


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
        flat = {key: sequences(value) if isinstance(value, Tensor) else value for key, value in given.items()}
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
            write_encoding(Path(save_directory), encoding, self.config)
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


def sequences(values: Tensor) -> Tensor:
    """Return `(texts * batch, tokens)` of `(batch, texts, tokens)`: all first texts, then all second ones."""
    return values.transpose(0, 1).flatten(0, 1) if values.dim() == 3 else values


def _blank(backbone: type[PreTrainedModel], encoding: Encoding) -> PreTrainedModel:
    kind: Any = backbone
    wanted = _sentence_class(kind, encoding)
    return wanted.__new__(wanted)


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
