"""The rows of encoder-decoder models: one for each token of the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_distill.rows.base import Places, Unit
from hf_distill.rows.tokens import TokenRows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TargetRows(TokenRows):
    """Encoder-decoder language models: logits `(batch, target tokens, classes)`, one row a label that is not -100.

    Labels are what the decoder is to say at each position, and `decoder_input_ids` what it has said before: the same
    one place to the right, after the token that it begins with. Both must be in the batch. Labels do not reach
    `forward`, and without `decoder_input_ids` some models (BART) read the source in their place, without a word.

    Attributes:
        shift: Stays False: the shift is in `decoder_input_ids`.
        classes: Columns that are tokens; see `TokenRows`.
        left_out: See `TokenRows`.
        teacher_columns: Column of the teacher's logits for each of the student's, where their orders differ.
    """

    token_columns: ClassVar[tuple[str, ...]] = ()  # labels are those of the decoder
    token_units: ClassVar[tuple[Unit, ...]] = ("token", "row")  # of the encoder and of the decoder

    def places(self, inputs: Mapping[str, Tensor]) -> Places:
        """See `RowLayout.places`."""
        _check(inputs, "labels", "decoder_input_ids")
        return super().places(inputs)

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """See `RowLayout.counts`."""
        _check(inputs, "labels")
        return super().counts(inputs)


def _check(inputs: Mapping[str, Tensor], *wanted: str) -> None:
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise ValueError(
            f"a batch for encoder-decoder models needs {' and '.join(missing)}; found {', '.join(inputs)}. "
            "DataCollatorForSeq2Seq(tokenizer, model=student) makes decoder_input_ids of the labels."
        )
