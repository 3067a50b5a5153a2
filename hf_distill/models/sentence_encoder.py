"""Sentence encoders: a backbone that answers with one vector for each text, and what is saved beside it.

To everybody but its caller such a model is the plain backbone: same class name, same state dict, same `config.json`.
`AutoModel` loads what it saves, and so does the package sentence-transformers, for which a few files say how the
vectors of tokens become one.
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

# The submodule with the layers behind the pooling, where there are any.
DENSE = "sentence_dense"


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
        encoding: What to make of its tokens; by default their mean. Its Dense layers are loaded from beside the model
            where they are described there; else they start new.

    Returns:
        The same model. Its inputs may have a dimension more, `(batch, texts, tokens)`, where an example is several
        texts.

    Raises:
        UserError: It is no such backbone, or the weights of its Dense layers cannot be read.
    """
    if encoding_of(model) is None:
        check_backbone(model.config)
        if not {"input_ids", "attention_mask"} <= set(signature(model.forward).parameters):
            raise UserError(f"{type(model).__name__} does not take input_ids and attention_mask.", key="model")
        # Weights, hooks and configuration stay; only `forward`, `save_pretrained` and `from_pretrained` do more.
        kind: Any = type(model)
        encoding = encoding or Encoding()
        model.__class__ = _sentence_class(kind, encoding)
        _add_dense(model, encoding)
        if encoding.dense and (beside := read_encoding(model.config)) and beside.dense == encoding.dense:
            load_dense(model, model.config)
    return model


def _add_dense(model: Any, encoding: Encoding) -> None:
    """Give a backbone its Dense layers, new; `save_pretrained` leaves them out of the backbone's file."""
    if encoding.dense:
        stack = dense_stack(encoding.dense).to(model.device, model.dtype)
        model.add_module(DENSE, stack)
        own = {f"{DENSE}.{name}" for name in stack.state_dict()}
        model._keys_to_ignore_on_save = own | set(model._keys_to_ignore_on_save or ())


def load_dense(model: nn.Module, config: PretrainedConfig) -> None:
    """Load the weights of a sentence encoder's Dense layers, where it has any.

    Args:
        model: The model.
        config: Says where they are (`sentence_files.at` of a directory).

    Raises:
        UserError: They are not there, or not those of these layers.
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
    """Return the width of the vectors of a sentence encoder, or of what stands for one and has its `config`."""
    encoding = encoding_of(model)
    return width_of(model.config) if encoding is None else encoding.width(model.config.hidden_size)


def without_dense(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class of a model, of a sentence encoder without its Dense layers, whose widths are its own."""
    encoding = encoding_of(kind)
    if encoding is None or not encoding.dense:
        return kind
    backbone: Any = kind.__base__
    return _sentence_class(backbone, replace(encoding, dense=()))


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
        pooled = encoding(outputs.last_hidden_state, flat["attention_mask"], self._modules.get(DENSE))
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
        "__reduce__": reduce,  # by name, pickle would find the backbone
        "__module__": backbone.__module__,
        "__qualname__": backbone.__qualname__,
        "__doc__": backbone.__doc__,
    }
    return type(backbone.__name__, (backbone,), body)


def _layers(model: PreTrainedModel, state: Mapping[str, Tensor] | None) -> list[dict[str, Tensor]]:
    """Return the weights of each Dense layer, from a state gathered from several processes where there is one."""
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
        prompt: What stands before every text in the tokens that they will read.
        skipped: How many tokens of it take no part in the pooling, where a model's files leave it out.
    """

    default: Encoding
    max_length: int | None
    prompt: str = ""
    skipped: int = 0

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """Pool as the model's own files say, else as the default does.

        Raises:
            UserError: The model puts another prompt before texts.
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
