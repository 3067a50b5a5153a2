"""Two columns about whole examples: the group that an example belongs to, and its weight in the loss.

A recipe names them as `data.columns.group` and `data.columns.weight`. From reading to training they stay columns of the
splits, under names that no model and no task reads, so that whatever chooses, sorts or shuffles rows keeps them right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset, Features
    from numpy.typing import NDArray

GROUP, WEIGHT = "example_group", "example_weight"
EXAMPLE_COLUMNS = (GROUP, WEIGHT)
"""Names of the columns in a data set, raw or tokenised, also in one that a `DistillationTrainer` is given."""
EXAMPLE_ROLES = {"group": GROUP, "weight": WEIGHT}
"""Role of `data.columns` that every task accepts -> name of the column. A task's own role of that name comes first."""
ORIGIN = "example_origin"
"""Column of a raw split, where a run needs it: the number of the row, which every example that is made of it has."""
PROMPT_LENGTH = "prompt_length"
"""Column of a tokenised row of a language model: how many of its first tokens are the prompt of a completion."""
SOURCE = "source"
"""What `tokenise` may get beside new columns: of each new row, the row of the batch that it was made of."""
NO_GROUP = "(none)"
"""The group of rows without one: an empty cell, or a row of `data.transfer` if that has no such column."""
MOST_GROUPS = 1_000


def example_roles(columns: Mapping[str, Any], roles: Mapping[str, bool]) -> dict[str, bool]:
    """Return those of `group` and `weight` that a recipe names, and whether every split must have them.

    Args:
        columns: `data.columns` of the recipe.
        roles: The task's own roles.
    """
    return {role: role == "group" for role in EXAMPLE_ROLES if role in columns and role not in roles}


def held(split: Dataset) -> list[str]:
    """Return which columns of whole examples a split has."""
    return [name for name in (*EXAMPLE_COLUMNS, ORIGIN) if name in split.column_names]


def held_features(split: Dataset) -> Features:
    """Return the types of these columns, as far as a split has them."""
    from datasets import Features

    return Features({name: split.features[name] for name in held(split)})


def without_examples(split: Dataset) -> Dataset:
    """Return a split without the two columns, for a key of what depends on neither."""
    return split.remove_columns(held(split)) if held(split) else split


def inputs_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenised row without its lengths, its group and its weight, which no collator pads."""
    return {key: value for key, value in row.items() if not key.endswith("length") and key not in EXAMPLE_COLUMNS}


def read_examples(
    splits: Mapping[str, Dataset], *, whole: bool, columns: Mapping[str, Any] | None = None
) -> dict[str, Dataset]:
    """Return the splits with groups as text and weights as float64.

    Args:
        splits: `train`, `eval` and maybe `transfer`. Transfer rows without these columns get weight 1 and no group.
        whole: Whether these are all rows, so that one group alone, or no weight above 0, is a mistake.
        columns: `data.columns` of the recipe, for messages: role -> name in the data.

    Raises:
        UserError: A weight is not a finite number of 0 or more; there is one group, or more than 1,000.
    """
    made, called = dict(splits), columns or {}
    for name in EXAMPLE_COLUMNS:
        if any(name in split.column_names for split in splits.values()):
            role = _key(name).removeprefix("columns.")
            made = {of: _read(split, name, of, called.get(role)) for of, split in made.items()}
    weighed = {of: split for of, split in made.items() if WEIGHT in split.column_names and of in ("train", "eval")}
    if weighed and "train" not in weighed:
        raise UserError("only the eval split has weights, and it is train rows that are weighed.", key=_key(WEIGHT))
    for of, split in weighed.items() if whole else ():
        _check_some(_column(split, WEIGHT), f"the {of} split", _key(WEIGHT))
    if grouped := [split for split in made.values() if GROUP in split.column_names]:
        _check_groups(grouped, whole)
    return made


def check_weights(split: Any, name: str) -> None:
    """Refuse weights that are not finite numbers of 0 or more, or all 0, in a split that has the column.

    Args:
        split: A data set; one that is not a `datasets.Dataset`, or has a transform, is not checked.
        name: How messages call it.

    Raises:
        UserError: A row has such a weight.
    """
    from datasets import Dataset

    if isinstance(split, Dataset) and WEIGHT in split.column_names and split.format["type"] != "custom":
        _check_some(_numbers(_column(split, WEIGHT), name, WEIGHT), name, WEIGHT)


def group_names(*splits: Dataset) -> tuple[str, ...]:
    """Return the names of all groups in some splits that have the column, in order."""
    return tuple(sorted({name for split in splits for name in _groups(split).unique().to_pylist()}))


def group_numbers(split: Dataset, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each row's group among some names, `(rows,)`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    found = pc.index_in(_groups(split), pa.array(list(names), pa.string()))
    return np.asarray(found.to_numpy(), dtype=np.int64)


def group_name(value: Any, names: Sequence[str] | None = None) -> str:
    """Return the name of the group that one cell holds.

    Args:
        value: The cell.
        names: Names of the classes, if it holds the number of one.

    >>> [group_name(value) for value in (" a ", 3.0, True, None, "")]
    ['a', '3', 'true', '(none)', '(none)']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NO_GROUP
    if names and not isinstance(value, str):
        return names[value] if 0 <= value < len(names) else NO_GROUP  # `datasets` writes -1 where there is none
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip() or NO_GROUP


def weights_of(split: Dataset) -> NDArray[np.float64]:
    """Return the weight of each row, `(rows,)`; 1 in a split without the column."""
    import numpy as np

    if WEIGHT not in split.column_names:
        return np.ones(len(split))
    return np.asarray(_column(split, WEIGHT).to_numpy(), dtype=np.float64)


def examples_in_words(splits: Mapping[str, Dataset]) -> list[str]:
    """Return lines that say how many rows each group has, and which weights there are."""
    from hf_distill.data.label_names import shorten

    lines = []
    for name, split in splits.items():
        if GROUP in split.column_names:
            counts = {one["values"]: one["counts"] for one in _groups(split).value_counts().to_pylist()}
            largest = sorted(counts, key=lambda group: (-counts[group], group))
            lines.append(f"groups of {name}: {shorten([f'{group} {counts[group]:,}' for group in largest])}")
        if WEIGHT in split.column_names and len(split):
            found = weights_of(split)
            lines.append(f"weights of {name}: {found.min():g} to {found.max():g}, mean {found.mean():.3g}")
    return lines


def _key(name: str) -> str:
    return f"columns.{next(role for role, column in EXAMPLE_ROLES.items() if column == name)}"


def _column(split: Dataset, name: str) -> pa.ChunkedArray:
    return split.select_columns([name]).with_format("arrow")[:][name]


def _read(split: Dataset, name: str, of: str, column: str | None) -> Dataset:
    """Return a split with groups as text, or weights as float64; transfer rows that have none get the usual one."""
    import numpy as np
    import pyarrow as pa
    from datasets import Value

    if name not in split.column_names:
        if of in ("train", "eval"):
            return split
        usual = pa.array(np.full(len(split), NO_GROUP if name == GROUP else 1.0))
        read, rest = pa.chunked_array([usual]), split
    else:
        where = f"the {of} split" if of in ("train", "eval") else "data.transfer"
        read = _groups(split, where) if name == GROUP else _numbers(_column(split, name), where, _key(name), column)
        rest = split.remove_columns(name)
    kind = ("string", pa.string()) if name == GROUP else ("float64", pa.float64())
    made = rest.add_column(name, read.combine_chunks().cast(kind[1]), feature=Value(kind[0]))
    # The same in every process and run, since it names the tokenised rows in the cache of `datasets`.
    made._fingerprint = fingerprint(__version__, split._fingerprint, name)
    return made


def _groups(split: Dataset, where: str = "the data") -> pa.ChunkedArray:
    """Return the groups as text, `NO_GROUP` for a missing or empty one.

    Raises:
        UserError: The column holds lists or the like.
    """
    import pyarrow as pa

    values, names = _column(split, GROUP), getattr(split.features[GROUP], "names", None)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        raise UserError(f"a row of {where} has {values.type}; wanted one text or number a row.", key=_key(GROUP))
    # Each value once: its name must be the one that `group_name` gives to a single cell.
    coded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    called = [group_name(one, names) for one in coded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(called, pa.string()).take(coded.indices)])


def _numbers(values: pa.ChunkedArray, where: str, key: str, column: str | None = None) -> pa.ChunkedArray:
    """Return weights as float64.

    Raises:
        UserError: One is missing, not a number, NaN, infinite or negative.
    """
    import pyarrow as pa

    given = values.to_pylist()
    found = [_number(one) for one in given]
    wrong = next((row for row, one in enumerate(found) if one is None or not math.isfinite(one) or one < 0), None)
    if wrong is not None:
        what = "no weight" if given[wrong] is None else f"the weight {given[wrong]!r}"
        what += f" in column '{column}'" if column and "split" in where else ""
        raise UserError(
            f"row {wrong} (counted from 0) of {where} has {what}. Wanted a finite number of 0 or more in every row.",
            key=key,
        )
    return pa.chunked_array([pa.array(found, pa.float64())])


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None


def _check_some(weights: pa.ChunkedArray, where: str, key: str) -> None:
    import pyarrow.compute as pc

    if not pc.sum(weights).as_py():
        raise UserError(f"all weights of {where} are 0: nothing would be learned or measured.", key=key)


def _check_groups(splits: Sequence[Dataset], whole: bool) -> None:
    names = group_names(*splits)
    if whole and len(names) == 1:
        raise UserError(
            f"every row is of one group, '{names[0]}': there is nothing to compare. Name another column, or leave it "
            "out.",
            key=_key(GROUP),
        )
    if len(names) > MOST_GROUPS:
        raise UserError(
            f"it has {len(names):,} groups, such as {', '.join(map(repr, names[:3]))}; wanted at most {MOST_GROUPS:,}. "
            "Name a column with fewer values, or make ranges of these.",
            key=_key(GROUP),
        )
