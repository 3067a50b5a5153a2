"""Cut the vocabulary of a tokenizer to some of its tokens."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.token_parts import pair_of, state_of, tokens_around
from hf_distill.models.tokenizers import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cut:
    """The part of a vocabulary that a student has.

    Attributes:
        kept: The ids that its tokens have in the whole vocabulary, ascending; the new ids are their places here.
        tokenizer: The tokenizer with these tokens.
        whole: Number of tokens of the whole tokenizer.
        split: Share of the tokens of the eval split that are left out, and split into smaller ones.
    """

    kept: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase
    whole: int
    split: float


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """Return the tokenizer with some of its tokens, whose new ids are their places in `kept`.

    Args:
        tokenizer: The whole tokenizer; it stays as it is.
        kept: Ids of the tokens that stay, ascending, with everything that `token_parts.Pieces` says they need.

    Raises:
        UserError: Its vocabulary cannot be cut, or a saved cut tokenizer would be loaded as another one.
    """
    import tokenizers
    from transformers import AutoTokenizer

    state = _cut(state_of(tokenizer), {old: new for new, old in enumerate(kept)})
    smaller: Any = copy.deepcopy(tokenizer)
    smaller._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    # Saved and opened, since some classes make a tokenizer anew from its vocabulary: what is trained is what is loaded.
    with tempfile.TemporaryDirectory() as place:
        smaller.save_pretrained(place)
        opened: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    for name in ("name_or_path", "padding_side", "truncation_side", "model_max_length"):
        setattr(opened, name, getattr(tokenizer, name))  # those set since it was opened are not saved
    if _compared(opened) != _compared(smaller):
        raise UserError(
            f"the vocabulary of the tokenizer ({tokenizer_name(tokenizer)}) cannot be cut: once saved, it is loaded as "
            "another one."
        )
    return opened


def _compared(tokenizer: Any) -> Any:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return [state[key] for key in ("added_tokens", "model", "normalizer", "pre_tokenizer", "post_processor", "decoder")]


def _cut(state: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    """Return a tokenizer's state with some of its tokens, under new ids."""
    model = state["model"]
    if model["type"] == "Unigram":
        entries = model["vocab"]
        model["vocab"] = [entry for number, entry in enumerate(entries) if number in places]
        model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = {token: places[number] for token, number in model["vocab"].items() if number in places}
    if model["type"] == "BPE":
        prefix, there = model.get("continuing_subword_prefix") or "", model["vocab"].keys()
        model["merges"] = [
            [one, other]
            for one, other in map(pair_of, model["merges"])
            if there >= {one, other, one + other.removeprefix(prefix)}
        ]
    state["added_tokens"] = [{**token, "id": places[token["id"]]} for token in state["added_tokens"]]
    for around in tokens_around(state["post_processor"]):
        if isinstance(around, dict):
            around["ids"] = [places[number] for number in around["ids"]]
        else:
            around[1] = places[around[1]]
    if state.get("padding"):
        state["padding"]["pad_id"] = places.get(state["padding"]["pad_id"], 0)
    return state
