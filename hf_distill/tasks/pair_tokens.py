"""Tokenise pairs of texts: the encoder's source, the decoder's target, and the token that the decoder begins with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data.example_columns import SOURCE
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.models.decoders import decoder_start
from hf_distill.tasks.generation import REFERENCE
from hf_distill.tasks.language import pad, token_features
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """How a decoder begins.

    Attributes:
        token: Id of its first token, in training and in generation.
        settings: Arguments of `generate` about it.
    """

    token: int
    settings: dict[str, int]


def beginning(
    tokenizer: PreTrainedTokenizerBase, configs: Sequence[PretrainedConfig], language: int | None
) -> Beginning:
    """Return how the decoders of these models begin.

    Args:
        tokenizer: Tokenizer of the models.
        configs: Configurations of the models.
        language: Id of the target language's token, for models of many languages; else None.

    Raises:
        UserError: The decoders begin with different tokens, or no configuration names the token.
    """
    if language is not None:
        target = tokenizer(text_target="a")["input_ids"]
        if target[-1] == language:  # mBART: the language token ends a text and begins the next one
            return Beginning(language, {"decoder_start_token_id": language})
    settings = {} if language is None else {"forced_bos_token_id": language}
    starts = {start for config in configs if (start := decoder_start(config)) is not None}
    if not starts:
        raise UserError(
            "neither model's configuration names the token that its decoder begins with (decoder_start_token_id). Add "
            "it to a copy of the checkpoint.",
            key="teacher",
        )
    if len(starts) > 1:
        raise UserError(
            f"its decoder and the teacher's begin with different tokens ({' and '.join(map(str, sorted(starts)))}), so "
            "one batch cannot feed both. Choose a student of the teacher's family, or student: {name: copy_layers, "
            "...}.",
            key="student",
        )
    return Beginning(starts.pop(), settings)


@dataclass(frozen=True)
class PadPairs:
    """Pads sources and targets on the right, each to its own length, and shifts the targets for the decoder.

    Padding is found by the length of each example, never by the id: the decoder's first token may be the padding token
    (T5, Marian). The decoder needs no mask, since no token attends to later ones.

    Attributes:
        pad_token_id: Id of padding.
        decoder_start_token_id: Id of the token that the decoder begins with.
    """

    pad_token_id: int
    decoder_start_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` `(batch, source)`, `labels`, `decoder_input_ids` `(batch, target)`."""
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        return {
            "input_ids": pad(ids, self.pad_token_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            "labels": pad(labels, IGNORED),
            "decoder_input_ids": pad([[self.decoder_start_token_id, *row[:-1]] for row in labels], self.pad_token_id),
        }


@dataclass(frozen=True)
class PairEncoder:
    """Tokenises sources and targets.

    Attributes:
        task: Name of the task.
        roles: Columns of sources and targets.
        prefix: Text before every source.
        tokenizer: Tokenizer of both models.
        source_limit: Maximum length of a source in tokens; None for no limit.
        target_limit: Maximum length of a target in tokens; None for no limit.
    """

    task: str
    roles: tuple[str, str]
    prefix: str
    tokenizer: PreTrainedTokenizerBase
    source_limit: int | None
    target_limit: int | None

    def tokenise(self, split: Dataset, name: str) -> Dataset:
        """Return `input_ids`, `labels` and `length` of a split; for the eval split also the text `reference`."""
        from datasets import Features, Value

        flags = ("source_cut", "target_cut")
        features = Features({**token_features(*flags), **({REFERENCE: Value("string")} if name == "eval" else {})})
        languages = [getattr(self.tokenizer, key, None) for key in ("src_lang", "tgt_lang")]
        settings = (self.task, self.roles, self.prefix, name == "eval", self.source_limit, self.target_limit, languages)
        tokenised = tokenise(
            split, name, lambda batch: self(batch, name == "eval"), self.tokenizer, *settings, features=features
        )
        self._warn(split, name, tokenised)
        return tokenised.remove_columns(list(flags))

    def __call__(self, batch: Mapping[str, list[Any]], references: bool) -> dict[str, list[Any]]:
        """Return the tokens of a batch, without pairs that have an empty side."""
        both = list(zip(*(batch[role] for role in self.roles), strict=True))
        kept = [row for row, (source, target) in enumerate(both) if source.strip() and target.strip()]
        pairs = [both[row] for row in kept]
        sources, source_cut = self._encode(self.source_limit, [self.prefix + source for source, _ in pairs])
        targets, target_cut = self._encode(self.target_limit, target=[target for _, target in pairs])
        return {
            "input_ids": sources,
            "labels": targets,
            "length": [len(ids) for ids in sources],
            "source_cut": source_cut,
            "target_cut": target_cut,
            SOURCE: kept,
            **({REFERENCE: [target for _, target in pairs]} if references else {}),
        }

    def _encode(
        self, limit: int | None, source: list[str] | None = None, target: list[str] | None = None
    ) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text, and whether it was truncated."""
        if not (source or target):
            return [], []
        encoding = self.tokenizer(
            source, text_target=target, truncation=limit is not None, max_length=limit, verbose=False
        )
        ids: list[list[int]] = encoding["input_ids"]
        if encoding.encodings is not None:
            return ids, [bool(one.overflowing) for one in encoding.encodings]
        return ids, [limit is not None and len(row) >= limit for row in ids]

    def _warn(self, split: Dataset, name: str, tokenised: Dataset) -> None:
        """Warn about dropped pairs and truncated texts, once for each split."""
        source, target = self.roles
        if len(tokenised) == 0:
            raise UserError(
                f"every example of the {name} split has an empty {source} or {target}.", key=f"columns.{target}"
            )
        if dropped := len(split) - len(tokenised):
            logger.warning(
                "%s of %s examples of the %s split are dropped: their %s or %s is empty",
                *(dropped, len(split), name, source, target),
            )
        for flag, what, limit in (
            ("source_cut", source, f"data.max_length: {self.source_limit}"),
            ("target_cut", target, f"task.max_target_length: {self.target_limit}; the student learns to stop there"),
        ):
            if cut := sum(tokenised[flag]):
                logger.warning(
                    "in %s of %s examples of the %s split the %s is truncated (%s)",
                    cut,
                    len(tokenised),
                    name,
                    what,
                    limit,
                )
