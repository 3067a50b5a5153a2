"""Check before training that the report can say for whom it got worse, by the groups of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.label_names import shorten
from hf_distill.errors import UserError
from hf_distill.locations import is_here, missing
from hf_distill.report.fairness import PACKAGE
from hf_distill.report.for_whom import FEWEST
from hf_distill.report.partitions import unseen

if TYPE_CHECKING:
    from hf_distill.tasks import Prepared


def check_groups(prepared: Prepared) -> list[str]:
    """Return what the report will not be able to say by group, as lines; nothing for data without groups.

    Raises:
        UserError: The headline metric cannot be computed on a part of the eval split.
    """
    groups, evaluator = prepared.groups, prepared.evaluator
    if groups is None:
        return []
    if not evaluator.names:
        return ["no row of the eval split has a label: the report cannot say for which group it got worse"]
    if not evaluator.has_units:
        raise UserError(
            f"the metric '{evaluator.headline}' cannot be computed on a part of the eval split, and so not by group. "
            "Name another one first in evaluation.metrics, or leave out the column.",
            key="columns.group",
        )
    lines = unseen(groups)
    rows = np.bincount(groups.eval[groups.eval >= 0], minlength=len(groups.names))
    if few := [name for name, count in zip(groups.names, rows.tolist(), strict=True) if 0 < count < FEWEST]:
        lines.append(f"groups with fewer than {FEWEST} eval rows, of which the report says little: {shorten(few)}")
    if evaluator.chooses_classes and not is_here(PACKAGE):
        lines.append(missing(PACKAGE, "the report of demographic parity and equalised odds between groups"))
    return lines
