"""How often each class occurs in train and eval, and whether the two are of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.data import column
from hf_distill.data.sources import CUT

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.tasks.problem_type import Labelling

# Shares of classes that differ by less, summed over classes and halved, are not worth a word.
_DIFFERENT = 0.15
# How unlikely the difference must be between two samples of the same data.
_LEVEL = 0.001
_SHOWN = 8


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs.

    Attributes:
        names: Of the classes, in the order of the head.
        counts: Split -> labels of each class `(classes,)`; splits without labels are left out.
        rows: Split -> rows that have a label, or labels where a row has many.
        unit: What is counted: rows, or words.
        one_each: Whether classes exclude each other, so that their shares sum to 1.
    """

    names: tuple[str, ...]
    counts: Mapping[str, NDArray[Any]]
    rows: Mapping[str, int]
    unit: str = "rows"
    one_each: bool = True

    def in_words(self) -> Iterator[str]:
        """Yield a line for each split: `train: negative 500, positive 500`, by how frequent they are in train."""
        order = np.argsort(-next(iter(self.counts.values())), kind="stable")
        for split, counts in self.counts.items():
            shown = ", ".join(f"{self.names[at]} {counts[at]:,}" for at in order[:_SHOWN])
            yield f"{split}: {shown}" + (f", ... {len(counts)} classes in all" if len(counts) > _SHOWN else "")

    @property
    def single(self) -> str | None:
        """The class that all labels of the train split have; None where there are several, or no labels."""
        counts = self.counts.get("train", np.zeros(0))
        present = np.flatnonzero(counts)
        return self.names[present[0]] if len(present) == 1 and len(counts) > 1 and self.one_each else None

    def one_class(self) -> str:
        """Return what is wrong with a train split of one class."""
        lines = "; ".join(self.in_words())
        return (
            f"all labels of the train split are '{self.single}' ({lines}): what is learned from them is a constant. "
            "Is the data sorted by label? Shuffle it, or choose another part of it."
        )

    def remarks(self) -> Iterator[str]:
        """Yield what is odd about them: a class to be predicted that cannot be learned, shares that differ much."""
        if set(self.counts) != {"train", "eval"}:
            return
        train, judged = self.counts["train"], self.counts["eval"]
        missing = np.flatnonzero((train == 0) & (judged > 0)).tolist()
        if missing and train.any():
            found = ", ".join(f"'{self.names[at]}' ({judged[at]:,} {self.unit})" for at in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            yield (
                f"the eval split has classes of which the train split has no example: {found}{more}. They cannot be "
                f"learned from labels"
            )
        elif (worst := self._most_different()) is not None:
            shares = [f"{counts[worst] / self.rows[split]:.0%} of {split}" for split, counts in self.counts.items()]
            yield (
                f"train and eval have the classes in other shares: '{self.names[worst]}' is {' and '.join(shares)}. Is "
                f"the data sorted by label, and cut by rows? Have it cut class by class: {CUT}"
            )

    def _most_different(self) -> int | None:
        """Return the class whose shares differ most, where they differ much, and more than chance would have it."""
        from scipy.stats import chi2_contingency

        (train, judged), rows = self.counts.values(), list(self.rows.values())
        if not all(rows):
            return None
        difference = np.abs(train / rows[0] - judged / rows[1])
        worst = int(difference.argmax())
        if self.one_each:
            much, table = difference.sum() / 2, np.stack([train, judged])
        else:
            much = difference[worst]
            table = np.array([[train[worst], rows[0] - train[worst]], [judged[worst], rows[1] - judged[worst]]])
        table = table[:, table.any(0)]
        if much < _DIFFERENT or table.shape[1] < 2 or chi2_contingency(table).pvalue > _LEVEL:
            return None
        return worst


def count_classes(splits: Mapping[str, Dataset], width: int, names: Sequence[str] | None) -> ClassCounts | None:
    """Count the classes of tokenised splits, by their `labels`.

    Args:
        splits: `train` and `eval`.
        width: Columns of the head.
        names: Of the classes; their numbers if None.

    Returns:
        None where no split has labels.
    """
    counts, rows = {}, {}
    one_each, unit = True, "rows"
    for name, split in splits.items():
        if "labels" not in split.column_names:
            continue
        labels = column(split, "labels").combine_chunks()
        found, counted, one_each, unit = _counts(labels, width)
        if counted:
            counts[name], rows[name] = found, counted
    called = tuple(names or map(str, range(width))) if width > 1 else ("0", "1")
    return ClassCounts(called, counts, rows, unit, one_each) if counts else None


def _counts(labels: Any, width: int) -> tuple[NDArray[Any], int, bool, str]:
    """Return how often each class occurs, among how many, whether one excludes the others, and what is counted."""
    import pyarrow as pa  # type: ignore[import-untyped]

    nested = hasattr(labels.type, "value_type")
    flat = (labels.flatten() if nested else labels).to_numpy(zero_copy_only=False)
    if nested and pa.types.is_floating(labels.type.value_type):
        each = flat.reshape(-1, width)
        each = each[~np.isnan(each).any(-1)]
        if width == 1:  # no or yes
            return np.bincount((each[:, 0] > 0.5).astype(int), minlength=2), len(each), True, "rows"
        soft = bool(len(each)) and bool(((each > 0) & (each < 1)).any())
        if soft:  # distributions: their likeliest class
            return np.bincount(each.argmax(-1), minlength=width), len(each), True, "rows"
        return each.sum(0).astype(int), len(each), False, "rows"
    known = flat[flat >= 0].astype(int)
    return np.bincount(known, minlength=width)[:width], len(known), True, "words" if nested else "rows"


def count_raw(splits: Mapping[str, Dataset], labelling: Labelling, role: str) -> ClassCounts | None:
    """Count the classes of raw splits, as `labelling` reads them.

    Args:
        splits: `train` and `eval`; those without the column have no labels.
        labelling: How they are read.
        role: Of their column.
    """
    from datasets import Dataset

    made = {}
    for name, split in splits.items():
        if role in split.column_names:
            values = split[role][:]
            if any(isinstance(value, list) for value in values) and labelling.problem == "single_label":
                labels: list[Any] = [labelling.encode(value or []) for value in values]
            else:
                labels = labelling.encode(values)
            made[name] = Dataset.from_dict({"labels": labels})
    return count_classes(made, labelling.width, labelling.names) if labelling.problem != "regression" else None
