"""Cut the embeddings of a model, and the ids in its configuration, to some of the tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.inspection import evaluating
from hf_distill.students.base import build

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_SIZES = ("vocab_size", "decoder_vocab_size")
# Lists of ids that are not generated: those of tokens that are gone are not needed any more.
_NEVER = ("suppress_tokens", "begin_suppress_tokens")


def rows_of(config: PretrainedConfig) -> int:
    """Return the number of rows of the embeddings, which may be more than the tokenizer has tokens.

    Raises:
        UserError: The configuration does not say, or has two different numbers.
    """
    numbers: list[int | None] = [getattr(one, key, None) for one in _parts(config) for key in _SIZES]
    sizes = {size for size in numbers if size is not None}
    if len(sizes) != 1:
        found = " and ".join(map(str, sorted(sizes))) or "none"
        raise UserError(f"wanted a {config.model_type} model with one size of the vocabulary, found {found}.")
    (rows,) = sizes
    return rows


def special_ids(config: PretrainedConfig) -> set[int]:
    """Return the ids that a configuration names: of padding, of the end, of the decoder's start, ..."""
    found: set[int] = set()
    for one in _parts(config):
        for value in _ids(vars(one)).values():
            found |= {value} if isinstance(value, int) else set(value)
    return found


def cut_config(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """Return a configuration for some of the tokens, whose new ids are their places in `kept`.

    Raises:
        UserError: It has vocabularies of different sizes.
    """
    rows_of(config)
    smaller = copy.deepcopy(config)
    for one in _parts(smaller):
        for key in _SIZES:
            if getattr(one, key, None) is not None:
                setattr(one, key, len(kept))
        _renumber(one, kept)
    smaller.name_or_path = ""  # no checkpoint of this shape exists
    return smaller


def cut_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a model with the rows of some of the tokens; all other weights stay.

    Embeddings, output heads (tied or not) and their biases are cut together. For these tokens it computes the same as
    the whole model, which is tried out.

    Args:
        model: The whole model; it stays as it is.
        kept: Ids of the tokens that stay.

    Raises:
        UserError: It has weights that depend on the vocabulary in another way, or the cut model computes something
            else.
    """
    rows, config = rows_of(model.config), cut_config(model.config, kept)
    smaller = build(type(model), config, key="name")
    whole = model.state_dict()
    weights = {name: _cut(name, whole.get(name), own, rows, kept, model) for name, own in smaller.state_dict().items()}
    smaller.load_state_dict(weights)
    if smaller.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)
        _renumber(smaller.generation_config, kept)
    _check_alike(model, smaller, kept)
    return smaller


def _cut(
    name: str, whole: Tensor | None, smaller: Tensor, rows: int, kept: Sequence[int], model: PreTrainedModel
) -> Tensor:
    """Return the part of a weight that belongs to the tokens; a weight that has nothing to do with them, whole."""
    import torch

    if whole is not None and whole.shape == smaller.shape:
        return whole
    shape = () if whole is None else tuple(whole.shape)
    for axis in (0, 1):
        expected = (*shape[:axis], len(kept), *shape[axis + 1 :])
        if whole is not None and shape[axis : axis + 1] == (rows,) and expected == tuple(smaller.shape):
            return whole.index_select(axis, torch.tensor(kept, device=whole.device))
    raise UserError(
        f"the vocabulary of a {type(model).__name__} cannot be cut: {name} would have the shape "
        f"{tuple(smaller.shape)}, and has {shape or 'none'}.",
        key="name",
    )


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield a configuration and those inside it, as of a text part."""
    from transformers import PretrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _ids(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are the id of a special token, or a list of such ids."""
    return {
        key: value
        for key, value in values.items()
        if key.endswith(("_token_id", "_token_ids"))
        and (type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value)))
    }


def _renumber(settings: Any, kept: Sequence[int]) -> None:
    """Give the ids in a configuration, or in settings of generation, their new numbers; those that are gone go."""
    places = {old: new for new, old in enumerate(kept)}
    for key, value in _ids(vars(settings)).items():
        if isinstance(value, int):
            setattr(settings, key, places.get(value))
        else:
            setattr(settings, key, [places[one] for one in value if one in places])
    for key in _NEVER:
        if value := getattr(settings, key, None):
            setattr(settings, key, [places[one] for one in value if one in places] or None)
    if words := getattr(settings, "bad_words_ids", None):
        there = [word for word in words if all(one in places for one in word)]
        settings.bad_words_ids = [[places[one] for one in word] for word in there] or None
    if forced := getattr(settings, "forced_decoder_ids", None):
        settings.forced_decoder_ids = [[place, places.get(one)] for place, one in forced]


def _check_alike(whole: PreTrainedModel, smaller: PreTrainedModel, kept: Sequence[int]) -> None:
    """Refuse a model that computes something else than before: one whose positions begin at the id of padding."""
    import torch

    some = torch.linspace(0, len(kept) - 1, 8).long()
    found = []
    for model, ids in ((whole, torch.tensor(kept)[some]), (smaller, some)):
        text = ids[None].to(model.device)
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = text
        with torch.no_grad(), evaluating(model):
            found.append(model(**inputs)[0].float().cpu())
    before, after = found
    if before.shape != after.shape:
        before = before[..., list(kept)]
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"the vocabulary of a {type(whole).__name__} cannot be cut: for the same tokens it would compute something "
            "else than before.",
            key="name",
        )
