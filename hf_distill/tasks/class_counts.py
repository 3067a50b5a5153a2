"""How often each class occurs in train and eval, and whether the two splits differ too much."""

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

# No warning if the shares of the classes differ by less (sum of absolute differences over classes, halved).
_DIFFERENT = 0.15
# A class with a smaller share of train is rare, and warned about if it has more than twice this share of eval.
_RARE = 0.05
# A warning only if the p-value of a chi-squared test is at most this.
_LEVEL = 0.001
_SHOWN = 8


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs.

    Attributes:
        names: Class names in the order of the head.
        counts: Split -> number of labels of each class, `(classes,)`; splits without labels are absent.
        rows: Split -> number of rows with a label; number of labels if a row has many.
        unit: What is counted: rows or words.
        one_each: Whether each example has exactly one class, so that shares sum to 1.
    """

    names: tuple[str, ...]
    counts: Mapping[str, NDArray[Any]]
    rows: Mapping[str, int]
    unit: str = "rows"
    one_each: bool = True

    def in_words(self) -> Iterator[str]:
        """Yield a line for each split, such as `train: negative 500, positive 500`, the most frequent class first."""
        order = np.argsort(-next(iter(self.counts.values())), kind="stable")
        for split, counts in self.counts.items():
            shown = ", ".join(f"{self.names[at]} {counts[at]:,}" for at in order[:_SHOWN])
            yield f"{split}: {shown}" + (f", ... {len(counts)} classes in all" if len(counts) > _SHOWN else "")

    @property
    def single(self) -> str | None:
        """The class of all labels in the train split; None if there are several classes or no labels."""
        counts = self.counts.get("train", np.zeros(0))
        present = np.flatnonzero(counts)
        return self.names[present[0]] if len(present) == 1 and len(counts) > 1 and self.one_each else None

    def one_class(self) -> str:
        """Return the message about a train split with a single class."""
        lines = "; ".join(self.in_words())
        return (
            f"all labels of the train split are '{self.single}' ({lines}): a model learns a constant from them. "
            "Is the data sorted by label? Shuffle it, or choose another part of it."
        )

    def remarks(self) -> Iterator[str]:
        """Yield warnings: one class alone, a class that only eval has, or shares of classes that differ much."""
        if self.single is not None:
            yield self.one_class()
            return
        if set(self.counts) != {"train", "eval"}:
            return
        train, evaluated = self.counts["train"], self.counts["eval"]
        missing = np.flatnonzero((train == 0) & (evaluated > 0)).tolist()
        if missing and train.any():
            found = ", ".join(f"'{self.names[at]}' ({evaluated[at]:,} {self.unit})" for at in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            yield (
                f"the eval split has classes of which the train split has no example: {found}{more}. They cannot be "
                f"learned from labels"
            )
        elif (worst := self._most_different()) is not None:
            shares = [f"{counts[worst] / self.rows[split]:.0%} of {split}" for split, counts in self.counts.items()]
            yield (
                f"train and eval have the classes in different shares: '{self.names[worst]}' is {' and '.join(shares)}."
                f" Is the data sorted by label, and split by rows? Split it class by class: {CUT}"
            )

    def _most_different(self) -> int | None:
        """Return the class whose shares differ most; None if they differ little or not significantly.

        A class that is rare in train and frequent in eval comes first.
        """
        (train, evaluated), rows = self.counts.values(), list(self.rows.values())
        if not all(rows):
            return None
        difference = np.abs(train / rows[0] - evaluated / rows[1])
        rare = (train < _RARE * rows[0]) & (evaluated > 2 * _RARE * rows[1])
        worst = int(np.where(rare, difference, 0).argmax() if rare.any() else difference.argmax())
        if self.one_each:
            much, table = difference.sum() / 2, np.stack([train, evaluated])
        else:
            much = difference[worst]
            pair = ((train, rows[0]), (evaluated, rows[1]))
            table = np.array([[counts[worst], every - counts[worst]] for counts, every in pair])
        table = table[:, table.any(0)]
        if (much < _DIFFERENT and not rare.any()) or table.shape[1] < 2:
            return None
        from scipy.stats import chi2_contingency  # half a second, which a check of usual data can do without

        return None if chi2_contingency(table).pvalue > _LEVEL else worst


def count_classes(splits: Mapping[str, Dataset], width: int, names: Sequence[str] | None) -> ClassCounts | None:
    """Return how often each class occurs in the `labels` of tokenised splits.

    Args:
        splits: `train` and `eval`.
        width: Number of columns of the head.
        names: Class names; None to use their numbers.

    Returns:
        The counts; None if no split has labels.
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
    """Return counts by class, the number of labels or rows, whether each has one class, and the unit."""
    import pyarrow as pa  # type: ignore[import-untyped]

    nested = hasattr(labels.type, "value_type")
    flat = (labels.flatten() if nested else labels).to_numpy(zero_copy_only=False)
    if nested and pa.types.is_floating(labels.type.value_type):
        each = flat.reshape(-1, width)
        each = each[~np.isnan(each).any(-1)]
        if width == 1:  # one output: no or yes
            return np.bincount((each[:, 0] > 0.5).astype(int), minlength=2), len(each), True, "rows"
        soft = bool(len(each)) and bool(((each > 0) & (each < 1)).any())
        if soft:  # distributions: count the most likely class
            return np.bincount(each.argmax(-1), minlength=width), len(each), True, "rows"
        return each.sum(0).astype(int), len(each), False, "rows"
    known = flat[flat >= 0].astype(int)
    return np.bincount(known, minlength=width)[:width], len(known), True, "words" if nested else "rows"


def count_raw(splits: Mapping[str, Dataset], labelling: Labelling, role: str) -> ClassCounts | None:
    """Return how often each class occurs in raw splits; None for regression or without labels.

    Args:
        splits: `train` and `eval`; a split without the column has no labels.
        labelling: How labels map to classes.
        role: Role of the label column.
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
