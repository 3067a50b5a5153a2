"""What a label column holds: its distinct values, without a Python object for each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.labels import IGNORED, shorten

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset


@dataclass(frozen=True)
class LabelColumn:
    """The `label` column over all splits that have one.

    Attributes:
        splits: Those splits.
        lists: Whether an example has a list of labels.
        values: The distinct labels (of lists: the distinct items), in order of appearance.
        lengths: The distinct lengths of the lists.
        missing: What stands for "no label": None; -100 among integers; -1 in a `ClassLabel` column, where `datasets`
            writes it (the test splits of GLUE).
        names: Class names that the column declares (`ClassLabel`), in the order of its integers.
        labelled: Splits with at least one label.
    """

    splits: Mapping[str, Dataset]
    lists: bool
    values: tuple[Any, ...]
    lengths: frozenset[int]
    missing: tuple[int | None, ...]
    names: tuple[str, ...] | None
    labelled: tuple[str, ...]

    def holds(self, *types: type) -> bool:
        """Whether there are labels and all are of one of these types; True is no integer here."""
        return bool(self.values) and all(type(value) in types for value in self.values)

    def refuse(self, bad: Callable[[Any], bool], wanted: str, *, whole: bool = False) -> UserError:
        """Return the error for the first label that is bad. Slow, but only on the way out.

        Args:
            bad: Tells a bad label; of a list, a bad item.
            wanted: What would not have been.
            whole: Show lists to `bad` as they are.
        """
        for name, split in self.splits.items():
            for row, value in enumerate(split["label"][:]):
                items = value if isinstance(value, list) and not whole else [value]
                if not (value is None or value in self.missing) and any(bad(item) for item in items):
                    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
                    return UserError(
                        f"row {row} (counted from 0) of the {name} split has the label {shown}; wanted {wanted}.",
                        key="columns.label",
                    )
        raise AssertionError("no label is bad")


def read_column(splits: Mapping[str, Dataset]) -> LabelColumn:
    """Read the label columns.

    Args:
        splits: Splits that have a `label` column; none is fine.

    Raises:
        UserError: They hold something that is no label, or not the same kind of thing.
    """
    parts = [_read_split(name, split) for name, split in splits.items()]
    missing = tuple(dict.fromkeys(value for part in parts for value in part.missing)) or (None,)
    names = list(dict.fromkeys(part.names for part in parts if part.names))
    if len(names) > 1:
        raise UserError(
            f"the splits order their classes differently: {shorten(names[0])} and {shorten(names[1])}.",
            key="columns.label",
        )
    if len({part.lists for part in parts if part.labelled}) > 1:
        raise UserError("the label is a list in one split and none in the other.", key="columns.label")
    lists = any(part.lists for part in parts)
    values = dict.fromkeys(value for part in parts for value in part.values if lists or value not in missing)
    return LabelColumn(
        splits=splits,
        lists=lists,
        values=tuple(values),
        lengths=frozenset[int]().union(*(part.lengths for part in parts)),
        missing=missing,
        names=names[0] if names else None,
        labelled=tuple(name for part in parts for name in part.labelled),
    )


def _read_split(name: str, split: Dataset) -> LabelColumn:
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    labels = column(split, "label")
    lists = _is_list(labels.type)
    items = pc.list_flatten(labels) if lists else labels
    _check_type(items.type, name)
    names = _declared(split.features["label"])
    missing: tuple[int | None, ...] = (None,)
    if pa.types.is_integer(items.type) and not lists:
        missing = (None, IGNORED, -1) if names else (None, IGNORED)
    values = tuple(value for value in items.unique().to_pylist() if lists or value not in missing)
    lengths = pc.list_value_length(labels).unique().drop_null().to_pylist() if lists else []
    labelled = labels.null_count < len(labels) if lists else bool(values)
    return LabelColumn({name: split}, lists, values, frozenset(lengths), missing, names, (name,) if labelled else ())


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _check_type(kind: pa.DataType, split: str) -> None:
    import pyarrow as pa

    tests = ("is_null", "is_boolean", "is_integer", "is_floating", "is_string", "is_large_string")
    if any(getattr(pa.types, test)(kind) for test in tests):
        return
    # `datasets` reads JSON whose values are now text, now numbers, as this type.
    what = "text and numbers mixed" if "json" in str(kind) else str(kind)
    raise UserError(
        f"the label column of the {split} split holds {what}; wanted text, numbers, or lists of either.",
        key="columns.label",
    )


def _declared(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a `ClassLabel`, alone or in a list."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None
