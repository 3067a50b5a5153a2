"""Sentence encoders: a backbone that returns one vector for each text, and the files saved with it.

Apart from its output, such a model is the plain backbone: same class name, same state dict, same `config.json`. What it
saves can be loaded with `AutoModel` and with sentence-transformers, for which a few more files describe the pooling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from hf_distill.errors import UserError
from hf_distill.models.dense import dense_stack, load_stack
from hf_distill.models.pooling import Encoding
from hf_distill.models.sentence_files import dense_files, read_encoding, width_of, write_encoding

# Name of the submodule with the Dense layers after the pooling.
DENSE = "sentence_dense"


@dataclass
class SentenceOutput(ModelOutput):
    """Output of a sentence encoder.

    Attributes:
        sentence_embedding: `(batch, width)`; `(batch, texts, width)` if an example has several texts.
        last_hidden_state: `(sequences, tokens, width)`; if an example has several texts, all first ones come first.
        hidden_states: The backbone's, if requested.
        attentions: The backbone's, if requested.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# ---- The model -------------------------------------------------------------------------------------------------------


def sentence_encoder(model: PreTrainedModel, encoding: Encoding | None = None) -> PreTrainedModel:
    """Turn a backbone into a sentence encoder, in place.

    Args:
        model: A text backbone, as `AutoModel` loads it. A model that is a sentence encoder already is not changed.
        encoding: How to pool; by default the mean. Its Dense layers are loaded from the model's files if these describe
            them; otherwise they start with random weights.

    Returns:
        The same model. If an example has several texts, its inputs have one more dimension, `(batch, texts, tokens)`.

    Raises:
        UserError: It is not a text backbone, or the weights of its Dense layers cannot be read.
    """
    if encoding_of(model) is None:
        check_backbone(model.config)
        if not {"input_ids", "attention_mask"} <= set(signature(model.forward).parameters):
            raise UserError(f"{type(model).__name__} does not take input_ids and attention_mask.", key="model")
        # Only the class changes, to one whose `forward`, `save_pretrained` and `from_pretrained` do more.
        kind: Any = type(model)
        encoding = encoding or Encoding()
        model.__class__ = _sentence_class(kind, encoding)
        _add_dense(model, encoding)
        if encoding.dense and (beside := read_encoding(model.config)) and beside.dense == encoding.dense:
            load_dense(model, model.config)
    return model


def _add_dense(model: Any, encoding: Encoding) -> None:
    """Add Dense layers with random weights to a backbone; `save_pretrained` stores them in files of their own."""
    if encoding.dense:
        stack = dense_stack(encoding.dense).to(model.device, model.dtype)
        model.add_module(DENSE, stack)
        own = {f"{DENSE}.{name}" for name in stack.state_dict()}
        model._keys_to_ignore_on_save = own | set(model._keys_to_ignore_on_save or ())


def load_dense(model: nn.Module, config: PretrainedConfig) -> None:
    """Load the weights of a sentence encoder's Dense layers, if it has any.

    Args:
        model: The model.
        config: Configuration that says where the files are (`sentence_files.at` of a directory).

    Raises:
        UserError: The files are missing, or belong to other layers.
    """
    if isinstance(stack := model._modules.get(DENSE), nn.Sequential):
        files = dense_files(config)
        if len(files) != len(stack):
            raise UserError(
                f"'{config.name_or_path}' has {len(files)} Dense modules; wanted {len(stack)}. Save the model again.",
                key="model",
            )
        load_stack(stack, files)


def vector_width(model: Any) -> int:
    """Return the width of the vectors of a sentence encoder, or of a stand-in that has its `config`."""
    encoding = encoding_of(model)
    return width_of(model.config) if encoding is None else encoding.width(model.config.hidden_size)


def without_dense(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a model class; for a sentence encoder, one that builds no Dense layers."""
    encoding = encoding_of(kind)
    if encoding is None or not encoding.dense:
        return kind
    backbone: Any = kind.__base__
    return _sentence_class(backbone, replace(encoding, dense=()))


def encoding_of(model: object) -> Encoding | None:
    """Return how a model pools; None if it is not a sentence encoder."""
    found = getattr(model, "sentence_encoding", None)
    return found if isinstance(found, Encoding) else None


def check_backbone(config: PretrainedConfig) -> None:
    """Refuse a model whose tokens cannot be pooled.

    Raises:
        UserError: It has an encoder and a decoder, or reads other inputs than text.
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
    """Return a subclass of a backbone that pools, with the backbone's name and module.

    Transformers writes the class name into the configuration, and uses module and name to find which hidden states the
    model can return.
    """

    @wraps(backbone.forward)  # the trainer and the stopwatch read the inputs from its signature
    def pooled_forward(
        self: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SentenceOutput:
        texts = input_ids.shape[1:-1]
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        flat = {key: sequences(value) if isinstance(value, Tensor) else value for key, value in given.items()}
        outputs = backbone.forward(self, **flat)
        pooled = encoding(outputs.last_hidden_state, flat["attention_mask"], self._modules.get(DENSE))
        if texts:
            pooled = pooled.reshape(*texts, len(input_ids), -1).transpose(0, 1)
        return SentenceOutput(
            sentence_embedding=pooled,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    # When accelerate takes off its autocast, it follows `__wrapped__` to the end, and would take this off as well.
    forward: Any = pooled_forward
    forward.__signature__ = signature(backbone.forward)
    del forward.__wrapped__

    def save_pretrained(self: Any, save_directory: Any, is_main_process: bool = True, **settings: Any) -> None:
        # Before the backbone, since `push_to_hub` uploads the files that are there.
        if is_main_process:
            write_encoding(Path(save_directory), encoding, self.config, _layers(self, settings.get("state_dict")))
        backbone.save_pretrained(self, save_directory, is_main_process=is_main_process, **settings)

    def initialise(self: Any, config: PretrainedConfig, *inputs: Any, **settings: Any) -> None:
        backbone.__init__(self, config, *inputs, **settings)
        _add_dense(self, encoding)

    def from_pretrained(cls: Any, place: Any, *inputs: Any, **settings: Any) -> Any:
        loaded: Any = backbone.from_pretrained(place, *inputs, **settings)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        load_dense(sentence_encoder(model, encoding), model.config)
        return loaded

    def reduce(self: Any) -> tuple[Any, ...]:
        return _blank, (backbone, encoding), self.__dict__

    body = {
        "sentence_encoding": encoding,
        "forward": forward,
        "save_pretrained": save_pretrained,
        "from_pretrained": classmethod(from_pretrained),
        **({"__init__": initialise} if encoding.dense else {}),
        "__reduce__": reduce,  # pickle would look up the class by name and find the backbone
        "__module__": backbone.__module__,
        "__qualname__": backbone.__qualname__,
        "__doc__": backbone.__doc__,
    }
    return type(backbone.__name__, (backbone,), body)


def _layers(model: PreTrainedModel, state: Mapping[str, Tensor] | None) -> list[dict[str, Tensor]]:
    """Return the weights of each Dense layer; from `state` if the weights were gathered from several processes."""
    if not isinstance(stack := model._modules.get(DENSE), nn.Sequential):
        return []
    prefix = f"{DENSE}."
    given = {name.removeprefix(prefix): value for name, value in (state or {}).items() if name.startswith(prefix)}
    held = given or stack.state_dict()
    return [
        {name.removeprefix(f"{index}."): held[name] for name in held if name.startswith(f"{index}.")}
        for index in range(len(stack))
    ]


def sequences(values: Tensor) -> Tensor:
    """Return `(batch, texts, tokens)` as `(texts * batch, tokens)`: all first texts, then all second ones."""
    return values.transpose(0, 1).flatten(0, 1) if values.dim() == 3 else values


def _blank(backbone: type[PreTrainedModel], encoding: Encoding) -> PreTrainedModel:
    kind: Any = backbone
    wanted = _sentence_class(kind, encoding)
    return wanted.__new__(wanted)


@dataclass(frozen=True)
class AsSentenceEncoder:
    """Turns loaded models into sentence encoders; used as `models.Head.adapt`.

    Attributes:
        default: How to pool if the model's files do not say.
        max_length: Length at which this run truncates texts.
        prompt: Prompt before every text in the tokens of this run.
        skipped: Number of the prompt's tokens to leave out of the pooling, if a model's files say so.
    """

    default: Encoding
    max_length: int | None
    prompt: str = ""
    skipped: int = 0

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model as a sentence encoder that pools as its own files say, or else as the default.

        Raises:
            UserError: The model's files name another default prompt than this run's.
        """
        found = read_encoding(model.config) or self.default
        if found.prompts.text != self.prompt:
            raise UserError(
                f"it puts {found.prompts.text!r} before every text, but the tokens of this run begin with "
                f"{self.prompt!r}. Name it as student: {{name: pretrained}}, or make the default prompts of both "
                "models the same in config_sentence_transformers.json.",
                key="model",
            )
        skipped = 0 if found.prompts.pooled else self.skipped
        return sentence_encoder(model, replace(found, max_length=self.max_length, skipped=skipped))
