"""An entailment model as a classifier: one hypothesis for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_distill.models.inspection import taken_by
from hf_distill.models.target_rows import upcast
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.padding import by_length, side_of
from hf_distill.teachers.classifier import Classifier

if TYPE_CHECKING:
    from hf_distill.models.loading import Head


class Entailment(Classifier):
    """Gives logits of classes whose hypotheses an entailment model judges.

    Args:
        model: The entailment model.
        head: The classes, in the order of the hypotheses. `problem_type` says whether several may apply to a text.
        places: Columns of entailment and of contradiction in the model's logits.
        at_once: Number of pairs that go through the model at a time.
    """

    def __init__(self, model: Any, head: Head, places: tuple[int, int], at_once: int) -> None:
        super().__init__(model, head, zero_shot=list(places))
        self.entailment, self.contradiction = places
        self.several = head.settings["problem_type"] == "multi_label_classification"
        self.at_once = at_once
        self._takes = taken_by(model)
        self._layout = ExampleRows()
        self._padded = side_of(model, self._layout, head.settings["pad_token_id"]) == "right"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return logits `(batch, classes)`.

        One class for each text: `z_entailment`, whose softmax is over the classes. Several classes:
        `z_entailment - z_contradiction`, whose sigmoid is the softmax over these two.

        Args:
            input_ids: `(batch, classes, tokens)`.
            attention_mask: 0 for padding.
            token_type_ids: Which of the two texts a token belongs to.
        """
        batch, classes = input_ids.shape[:2]
        read = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        pairs = {name: value.flatten(0, 1) for name, value in read.items() if value is not None}
        parts = (
            self._logits({name: value[start : start + self.at_once] for name, value in pairs.items()})
            for start in range(0, batch * classes, self.at_once)
        )
        logits = upcast(torch.cat(list(parts)))
        found = logits[:, self.entailment]
        if self.several:
            found = found - logits[:, self.contradiction]
        return {"logits": found.view(batch, classes)}

    def _logits(self, pairs: dict[str, Tensor]) -> Tensor:
        """Return the model's logits of some pairs, which padding does not change."""
        given: dict[str, Any] = {name: value for name, value in pairs.items() if name in self._takes}
        if "use_cache" in self._takes:
            given["use_cache"] = False
        outputs: Any
        if self._padded:
            outputs = self.model(**given)
        else:
            outputs = by_length(self.model, given, pairs["attention_mask"], self._layout)
        logits: Tensor = outputs["logits"]
        return logits
