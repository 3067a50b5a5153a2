"""Read the distinct values of a label column, without making a Python object for each row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.data.label_names import IGNORED, shorten
from hf_distill.data.misfits import misfit
from hf_distill.data.reader import describe_type
from hf_distill.errors import UserError
from hf_distill.tasks.stated_labels import spell

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

# Name of the split that is trained on.
TRAIN = "train"


@dataclass(frozen=True)
class LabelColumn:
    """The label column of all splits that have one.

    Attributes:
        splits: The splits with the column.
        lists: Whether an example has a list of labels.
        values: The distinct labels (of lists: the distinct items), in order of appearance.
        learned: The distinct labels of the train split.
        lengths: The distinct lengths of the lists.
        missing: Values that mean "no label": None; -100 among integers; -1 in a `ClassLabel` column (the test splits of
            GLUE); and those that the recipe names.
        names: Class names of a `ClassLabel` column, in the order of its integers.
        labelled: Splits with at least one label.
        role: Role of the column.
        nested: Whether a row holds one label for each of its words; `values`, `lists` and `missing` then describe the
            labels of words.
    """

    splits: Mapping[str, Dataset]
    lists: bool
    values: tuple[Any, ...]
    learned: tuple[Any, ...]
    lengths: frozenset[int]
    missing: tuple[Any, ...]
    names: tuple[str, ...] | None
    labelled: tuple[str, ...]
    role: str = "label"
    nested: bool = False

    @property
    def key(self) -> str:
        """Recipe key that names the column."""
        return f"columns.{self.role}"

    def holds(self, *types: type) -> bool:
        """Whether there are labels and all have one of these types; a bool is not an int here."""
        return bool(self.values) and all(type(value) in types for value in self.values)

    def count(self, labels: Collection[Any]) -> list[tuple[str, int]]:
        """Return name and count (rows, or items if labels are lists) for each split with some of these labels."""
        import pyarrow as pa
        import pyarrow.compute as pc  # type: ignore[import-untyped]

        counts = []
        for name, split in self.splits.items():
            held = column(split, self.role)
            held = pc.list_flatten(held) if _is_list(held.type) else held
            wanted = pa.array(list(labels)).cast(held.type)
            counts.append((name, pc.sum(pc.is_in(held, value_set=wanted)).as_py() or 0))
        return [(name, count) for name, count in counts if count]

    def refuse(self, bad: Callable[[Any], bool], wanted: str, hint: str = "", *, whole: bool = False) -> UserError:
        """Return the error for the first bad label. Slow, as it reads all rows, but the run ends with it.

        Args:
            bad: Whether a label is bad; called with each item of a list.
            wanted: What a good label is.
            hint: What to do, with a leading space.
            whole: Call `bad` with whole lists.
        """
        for name, split in self.splits.items():
            rows = enumerate(split[self.role][:])
            for row, value in ((row, one) for row, all in rows for one in ((all or []) if self.nested else [all])):
                items = value if isinstance(value, list) and not whole else [value]
                if not (value is None or value in self.missing) and any(bad(item) for item in items):
                    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
                    return UserError(
                        f"row {row} (counted from 0) of the {name} split has the label {shown}; wanted {wanted}.{hint}",
                        key=self.key,
                    )
        raise AssertionError("no label is bad")


def read_column(
    splits: Mapping[str, Dataset], role: str = "label", *, nested: bool = False, nothing: Collection[str] = ()
) -> LabelColumn:
    """Return the label column of the splits.

    Args:
        splits: Splits with the column; may be empty.
        role: Role of the column.
        nested: Whether a row holds one label for each of its words.
        nothing: Labels that mean "no label", as text.

    Raises:
        UserError: A value is not a label, or the splits hold different kinds of labels.
    """
    parts = [_read_split(name, split, role, nested, nothing) for name, split in splits.items()]
    missing = tuple(dict.fromkeys(value for part in parts for value in part.missing)) or (None,)
    names = list(dict.fromkeys(part.names for part in parts if part.names))
    if len(names) > 1:
        raise UserError(
            f"the splits order their classes differently: {shorten(names[0])} and {shorten(names[1])}.",
            key=f"columns.{role}",
        )
    if len({part.lists for part in parts if part.labelled}) > 1:
        raise UserError("the label is a list in one split but not in the other.", key=f"columns.{role}")
    lists = any(part.lists for part in parts)
    values, learned = (
        dict.fromkeys(value for part in some for value in part.values if lists or value not in missing)
        for some in (parts, [part for part in parts if TRAIN in part.splits])
    )
    return LabelColumn(
        splits=splits,
        lists=lists,
        values=tuple(values),
        learned=tuple(learned),
        lengths=frozenset[int]().union(*(part.lengths for part in parts)),
        missing=missing,
        names=names[0] if names else None,
        labelled=tuple(name for part in parts for name in part.labelled),
        role=role,
        nested=nested,
    )


def _read_split(name: str, split: Dataset, role: str, nested: bool, nothing: Collection[str]) -> LabelColumn:
    import pyarrow as pa
    import pyarrow.compute as pc

    labels = column(split, role)
    if nested:
        labels = _flat(labels, name, role)
    lists = _is_list(labels.type)
    items = pc.list_flatten(labels) if lists else labels
    _check_type(items.type, name, role)
    names = _declared(split.features[role])
    missing: tuple[Any, ...] = (None,)
    if pa.types.is_integer(items.type) and not lists:
        missing = (None, IGNORED, -1) if names else (None, IGNORED)
    found = items.unique().to_pylist()
    said = tuple(value for value in found if _called(value, names) & {*nothing})
    missing += said
    values = tuple(value for value in found if value not in (said if lists else missing))
    lengths = pc.list_value_length(labels).unique().drop_null().to_pylist() if lists else []
    labelled = labels.null_count < len(labels) if lists else bool(values)
    return LabelColumn(
        {name: split}, lists, values, (), frozenset(lengths), missing, names, (name,) if labelled else ()
    )


def _called(value: Any, names: tuple[str, ...] | None) -> set[str]:
    """Return the texts by which a recipe can name a label: its value, and its name in a `ClassLabel` column."""
    named = names is not None and isinstance(value, int) and 0 <= value < len(names)
    return {spell(value), names[value]} if named and names else {spell(value)}


def _flat(labels: pa.ChunkedArray, split: str, role: str) -> pa.ChunkedArray:
    """Return the labels of all rows as one flat array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(labels.type):
        return labels
    if not _is_list(labels.type) or _is_list(labels.type.value_type):
        wanted = (
            "a list in every row, of one label for each word. A CSV file cannot hold lists; JSON, Parquet and CoNLL's "
            "columns can."
        )
        raise misfit(labels, role, split, wanted, lambda value: value is None or _is_flat(value))
    return pc.list_flatten(labels)


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _check_type(kind: pa.DataType, split: str, role: str) -> None:
    import pyarrow as pa

    tests = ("is_null", "is_boolean", "is_integer", "is_floating", "is_string", "is_large_string")
    if any(getattr(pa.types, test)(kind) for test in tests):
        return
    # `datasets` reads JSON with both texts and numbers as this type.
    what = "text and numbers mixed" if "json" in str(kind) else describe_type(kind)
    raise UserError(
        f"the {role} column of the {split} split holds {what}; wanted text, numbers, or lists of either.",
        key=f"columns.{role}",
    )


def _declared(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a `ClassLabel` feature or a list of them; None for other features."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None
