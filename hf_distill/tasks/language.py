"""Shared by the language-model tasks: checking text columns, padding tokens, the vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.data.label_names import IGNORED
from hf_distill.data.misfits import is_text, misfit
from hf_distill.data.two_tokenizers import ALIGNED_AT, APART, SPAN
from hf_distill.errors import UserError
from hf_distill.models.tokenizers import vocabulary as vocabulary

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from hf_distill.tasks.base import Setup

logger = logging.getLogger(__name__)

# Column beside the tokens -> the value that pads it.
_PADDING = {"labels": IGNORED, ALIGNED_AT: APART, SPAN: -1}


@dataclass(frozen=True)
class PadTokens:
    """Pads token ids and their labels on the right.

    Padding is found by the length of each example, never by the id: if the end-of-text token is also the padding token,
    as in most decoders, its labels must stay.

    Attributes:
        pad_token_id: Id of padding, which the attention mask hides.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, `(batch, longest)` each; -100 means no label.

        Of examples with a teacher's tokens also `aligned_at`; of a teacher's tokens alone no `labels`.
        """
        ids = [example["input_ids"] for example in examples]
        columns = {name: value for name, value in _PADDING.items() if name in examples[0]}
        return {
            "input_ids": pad(ids, self.pad_token_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            **{name: pad([example[name] for example in examples], value) for name, value in columns.items()},
        }


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows padded with `value` on the right, `(rows, longest)`."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def token_features(
    *flags: str, labels: bool = True, texts: Sequence[str] = (), numbers: Sequence[str] = ()
) -> Features:
    """Return the column types of a tokenised split. `datasets` cannot infer them if the first batch is empty."""
    from datasets import Features, List, Value

    ids = {name: List(Value("int32")) for name in ("input_ids", *(["labels"] if labels else []))}
    columns = {**{flag: Value("bool") for flag in flags}, **{text: Value("string") for text in texts}}
    return Features({**ids, **{name: Value("int64") for name in ("length", *numbers)}, **columns})


def check_texts(splits: Mapping[str, Dataset], roles: Sequence[str]) -> None:
    """Refuse columns that do not hold a text in every row.

    Raises:
        UserError: A column has another type, or a text is missing.
    """
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for name, split in splits.items():
        for role in roles:
            texts, key = column(split, role), f"columns.{role}"
            if texts.null_count:
                first = pc.index(pc.is_null(texts), True).as_py()
                raise UserError(
                    f"{texts.null_count} of {len(split)} entries of the {name} split are missing (None), the first in "
                    f"row {first}, counted from 0. Drop or fill these rows.",
                    key=key,
                )
            if str(texts.type) not in ("string", "large_string"):
                raise misfit(texts, role, name, "text. Name another column, or convert it.", is_text)


def pad_token_id(tokenizer: PreTrainedTokenizerBase, left_out: Sequence[int] = ()) -> int:
    """Return the id to pad with; any token that both models have will do, because padding is masked."""
    number: int | None = tokenizer.pad_token_id
    if number is not None and number not in left_out:
        return number
    return next(number for number in range(len(tokenizer)) if number not in left_out)


def check_shared(splits: Mapping[str, Dataset], setup: Setup) -> None:
    """Warn how many tokens of the data mean something else to the teacher; refuse tokens that a model does not have.

    Args:
        splits: The tokenised splits.
        setup: Has the tokens that differ (`left_out`) and the models' configurations.

    Raises:
        UserError: A token is beyond the end of a model's embeddings.
    """
    if not setup.left_out:
        return
    import numpy as np

    rows = min(config.get_text_config().vocab_size for config in setup.configs)
    for name, split in splits.items():
        numbers = column(split, "input_ids").combine_chunks().flatten().to_numpy()
        if len(numbers) and numbers.max() >= rows:
            first = next(row for row, ids in enumerate(split["input_ids"]) if max(ids) >= rows)
            token = next(one for one in split["input_ids"][first] if one >= rows)
            raise UserError(
                f"example {first} of the {name} split, counted from 0, has the token "
                f"'{setup.tokenizer.convert_ids_to_tokens(token)}' ({token}), and a model's vocabulary ends at "
                f"{rows - 1}. Remove it from the texts, or choose two models that have it.",
                key="columns",
            )
        if found := int(np.isin(numbers, setup.left_out).sum()):
            logger.warning(
                "%s of %s tokens of the %s split mean something else to the teacher: its predictions after them are "
                "for another text. Teacher and student are compared on the tokens that both have",
                *(f"{found:,}", f"{len(numbers):,}", name),
            )


def among(left_out: Sequence[int], classes: int) -> tuple[int, ...]:
    """Return those tokens of `left_out` that are columns of the student's head."""
    return tuple(number for number in left_out if number < classes)
