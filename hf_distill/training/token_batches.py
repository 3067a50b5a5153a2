"""Splits the examples of a step into micro-batches of at most so many tokens (`max_tokens_per_batch`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers.trainer_pt_utils import nested_concat

from hf_distill import parallel
from hf_distill.data.two_tokenizers import MARK

logger = logging.getLogger(__name__)

Example = Mapping[str, Any]
One = TypeVar("One")


class MicroBatches(list[Any]):
    """Collated micro-batches that take the place of one: all that are computed before gradients are exchanged."""


@dataclass(frozen=True)
class Uncollated:
    """The examples of a micro-batch before they are padded. Not a list, in which accelerate would look for tensors.

    Attributes:
        examples: The tokenised rows.
    """

    examples: list[Example]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Uncollated:
        """Return rows as lists and numbers, whatever the format of the data set: a checkpoint may hold them."""
        return cls(
            [{name: getattr(one, "tolist", lambda one=one: one)() for name, one in row.items()} for row in examples]
        )


@dataclass(frozen=True)
class Later:
    """A collator that pads nothing, in place of one that is called once the micro-batches are known.

    Attributes:
        collate: That one.
    """

    collate: Callable[[list[Any]], Any]

    def __call__(self, examples: Sequence[Example]) -> Uncollated:
        """Return the examples."""
        return Uncollated.of(examples)

    def set_epoch(self, epoch: int) -> None:
        """Tell the other collator the epoch: masks that it draws may depend on it."""
        if (told := getattr(self.collate, "set_epoch", None)) is not None:
            told(epoch)


@dataclass
class TokenBatches:
    """Splits examples into micro-batches of at most so many tokens.

    A micro-batch of `n` examples whose longest has `m` tokens counts as `n x m`, its size with padding; without padding
    it counts as the sum of the tokens. An example that is longer than the limit is a micro-batch of its own.

    Attributes:
        limit: Largest number of tokens of a micro-batch.
        padded: Whether micro-batches are padded.
        decoder: Whether a decoder reads the labels, so that they count too.
    """

    limit: int
    padded: bool = True
    decoder: bool = False
    _warned: bool = False

    def split(self, examples: Sequence[Example], *, ordered: bool = False) -> list[list[Example]]:
        """Return micro-batches with all examples, the same number of micro-batches in every process.

        They are as few as the limit allows in the process that needs most. Where a model is sharded over processes,
        every forward pass is a meeting of all of them, so their number must be the same.

        Args:
            examples: The examples of this process; all processes must call this at the same time.
            ordered: Keep the order of the examples. Else they are sorted by length, which leaves the least padding.
        """
        sizes = [tokens(one, decoder=self.decoder) for one in examples]
        order = list(range(len(sizes)))
        if not ordered:
            order.sort(key=lambda place: -sizes[place])
        groups: list[list[int]] = []
        for place in order:
            if groups and self._cost([sizes[one] for one in (*groups[-1], place)]) <= self.limit:
                groups[-1].append(place)
            else:
                groups.append([place])
        self._warn(sizes)
        number = max(parallel.from_all(len(groups)))
        while len(groups) < min(number, len(examples)):
            _halve(groups, lambda group: self._cost([sizes[one] for one in group]))
        return [[examples[place] for place in group] for group in groups]

    def _cost(self, sizes: Sequence[int]) -> int:
        return max(sizes) * len(sizes) if self.padded else sum(sizes)

    def _warn(self, sizes: Sequence[int]) -> None:
        if not self._warned and max(sizes, default=0) > self.limit:
            self._warned = True
            logger.warning(
                "an example has %s tokens, and max_tokens_per_batch is %s: such examples are micro-batches of their "
                "own. Lower max_length if they do not fit into memory",
                *(f"{max(sizes):,}", f"{self.limit:,}"),
            )


def tokens(example: Example, *, decoder: bool = False) -> int:
    """Return how many tokens an example has: of all its texts, as long as the longest of them, as they are padded.

    Where each model reads tokens of its own, those of the model that has more of them.

    Args:
        example: A tokenised row.
        decoder: Whether the labels are read by a decoder, and count too.
    """
    beside = max(_tokens(example.get("labels")), _tokens(example.get("decoder_input_ids"))) if decoder else 0
    return max(_tokens(example.get("input_ids")), _tokens(example.get(MARK)), 1) + beside


def _tokens(column: Any) -> int:
    if not isinstance(column, Sequence) or not column:
        return 0
    return len(column) * max(map(len, column)) if isinstance(column[0], Sequence) else len(column)


def _halve(groups: list[list[int]], cost: Callable[[list[int]], int]) -> None:
    """Split the largest group of at least two in its middle, where it stands."""
    at = max(
        (place for place, one in enumerate(groups) if len(one) > 1), key=lambda place: (cost(groups[place]), -place)
    )
    group = groups[at]
    groups[at : at + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]


def flat(batches: Sequence[Any]) -> list[Any]:
    """Return collated micro-batches one by one, also those that take the place of one."""
    return [one for batch in batches for one in (batch if isinstance(batch, MicroBatches) else [batch])]


def joined(parts: Sequence[Any]) -> Any:
    """Return the predictions or labels of the parts of a batch as those of the whole; None if there are none."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    found: Any = parts[0]
    concat: Any = nested_concat  # as Trainer joins those of batches
    for part in parts[1:]:
        found = concat(found, part, padding_index=-100)
    return found
