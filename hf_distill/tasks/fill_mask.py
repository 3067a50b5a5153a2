"""Fill-mask: masked language models. The masks depend only on the seed, the epoch and the example."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.data import by_length
from hf_distill.data.example_columns import SOURCE, held_features
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.evaluator import LossEvaluator
from hf_distill.tasks.language import (
    PadTokens,
    among,
    check_shared,
    check_texts,
    pad_token_id,
    token_features,
    vocabulary,
)
from hf_distill.tasks.tokenising import cache_key, tokenise

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Share of the chosen tokens that become the mask token, and share that become a random token; the rest stay unchanged
# (BERT, Devlin et al. 2019, arXiv 1810.04805, section 3.1).
MASKED, REPLACED = 0.8, 0.1
# Not an epoch of training: it stands for the masks of the eval split, which never change.
EVAL = -1


@component
class FillMask(Task):
    """Predict masked tokens from all others (masked language models).

    Both models see the same masked batch. A text longer than `data.max_length` becomes several examples.

    Attributes:
        mask_share: Share of the tokens of an example to mask and learn. At least one token is masked.
        whole_word: Mask all tokens of a word or none.
        loss_on: `masked`: compare the models on masked tokens. `all`: compare them on every token; the label loss still
            uses masked tokens only.
        seed: Seed of the masks. They depend on it, the epoch and the example alone.
    """

    name: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    roles: ClassVar[Mapping[str, bool]] = {"text": True}
    changes_inputs: ClassVar[bool] = True
    compares_tokens: ClassVar[bool] = True
    groups_by_length: ClassVar[bool] = True

    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_word: bool = False
    loss_on: Literal["masked", "all"] = "masked"
    seed: int = 0

    def check_model(self, config: PretrainedConfig) -> None:
        """Refuse encoder-decoder models, which do not predict a token at its own position."""
        if config.is_encoder_decoder:
            raise UserError(
                f"a {config.model_type} model writes the whole text again. Wanted an encoder that predicts masked "
                "tokens at their positions (BERT, RoBERTa, ...).",
                key="model",
            )

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised texts, cut to `max_length`; the eval split with fixed masks."""
        from hf_distill.metrics.score import check
        from hf_distill.metrics.table import DEFAULTS
        from hf_distill.rows.tokens import TokenRows

        tokenizer, max_length = setup.tokenizer, setup.max_length
        names = setup.metrics or list(DEFAULTS["tokens"])
        width = vocabulary(tokenizer)
        check(names, "tokens", width)
        if setup.label_names:
            raise UserError("names are for classes, and a language model has none. Leave them out.", key="labels")
        check_texts(splits, ["text"])
        added = tokenizer.num_special_tokens_to_add()
        if max_length is not None and max_length <= added:
            raise UserError(
                f"{max_length} tokens leave no room for text: the tokenizer adds {added} of its own. Wanted more.",
                key="max_length",
            )
        masker = self._masker(tokenizer, setup.left_out)
        tokenised = {name: _tokenise(split, name, tokenizer, max_length) for name, split in splits.items()}
        check_shared(tokenised, setup)
        return Prepared(
            train=tokenised["train"],
            eval=by_length(_mask_once(tokenised["eval"], masker, tokenizer)),
            head=Head(self.auto_class),
            layout=TokenRows(classes=width, left_out=among(setup.left_out, width)),
            collator=MaskTokens(masker, PadTokens(pad_token_id(tokenizer, setup.left_out)), tokenizer),
            evaluator=LossEvaluator(tuple(names), width),
            label_names=None,
            labelled=True,
        )

    def _masker(self, tokenizer: PreTrainedTokenizerBase, left_out: tuple[int, ...]) -> Masker:
        if tokenizer.mask_token_id is None:
            raise UserError(
                "the tokenizer has no mask token: the models are not masked language models. For models that predict "
                "the next token use task: text-generation."
            )
        if tokenizer.mask_token_id in left_out:
            raise UserError(
                "the student's mask token is another token for the teacher. Choose models with the same mask token."
            )
        special = {*tokenizer.all_special_ids, *left_out}
        return Masker(
            mask_id=tokenizer.mask_token_id,
            special=frozenset(special),
            others=tuple(number for number in sorted(tokenizer.get_vocab().values()) if number not in special),
            inside=_inside(tokenizer) if self.whole_word else frozenset(),
            share=self.mask_share,
            seed=self.seed,
            unmasked=UNLABELLED if self.loss_on == "all" else IGNORED,
        )


def _inside(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of tokens that continue a word, as the vocabulary marks them (`##`, `Ġ` or `▁`)."""
    vocab: dict[str, int] = tokenizer.get_vocab()
    if any(token.startswith("##") for token in vocab):
        return frozenset(number for token, number in vocab.items() if token.startswith("##"))
    for sign in ("Ġ", "▁"):
        if any(token.startswith(sign) for token in vocab):
            return frozenset(number for token, number in vocab.items() if not token.startswith(sign))
    raise UserError("the tokenizer's vocabulary does not say where words begin. Leave out task.whole_word.")


# ---- Masks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masker:
    """Masks tokens of an example.

    The masks depend on the seed, the epoch and the example's tokens only: not on other examples of the batch or on
    earlier random numbers. A step is the same for 8 x 1, 4 x 2 and 2 processes x 4, and after a resume.

    Attributes:
        mask_id: Id of the mask token.
        special: Ids of tokens that are never masked.
        others: Ids of tokens that may replace a masked one.
        inside: Ids of tokens that belong to the same word as the token before them.
        share: Share of the tokens to mask.
        seed: Seed of the masks.
        unmasked: Label of tokens that are not masked.
    """

    mask_id: int
    special: frozenset[int]
    others: tuple[int, ...]
    inside: frozenset[int]
    share: float
    seed: int
    unmasked: int

    def __call__(self, ids: list[int], epoch: int) -> tuple[list[int], list[int]]:
        """Return the ids with masks, and the labels: the original ids where masked, elsewhere `unmasked` or -100."""
        draw = self._generator(ids, epoch)
        words = self._words(ids)
        seen = list(ids)
        labels = [IGNORED if token in self.special else self.unmasked for token in ids]
        for place in self._choose(words, draw):
            labels[place] = ids[place]
            fate, other = draw.random(), int(draw.integers(len(self.others)))
            if fate < MASKED:
                seen[place] = self.mask_id
            elif fate < MASKED + REPLACED:
                seen[place] = self.others[other]
        return seen, labels

    def _generator(self, ids: list[int], epoch: int) -> np.random.Generator:
        import numpy as np

        text = f"{self.seed} {epoch} {ids}".encode()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little"))

    def _words(self, ids: list[int]) -> list[list[int]]:
        """Return the positions of the tokens of each word, without special tokens."""
        words: list[list[int]] = []
        before = None
        for place, token in enumerate(ids):
            if token not in self.special:
                if token in self.inside and before is not None and before not in self.special:
                    words[-1].append(place)
                else:
                    words.append([place])
            before = token
        return words

    def _choose(self, words: list[list[int]], draw: np.random.Generator) -> Iterable[int]:
        """Return the positions to mask: words in random order that fit into the share; at least one word."""
        wanted = max(1, round(self.share * sum(map(len, words))))
        chosen: list[int] = []
        for index in draw.permutation(len(words)).tolist():
            if not chosen or len(chosen) + len(words[index]) <= wanted:
                chosen += words[index]
        return chosen


class MaskTokens:
    """Masks the examples without labels, and pads.

    Args:
        masker: Masks tokens.
        pad: Makes the batch.
        tokenizer: Tokenizer of the examples.
    """

    def __init__(self, masker: Masker, pad: PadTokens, tokenizer: PreTrainedTokenizerBase) -> None:
        import torch

        self.masker = masker
        self.pad = pad
        self.tokenizer = tokenizer
        # In shared memory: workers of a data loader live longer than an epoch and hold copies of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose masks are used; `batches.SetEpoch` calls this."""
        self._epoch.fill_(epoch)

    def freeze(self, split: Dataset) -> Dataset:
        """Return the examples with the masks of the first epoch, fixed for all epochs."""
        return _mask_once(split, self.masker, self.tokenizer, epoch=0, name="train")

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, `(batch, longest)` each, as `PadTokens` does."""
        epoch = int(self._epoch)
        return self.pad([one if "labels" in one else self._mask(one["input_ids"], epoch) for one in examples])

    def _mask(self, ids: list[int], epoch: int) -> dict[str, Any]:
        seen, labels = self.masker(ids, epoch)
        return {"input_ids": seen, "labels": labels}


# ---- Tokens ----------------------------------------------------------------------------------------------------------


def _tokenise(split: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """Return `input_ids` and `length` of a split; the next run reads them from the cache of `datasets`."""
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    if cut and tokenizer.is_fast:
        cut["return_overflowing_tokens"] = True

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [row for row, text in enumerate(batch["text"]) if text.strip()]
        special = set(tokenizer.all_special_ids)
        found: Any = (
            tokenizer([batch["text"][row] for row in rows], verbose=False, **cut) if rows else {"input_ids": []}
        )
        parts = zip(found.get("overflow_to_sample_mapping", range(len(rows))), found["input_ids"], strict=True)
        kept = [(rows[text], ids) for text, ids in parts if not special.issuperset(ids)]
        return {
            "input_ids": [ids for _, ids in kept],
            "length": [len(ids) for _, ids in kept],
            SOURCE: [row for row, _ in kept],
        }

    features = token_features(labels=False)
    tokenised = tokenise(split, name, encode, tokenizer, FillMask.name, max_length, features=features)
    if len(tokenised) == 0:
        raise UserError(f"no text of the {name} split has a token that could be masked.", key="columns.text")
    return tokenised


def _mask_once(
    split: Dataset, masker: Masker, tokenizer: PreTrainedTokenizerBase, epoch: int = EVAL, name: str = "eval"
) -> Dataset:
    """Return the split with fixed masks, so that all models are evaluated on the same masks."""
    from datasets import Features

    def mask(example: dict[str, Any]) -> dict[str, Any]:
        seen, labels = masker(example["input_ids"], epoch)
        return {"input_ids": seen, "labels": labels}

    settings = ("masks", masker.share, masker.seed, masker.unmasked, bool(masker.inside), epoch)
    key = cache_key(split, tokenizer, *settings)
    features = Features({**token_features(), **held_features(split)})
    return split.map(mask, features=features, desc=f"Masking {name}", new_fingerprint=key)
