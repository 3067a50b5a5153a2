"""Compute how likely a language model finds each of some fixed continuations after a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.decoders import decoder_start
from hf_distill.models.target_rows import upcast

# Keys and values of every layer.
KeysValues = list[tuple[Tensor, Tensor]]


class Continuations:
    """Scores continuations: the sum over the tokens `t` of a continuation of `log p(t | prompt, tokens before t)`.

    A decoder computes the keys and values of a prefix, which all prompts share, once; each batch then runs the rest of
    its prompts, and each continuation of several tokens the tokens after that. An encoder reads a prompt in both
    directions, so nothing of it can be shared, but it runs once for all continuations. Logits are computed only where
    a token of a continuation is predicted.

    Padding changes nothing, on whichever side it is. Decoders that take no positions, count them otherwise or hold
    something else than keys and values of all tokens (sliding windows, states) run without padding and without a shared
    prefix.

    Args:
        model: A causal or encoder-decoder language model.
        continuations: Token ids of each continuation; none is empty.
        prefixes: Token ids before the prompts. Usually one; each call says which.
        opening: Token ids with which a decoder begins every continuation, after its start token.
        mean: Whether a score is the mean over the tokens in place of the sum (length normalisation).
    """

    def __init__(
        self,
        model: Any,
        continuations: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]] = ((),),
        *,
        opening: Sequence[int] = (),
        mean: bool = False,
    ) -> None:
        self.model = model
        self.continuations = tuple(map(tuple, continuations))
        self.prefixes = tuple(map(tuple, prefixes))
        self.opening = tuple(opening)
        self.mean = mean
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._extends = not model.config.is_encoder_decoder and _holds_keys_and_values(model, self._takes)
        self._known: dict[Any, KeysValues] = {}

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor, prefix: int = 0) -> Tensor:
        """Return the scores `(batch, continuations)`, in float32 or better.

        Args:
            input_ids: Each prompt after its prefix, padded on any side, `(batch, tokens)`.
            attention_mask: 0 for padding, `(batch, tokens)`.
            prefix: Index of the prefix of these prompts.
        """
        if self.model.config.is_encoder_decoder:
            return self._encoded(input_ids, attention_mask, prefix)
        if self._extends:
            return self._extended(input_ids, attention_mask, prefix)
        return self._whole(input_ids, attention_mask, prefix)

    # ---- Decoders with keys and values ----

    def _extended(self, ids: Tensor, mask: Tensor, prefix: int) -> Tensor:
        ids, mask = aligned(ids, mask, right=True)
        before = len(self.prefixes[prefix])
        shared = self._prefix(prefix, ids.device) if before else None
        read = torch.cat([mask.new_ones(len(ids), before), mask], -1)
        lengths = read.sum(-1, keepdim=True)
        positions = (before + mask.cumsum(-1) - 1).clamp(min=0)
        outputs = self._run(ids, read, positions, shared, keep=1)
        scores = list(_log_probabilities(outputs.logits[:, -1]).T[[one[0] for one in self.continuations]])
        held: KeysValues | None = None
        for place, tokens in enumerate(self.continuations):
            if len(tokens) == 1:
                continue
            held = held or _layers(outputs.past_key_values)
            more = ids.new_tensor(tokens[:-1]).expand(len(ids), -1)
            after = lengths + torch.arange(more.shape[1], device=ids.device)
            seen = torch.cat([read, read.new_ones(more.shape)], -1)
            logits = self._run(more, seen, after, held, keep=more.shape[1]).logits
            scores[place] = scores[place] + _of_tokens(logits, tokens[1:])
        return self._scores(scores)

    def _prefix(self, number: int, device: torch.device) -> KeysValues:
        """Return the keys and values of a prefix, `(1, heads, tokens, width)` in each layer."""
        half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        where = (number, device, half)
        if where not in self._known:
            ids = torch.tensor([self.prefixes[number]], device=device)
            places = torch.arange(ids.shape[1], device=device).unsqueeze(0)
            self._known[where] = _layers(self._run(ids, torch.ones_like(ids), places, None, keep=1).past_key_values)
        return self._known[where]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, before: KeysValues | None, keep: int) -> Any:
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=None if before is None else _cache(before, len(ids)),
            use_cache=True,
            **self._keeping(keep),
        )

    def _keeping(self, positions: int) -> dict[str, int]:
        """Return the argument that computes the logits of the last positions only, where the model has it."""
        return {"logits_to_keep": positions} if "logits_to_keep" in self._takes else {}

    # ---- Other decoders ----

    def _whole(self, ids: Tensor, mask: Tensor, prefix: int) -> Tensor:
        """Return the scores, from whole sequences of equal length without padding."""
        ids, mask = aligned(ids, mask, right=True)
        lengths = mask.sum(-1)
        found: Tensor | None = None
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero()[:, 0]
            start = ids.new_tensor(self.prefixes[prefix]).expand(len(rows), -1)
            scores = self._each(torch.cat([start, ids[rows, ids.shape[1] - length :]], -1))
            found = scores.new_zeros(len(ids), scores.shape[1]) if found is None else found
            found[rows] = scores
        assert found is not None
        return found

    def _each(self, prompts: Tensor) -> Tensor:
        scores: list[Tensor] = []
        first: Tensor | None = None
        for tokens in self.continuations:
            if len(tokens) > 1 or first is None:
                more = prompts.new_tensor(tokens[:-1]).expand(len(prompts), -1)
                whole = torch.cat([prompts, more], -1)
                logits = self.model(input_ids=whole, **self._plainly(), **self._keeping(len(tokens))).logits
                logits = logits[:, -len(tokens) :]
                first = logits[:, :1]
            scores.append(_of_tokens(logits if len(tokens) > 1 else first, tokens))
        return self._scores(scores)

    def _plainly(self) -> dict[str, bool]:
        return {"use_cache": False} if "use_cache" in self._takes else {}

    # ---- Encoder and decoder ----

    def _encoded(self, ids: Tensor, mask: Tensor, prefix: int) -> Tensor:
        start = ids.new_tensor(self.prefixes[prefix]).expand(len(ids), -1)
        ids, mask = torch.cat([start, ids], -1), torch.cat([mask.new_ones(start.shape), mask], -1)
        ids, mask = aligned(ids, mask, right=False)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        begins = [decoder_start(self.model.config), *self.opening]
        first: Tensor | None = None
        scores: list[Tensor] = []
        for tokens in self.continuations:
            if len(tokens) > 1 or first is None:
                said = ids.new_tensor([*begins, *tokens[:-1]]).expand(len(ids), -1)
                logits = self.model(
                    encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=said, use_cache=False
                ).logits[:, len(begins) - 1 :]
                first = logits[:, :1]
            scores.append(_of_tokens(logits if len(tokens) > 1 else first, tokens))
        return self._scores(scores)

    def _scores(self, sums: Sequence[Tensor]) -> Tensor:
        whole = torch.stack(list(sums), -1)
        return whole / whole.new_tensor([len(one) for one in self.continuations]) if self.mean else whole


def aligned(ids: Tensor, mask: Tensor, *, right: bool) -> tuple[Tensor, Tensor]:
    """Return tokens and mask with each row's tokens moved to one side, in their order.

    >>> aligned(torch.tensor([[7, 8, 0]]), torch.tensor([[1, 1, 0]]), right=True)
    (tensor([[0, 7, 8]]), tensor([[0, 1, 1]]))
    """
    order = mask.argsort(dim=-1, descending=not right, stable=True)
    return ids.take_along_dim(order, -1), mask.take_along_dim(order, -1)


def _log_probabilities(logits: Tensor) -> Tensor:
    return upcast(logits).log_softmax(-1)


def _of_tokens(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the sum of the log-probabilities of tokens, `(batch,)`.

    Args:
        logits: Those that predict each of the tokens, `(batch, tokens, vocabulary)`.
        tokens: The tokens.
    """
    wanted = torch.tensor(tokens, device=logits.device).view(1, -1, 1)
    return _log_probabilities(logits).take_along_dim(wanted, -1)[..., 0].sum(-1)


# ---- Keys and values -------------------------------------------------------------------------------------------------


def _holds_keys_and_values(model: Any, takes: frozenset[str]) -> bool:
    """Return whether a decoder takes positions from 0 on, and holds keys and values of all tokens and nothing else."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if not {"position_ids", "past_key_values", "attention_mask"} <= takes:
        return False
    # GPT-Neo counts the tokens of its windows in the batch, padding between prefix and prompt among them.
    if "local" in (getattr(model.config, "attention_layers", None) or ()):
        return False
    # RoBERTa and its kin number tokens from behind the padding token on.
    tables = (one for name, one in model.named_modules() if name.endswith("position_embeddings"))
    if any(getattr(one, "padding_idx", None) is not None for one in tables):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _layers(cache: Any) -> KeysValues:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache(layers: KeysValues, batch: int) -> Any:
    """Return a cache that begins with these keys and values, for each row; they are not changed by its use."""
    from transformers import DynamicCache

    return DynamicCache(tuple(_expanded(layers, batch)))


def _expanded(layers: KeysValues, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for keys, values in layers:
        yield keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)
