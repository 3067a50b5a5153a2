"""Heads with one output: a number, or one yes/no label (cross-encoders)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.data.label_names import activation
from hf_distill.tasks.label_column import LabelColumn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


def meaning(config: PretrainedConfig, column: LabelColumn) -> Literal["multi_label", "regression"]:
    """Return whether the single output of a head is a yes/no label (`multi_label`) or a number (`regression`).

    It is a yes/no label if a sigmoid follows the head, or if the model does not say and all labels are 0 or 1.
    """
    found = activation(config)
    binary = not column.lists and set(column.values) == {0, 1}
    if found == "Sigmoid" or (found is None and binary):
        return "multi_label"
    if binary:
        logger.warning(
            "the labels are 0 and 1, and the model's single output is unbounded (%s): it is trained with squared "
            "errors. If they mean no and yes, choose binary cross-entropy: task: {name: text-classification, "
            "problem: multi_label}; if they are numbers: problem: regression",
            found,
        )
    return "regression"


def check_yes_or_no(column: LabelColumn) -> None:
    """Refuse labels of a single output that are not between 0 (no) and 1 (yes).

    Raises:
        UserError: A label is outside this range.
    """
    if any(not _fits(value) for value in column.values):
        raise column.refuse(
            lambda value: not _fits(value),
            "0 to 1, since the model has one output, which a sigmoid limits to this range. For another scale "
            "set task: {name: text-classification, problem: regression}",
        )


def _fits(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
