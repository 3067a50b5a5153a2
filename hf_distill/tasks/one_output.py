"""Heads with one output: a number, or the yes of a yes or no question (cross-encoders)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.data.label_names import activation
from hf_distill.tasks.label_column import LabelColumn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


def meaning(config: PretrainedConfig, column: LabelColumn) -> Literal["multi_label", "regression"]:
    """Return whether the output of a head that does not say so is a yes or no (`multi_label`), or a number.

    A sigmoid behind it says so; without a word, labels of nothing but 0 and 1 do.
    """
    found = activation(config)
    binary = not column.lists and set(column.values) == {0, 1}
    if found == "Sigmoid" or (found is None and binary):
        return "multi_label"
    if binary:
        logger.warning(
            "the labels are 0 and 1, and the model's one output is unbounded (%s): it is drawn to 0 and 1 by squared "
            "errors. If they mean no and yes, say so, for binary cross-entropy: task: {name: text-classification, "
            "problem: multi_label}; if they are numbers: problem: regression",
            found,
        )
    return "regression"


def check_yes_or_no(column: LabelColumn) -> None:
    """Refuse labels of one output that are neither yes, no nor between the two.

    Raises:
        UserError: There are some.
    """
    if any(not _fits(value) for value in column.values):
        raise column.refuse(
            lambda value: not _fits(value),
            "0 to 1, since the model has one output, which a sigmoid brings between these. For another scale "
            "say task: {name: text-classification, problem: regression}",
        )


def _fits(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
