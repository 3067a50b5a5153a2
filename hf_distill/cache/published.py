"""Targets that a party publishes for public texts: logits by a hash of each text, and nothing else of its data.

The directory holds `published.json`, one Parquet file and a README. No text, no other row, no path and no weight is
in it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.example_hashes import Hashes, example_hashes, find
from hf_distill.errors import UserError, first_line
from hf_distill.files.atomic import check_writable, write_atomic
from hf_distill.files.lock import FILE as LOCK
from hf_distill.files.records import read_record, write_record

if TYPE_CHECKING:
    from datasets import Dataset

Array = NDArray[Any]
FORMAT = 1
RECORD, CARD, ROWS = "published.json", "README.md", "targets-*.parquet"
# Files that any cache of a run has.
_OF_A_RUN = ("plan.json", "cache.json")
_AGAIN = "`hf-distill cache RECIPE --targets-only` writes them."

_README = """---
tags:
- hf_distill
- knowledge-distillation
configs:
- config_name: default
  data_files: "*.parquet"
---

# Targets for public texts

Made by `hf_distill`: the logits of a teacher for public texts, from which others can train students. Columns:
`example`, a hash of a text; `logits`, one number for each class in the order of `labels` in `{record}`. Neither the
texts nor the data that the teacher was trained on are here.
"""


@dataclass(frozen=True)
class Published:
    """The published targets of one teacher.

    Attributes:
        path: The directory.
        kind: What is predicted, as in `rows.ExampleRows.kind`.
        labels: Names of the classes in the order of the logits; None if they have no names.
        size: Number of labelled rows that the teacher was trained on; None if that is not told.
        teacher: Fingerprint of the teacher.
        known: Hash of each text, `(texts, 2)`.
        logits: Float32 `(texts, classes)`.
    """

    path: Path
    kind: str
    labels: tuple[str, ...] | None
    size: int | None
    teacher: str
    known: Hashes
    logits: Array

    def of(self, split: Dataset, name: str, roles: Sequence[str]) -> Array:
        """Return the logits of some texts, float32 `(rows, classes)`.

        Args:
            split: The raw rows, columns named by role.
            name: Name of the split, for messages.
            roles: Columns that the models read.

        Raises:
            UserError: Texts are not among those of these targets; the message says how many.
        """
        rows = find(self.known, text_hashes(split, roles))
        if (missing := rows < 0).any():
            raise UserError(
                f"{missing.sum():,} of {len(split):,} rows of the {name} split have no targets in {self.path}, the "
                f"first is row {missing.argmax()}, counted from 0. All texts of this recipe, those of eval too, have "
                "to be among the public texts of each party: add them there without labels and publish again, or leave "
                "them out here.",
                key="path",
            )
        found: Array = self.logits[rows]
        return found


def text_hashes(split: Dataset, roles: Sequence[str]) -> Hashes:
    """Return a hash of the texts of every raw row, `(rows, 2)`; it depends on no tokenizer and no label.

    Args:
        split: The raw rows, columns named by role.
        roles: Columns that the models read.
    """
    names = [role for role in roles if role in split.column_names]
    return example_hashes(split.select_columns(names), names)


def write(
    path: Path,
    hashes: Hashes,
    logits: Array,
    *,
    kind: str,
    labels: Sequence[str] | None,
    size: int | None,
    teacher: str,
) -> int:
    """Write a directory of published targets, in place of the ones there; return the number of distinct texts.

    Args:
        path: The directory.
        hashes: Of each text, from `text_hashes`.
        logits: Float32 `(rows, classes)`.
        kind: What is predicted.
        labels: Names of the classes.
        size: Number of labelled rows, to be told to everyone; None if not.
        teacher: Fingerprint of the teacher.

    Raises:
        UserError: The directory cannot be written, or holds other files.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    check_place(path)
    # By hash: the order of the texts is not told, and equal ones are there once.
    known, first = np.unique(hashes, axis=0, return_index=True)
    values = logits[first].astype(np.float32)
    rows = pa.array([one.tobytes() for one in known], pa.binary(16))
    table = pa.table({"example": rows, "logits": pa.array(list(values), pa.list_(pa.float32()))})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    content = sink.getvalue()
    digest = sha256(content).hexdigest()
    file = ROWS.replace("*", digest[:16])
    write_atomic(path / file, content)
    write_atomic(path / CARD, _README.format(record=RECORD))
    own = {"labels": None if labels is None else list(labels), "size": size}
    record = {"format": FORMAT, "kind": kind, **own, "teacher": teacher, "rows": len(known)}
    write_record(path / RECORD, {**record, "file": file, "sha256": digest})
    for other in path.glob(ROWS):  # those of an earlier round
        if other.name != file:
            other.unlink()
    return len(known)


def check_place(path: Path) -> None:
    """Refuse a directory that cannot be written, or that holds anything else than published targets.

    Raises:
        UserError: The message says what is there.
    """
    try:
        check_writable(path)
    except UserError as error:
        raise UserError(*error.mistakes, key="path") from error
    ours = (RECORD, CARD, LOCK)
    others = [file.name for file in path.iterdir() if file.name not in ours and not file.match(ROWS)]
    if others:
        raise UserError(
            f"{path} holds files that are not published targets ({', '.join(sorted(others)[:3])}). Choose another "
            "path, or empty it.",
            key="path",
        )


def read(path: Path) -> Published:
    """Return the published targets of a directory.

    Raises:
        UserError: There are none, they are of another version of the format, or they are damaged.
    """
    record = read_record(path / RECORD)
    if record is None:
        if any((path / name).exists() for name in _OF_A_RUN):
            raise UserError(f"{path} holds a cache of a run, not published targets. {_AGAIN}", key="path")
        if (path / RECORD).exists():
            raise UserError(f"the published targets in {path} are damaged ({RECORD}). Fetch them again.", key="path")
        raise UserError(f"there are no published targets in {path}: no {RECORD}. {_AGAIN}", key="path")
    if record.get("format") != FORMAT:
        raise UserError(
            f"the targets in {path} are of format {record.get('format')}, and this version reads format {FORMAT}. Have "
            "them published again by a party with this version.",
            key="path",
        )
    return _read(path, record)


def _read(path: Path, record: dict[str, Any]) -> Published:
    import pyarrow.parquet as pq

    fault = ""
    try:
        name = str(record["file"])
        if not re.fullmatch(r"targets-[0-9a-f]+\.parquet", name):  # it may come from elsewhere, and lead anywhere
            raise ValueError(f"{RECORD} names another file than this package writes")
        content = (path / name).read_bytes()
        if sha256(content).hexdigest() != record["sha256"]:
            fault = "a file was changed since it was written"
        table = pq.read_table(io.BytesIO(content))
        known = np.frombuffer(b"".join(table.column("example").to_pylist()), np.uint64).reshape(-1, 2)
        logits = np.array(table.column("logits").to_pylist(), np.float32)
        labels = record["labels"]
        found = Published(
            path,
            record["kind"],
            None if labels is None else tuple(labels),
            record["size"],
            record["teacher"],
            known,
            logits,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = fault or first_line(error)
    if not fault and not np.isfinite(found.logits).all():
        fault = "some targets are NaN or infinite"
    if fault:
        raise UserError(f"the published targets in {path} are damaged ({fault}). Fetch them again.", key="path")
    return found
