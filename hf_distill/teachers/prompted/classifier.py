"""A language model in the place of a classifier: it says how likely each label's words are after a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.models.continuations import Continuations
from hf_distill.teachers.classifier import Classifier
from hf_distill.teachers.prompted.label_bias import contextual, matching

if TYPE_CHECKING:
    from hf_distill.models.loading import Head

# How many prompts are run at a time for the calibration.
_BATCH = 16


class PromptedClassifier(Classifier):
    """Gives the logits of the classes from the scores of their verbalizers.

    The score of a label is `S_k = log sum_v exp(s_v)` over its verbalizers `v`, where `s_v` is the sum (with length
    normalisation, the mean) of the log-probabilities of the tokens of `v` after the prompt. The logits are
    `log softmax(S + c)_k`, with `c` from the calibration (0 without). Where several labels apply, the prompt is asked
    once for each label, and its logit is `S_yes - S_no + c`.

    Args:
        model: A causal or encoder-decoder language model.
        head: The classes, and under `prompted` what `PromptInputs.settings` returns.
        mean: Whether the tokens of a verbalizer are averaged in place of summed.
    """

    def __init__(self, model: Any, head: Head, *, mean: bool) -> None:
        super().__init__(model, head, mean=mean)
        made: Mapping[str, Any] = head.settings["prompted"]
        self.several = head.settings["problem_type"] == "multi_label_classification"
        self._made = made
        self._sizes = [len(some) for some in made["verbalizers"]]
        every = [ids for some in made["verbalizers"] for ids in some]
        self._scores = Continuations(model, every, made["prefixes"], opening=made["opening"], mean=mean)
        self._added: Tensor | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return the logits, `(batch, classes)`.

        Args:
            input_ids: Prompts without their prefix, `(batch, tokens)`; `(batch, classes, tokens)` where each class is
                asked for.
            attention_mask: 0 for padding, in the same shape.
        """
        with torch.no_grad():
            found = self._plain(input_ids, attention_mask) + self.added(input_ids.device)
            return {"logits": found if self.several else found.log_softmax(-1)}

    def _plain(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits before calibration."""
        if not self.several:
            return self._labels(ids, mask, 0).log_softmax(-1)
        both = [self._labels(ids[:, at], mask[:, at], at) for at in range(ids.shape[1])]
        return torch.stack([yes - no for yes, no in (one.unbind(-1) for one in both)], -1)

    def _labels(self, ids: Tensor, mask: Tensor, prefix: int) -> Tensor:
        """Return `S`, `(batch, labels)`."""
        scores: Sequence[Tensor] = torch.split(self._scores(ids, mask, prefix), self._sizes, -1)
        return torch.stack([some.logsumexp(-1) for some in scores], -1)

    def added(self, device: torch.device) -> Tensor:
        """Return what the calibration adds to the logits of the classes, `(classes,)`; made when first asked for."""
        if self._added is None:
            rows = self._made["calibration"]
            self._added = self._calibrated(torch.cat(list(self._run(rows, device)))) if rows else torch.zeros(1)
        return self._added.to(device)

    def _run(self, rows: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
        for start in range(0, len(rows), _BATCH):
            yield self._plain(*(one.to(device) for one in padded(rows[start : start + _BATCH])))

    def _calibrated(self, logits: Tensor) -> Tensor:
        prior = self._made["prior"]
        if not self.several:
            return matching(logits, torch.tensor(prior).to(logits)) if prior else contextual(logits)
        # Each label is a choice between yes and no.
        choices = [torch.stack([one, torch.zeros_like(one)], -1) for one in logits.T]
        shares = [torch.tensor([one, 1 - one]).to(logits) for one in prior]
        found = [matching(*both) for both in zip(choices, shares, strict=True)] if prior else map(contextual, choices)
        return torch.stack([yes - no for yes, no in found])


def padded(rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, padded on the right, `(rows, tokens)` or `(rows, classes, tokens)`.

    >>> padded([[5, 6], [7]])
    (tensor([[5, 6],
            [7, 0]]), tensor([[1, 1],
            [1, 0]]))
    """
    nested = isinstance(rows[0][0], list)
    flat: list[list[int]] = [ids for row in rows for ids in row] if nested else list(rows)
    longest = max(map(len, flat))
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in flat])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in flat])
    shape = (len(rows), -1, longest) if nested else (len(rows), longest)
    return ids.view(shape), mask.view(shape)
