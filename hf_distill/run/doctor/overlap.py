"""Do rows occur twice: in eval and in what is learned from, or in train with another label?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_distill.data.shared_rows import MOST_COMPARED, inputs_of, row_hashes, same_rows
from hf_distill.data.sources import CUT
from hf_distill.data.transfer import TRANSFER
from hf_distill.run.doctor.finding import Finding

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.run.doctor.opened import Opened

NAME = "overlap"
SHOWN = 3
# Share of the eval split from which its scores mean nothing.
MOST = 0.5
# Share of train that occurs more than once from which that is worth a warning.
REPEATED = 0.05


def overlap(opened: Opened) -> Iterator[Finding]:
    """Yield which eval rows are learned from, and which train rows occur twice."""
    splits = opened.splits
    named = {"train": splits["train"], **({"data.transfer": splits[TRANSFER]} if TRANSFER in splits else {})}
    inputs = set(inputs_of(splits["eval"]))
    other = [name for name, split in named.items() if not inputs or not inputs <= set(split.column_names)]
    shared = [finding for name, split in named.items() for finding in _learned(name, split, splits["eval"])]
    yield from shared
    for name in other:
        text = f"eval and {name} have other columns ({', '.join(sorted(inputs))}; {', '.join(inputs_of(named[name]))})"
        yield Finding(NAME, "skipped", text)
    if not shared and (seen := [_seen(name, split) for name, split in named.items() if name not in other]):
        eval_rows = len(splits["eval"])
        yield Finding(NAME, "ok", f"none of {eval_rows:,} eval rows is in {' or '.join(seen)}, case and spaces aside")
    yield from _repeated(splits["train"], opened.recipe.task.label_role)


def spelled(text: str) -> str:
    """Return a text without case and extra white space.

    >>> spelled(" Very  Good ")
    'very good'
    """
    return " ".join(text.casefold().split())


def _seen(name: str, split: Dataset) -> str:
    return name if len(split) <= MOST_COMPARED else f"the first {MOST_COMPARED:,} rows of {name}"


def _learned(name: str, split: Dataset, evaluated: Dataset) -> Iterator[Finding]:
    exact = same_rows(split, evaluated)
    alike = same_rows(split, evaluated, spelled)
    if not alike:
        return
    share = len(alike) / len(evaluated)
    rows = ", ".join(f"{row} (row {other} of {name})" for row, other in alike[:SHOWN])
    more = f" ({len(alike) - len(exact):,} with other case or spaces)" if len(alike) > len(exact) else ""
    too_high = "the scores will be too high" if name == "train" else "the student learns the teacher's targets for them"
    yield Finding(
        NAME,
        "mistake" if share > MOST else "warning",
        f"{len(alike):,} of {len(evaluated):,} eval rows ({share:.1%}) are also in {name}{more}: {too_high}. The "
        f"first, counted from 0: {rows}",
        f"Remove them from {name}." if share <= MOST or name != "train" else f"Hold out a part of train: {CUT}.",
    )


def _repeated(train: Dataset, label_role: str) -> Iterator[Finding]:
    """Yield how many train rows have the same inputs, and how many of them another label."""
    roles, labelled = inputs_of(train), label_role in train.column_names and label_role not in inputs_of(train)
    if not roles:
        return
    seen: dict[int, set[str]] = {}
    values = train[label_role][:] if labelled else [""] * len(train)
    labels = map(str, values)
    rows = 0
    for one, label in zip(row_hashes(train, roles), labels, strict=True):
        rows += one in seen
        seen.setdefault(one, set()).add(label)
    against = sum(len(found) > 1 for found in seen.values())
    if against and isinstance(next(one for one in values if one is not None), float):
        yield Finding(NAME, "ok", f"{against:,} texts occur more than once in train, with different numbers")
    elif against:
        yield Finding(
            NAME,
            "warning",
            f"{against:,} texts occur more than once in train, with different labels",
            "No model can learn both: decide for one label, or drop them.",
        )
    share = rows / max(len(train), 1)
    text = f"{rows:,} of {len(train):,} train rows ({share:.1%}) repeat an earlier one"
    text = text if rows else "no train row repeats another"
    if share > REPEATED:
        yield Finding(NAME, "warning", text, "They count twice; drop them, unless that is meant.")
    else:
        yield Finding(NAME, "ok", text)
