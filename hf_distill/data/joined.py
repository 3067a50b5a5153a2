"""Join label columns, one for each class, into one column of lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__
from hf_distill.data.columns import Columns
from hf_distill.errors import UserError, did_you_mean
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

_SINGLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def join_columns(
    loaded: Mapping[str, Dataset], asked: Mapping[str, str | int | list[str]]
) -> tuple[dict[str, Dataset], Columns]:
    """Return the splits, with the columns of a role joined into one column of lists, and role -> column.

    A row without any value gets None. A split that has none of the columns is left as it is.

    Args:
        loaded: Splits with the columns of the data.
        asked: Role -> column, or columns.

    Raises:
        UserError: Some of the columns are missing, or do not hold numbers.
    """
    splits, names = dict(loaded), {role: one for role, one in asked.items() if not isinstance(one, list)}
    for role, several in asked.items():
        if not isinstance(several, list):
            continue
        names[role] = joined = " + ".join(several)
        for split, dataset in loaded.items():
            there = [name for name in several if name in dataset.column_names]
            if len(there) == len(several):
                splits[split] = _joined(dataset, several, joined, role)
            elif there or all(not set(several) & set(other.column_names) for other in loaded.values()):
                lacking = next(name for name in several if name not in there)
                hint = did_you_mean(lacking, dataset.column_names)
                raise UserError(f"the {split} split has no column '{lacking}'.{hint}", key=f"columns.{role}")
    return splits, names


def _joined(dataset: Dataset, several: Sequence[str], name: str, role: str) -> Dataset:
    from datasets import Features, List, Value

    kinds = {str(getattr(dataset.features[one], "dtype", dataset.features[one])) for one in several}
    if kinds == {"bool"}:
        kind = "bool"
    elif kinds <= {*_SINGLE, "null"}:
        kind = "int64"
    elif kinds <= {*_SINGLE, "float32", "float64", "null"}:
        kind = "float64"
    else:
        raise UserError(
            f"the columns {', '.join(several)} hold {', '.join(sorted(kinds))}; wanted numbers.", key=f"columns.{role}"
        )

    def join(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = zip(*(batch[one] for one in several), strict=True)
        return {name: [None if all(value is None for value in row) else list(row) for row in rows]}

    return dataset.map(
        join,
        batched=True,
        features=Features({**dataset.features, name: List(Value(kind))}),
        desc="Joining columns",
        new_fingerprint=fingerprint(__version__, dataset._fingerprint, list(several), name),
    )
