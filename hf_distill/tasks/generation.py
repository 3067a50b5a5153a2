"""Judging models by the texts they generate, on every process a share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_distill.tasks.language import pad

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"


@dataclass(frozen=True)
class Generator:
    """`Prepared.generate` of encoder-decoder models.

    Attributes:
        split: The eval split, sorted by length, with `input_ids` and, as text, `reference`.
        tokenizer: Of both models.
        pad_token_id: Stands where there is no token; masked.
        names: Metrics.
        settings: What all models generate with; the rest is each model's own `generation_config`.
    """

    split: Dataset
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    names: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: PreTrainedModel, batch_size: int) -> dict[str, float]:
        """Return the metrics over the whole split, the same on every process."""
        from hf_distill.metrics.text import score_texts

        return score_texts(self.names, self.texts(model, batch_size), self.split[REFERENCE][:])

    def texts(self, model: PreTrainedModel, batch_size: int) -> list[str]:
        """Return what a model generates for each row of the split, in its order."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        from hf_distill.models.inspection import evaluating

        state = PartialState()
        # Every second row rather than the first half: rows are sorted, and the long ones would all be on one process.
        rows = list(range(state.process_index, len(self.split), state.num_processes))
        with evaluating(model), _one_limit(model):
            made = list(zip(rows, self._generate(model, rows, batch_size), strict=True))
        if state.num_processes > 1:
            made = gather_object(made)
        return [text for _, text in sorted(made)]

    def _generate(self, model: PreTrainedModel, rows: Sequence[int], batch_size: int) -> Iterator[str]:
        untyped: Any = model
        for start in range(0, len(rows), batch_size):
            ids = self.split[list(rows[start : start + batch_size])]["input_ids"]
            made = untyped.generate(
                input_ids=pad(ids, self.pad_token_id).to(model.device),
                attention_mask=pad([[1] * len(row) for row in ids], 0).to(model.device),
                do_sample=False,
                **self.settings,
            )
            yield from self.tokenizer.batch_decode(made, skip_special_tokens=True)


@contextmanager
def _one_limit(model: PreTrainedModel) -> Iterator[None]:
    """Have a model generate without its own limit: of two, Transformers says with every batch which one it takes."""
    config = model.generation_config
    model.generation_config = copy.deepcopy(config)
    model.generation_config.max_length = None
    try:
        yield
    finally:
        model.generation_config = config
