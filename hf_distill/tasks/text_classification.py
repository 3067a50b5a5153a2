"""Text classification: one label, several labels, or a number, for one text or a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_distill.component import component
from hf_distill.tasks.base import Prepared, Task


@component
class TextClassification(Task):
    """Sequence classification and regression.

    Attributes:
        problem: Read from the label column if left out: integers or text -> one label, lists -> several, floats -> regression.
    """

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": False}

    problem: Literal["single_label", "multi_label", "regression"] | None = None

    def prepare(self, splits: Any, **settings: Any) -> Prepared:
        raise AssertionError("being written")
