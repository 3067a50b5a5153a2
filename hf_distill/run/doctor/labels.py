"""Do teacher, student and data number the classes alike, and does each split have all of them?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.label_names import label_names, shorten
from hf_distill.data.sources import CUT
from hf_distill.run.doctor.finding import Finding
from hf_distill.tasks.base import classes_of

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.tasks.class_counts import ClassCounts

NAME = "labels"
# A class with this many times as many rows as another one.
UNEVEN = 20


def labels(opened: Opened) -> Iterator[Finding]:
    """Yield the order of the classes, and how often each occurs in train and eval."""
    names = opened.prepared.label_names
    if names is not None:
        yield Finding(NAME, "ok", f"in the order of the student's head: {shorten(names)}")
        yield from _order(opened)
    counts = classes_of(opened.prepared)
    if counts is not None:
        yield from _counts(counts)


def _order(opened: Opened) -> Iterator[Finding]:
    head = opened.pair.teacher_head
    if head is None:
        return
    theirs = label_names(head)
    if theirs is None:
        yield Finding(
            NAME,
            "ok",
            f"the teacher's {head.num_labels} classes have no names, and are taken in this order; its score tells "
            "whether that is right",
        )
    elif (columns := getattr(opened.prepared.layout, "teacher_columns", None)) is not None:
        yield Finding(NAME, "ok", f"the teacher's order is another, {shorten(theirs)}: its columns {columns} are read")
    else:
        yield Finding(NAME, "ok", "the teacher has the same order")


def _counts(counts: ClassCounts) -> Iterator[Finding]:
    for line in counts.in_words():
        yield Finding(NAME, "ok", line)
    for line in counts.remarks():
        yield Finding(NAME, "warning", line)
    for split, found in counts.counts.items():
        present = np.flatnonzero(found)
        if split == "eval" and len(present) == 1 and len(found) > 1 and counts.one_each:
            yield Finding(
                NAME,
                "mistake",
                f"all labels of the eval split are '{counts.names[present[0]]}': a constant guess scores best",
                f"Is the data sorted by label? Hold out a part of train class by class: {CUT}.",
            )
        elif split == "eval" and 1 < len(present) < len(found):
            missing = [counts.names[at] for at in np.flatnonzero(found == 0)]
            yield Finding(
                NAME,
                "warning",
                f"the eval split has no example of {shorten(missing)}",
                "The scores say nothing about these classes.",
            )
    train = counts.counts.get("train")
    if train is not None and counts.one_each and counts.unit == "rows" and len(present := train[train > 0]) > 1:
        ratio = present.max() / present.min()
        if ratio >= UNEVEN:
            most, least = (
                counts.names[int(train.argmax())],
                counts.names[int(np.where(train > 0, train, np.inf).argmin())],
            )
            yield Finding(
                NAME,
                "warning",
                f"'{most}' has {ratio:,.0f} times as many train rows as '{least}'",
                "Accuracy hides the rare class: take f1_macro, and class_weights: balanced in the objective labels.",
            )
