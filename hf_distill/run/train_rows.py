"""Changes the train rows as `data.select` and `data.augment` say, before a task prepares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_distill.data import apart, column
from hf_distill.data.augmentation import augmented
from hf_distill.data.example_columns import EXAMPLE_COLUMNS, SOURCE, held
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.data.selecting import choose, unlabelled
from hf_distill.data.transfer import TRANSFER
from hf_distill.data.transfer_rows import append_transfer
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.data.augmentation import Augmentation
    from hf_distill.data.loading import Sample
    from hf_distill.data.section import Data
    from hf_distill.data.selecting import Select
    from hf_distill.tasks import Setup, Task

Say = Callable[[str], None]


def chosen(task: Task, how: Select, splits: Mapping[str, Dataset], setup: Setup, say: Say) -> dict[str, Dataset]:
    """Return the splits with some of their rows without a label, of `train` and `transfer` together.

    Args:
        task: The task.
        how: Which rows are chosen.
        splits: `train`, `eval` and maybe `transfer`, columns named by role.
        setup: The models, and what the recipe says about the labels.
        say: Called with the line that says how many rows were chosen.

    Raises:
        UserError: The labels are numbers, or a classifier cannot be fitted on them.
    """
    whole, _ = apart(append_transfer(splits, task.label_role))
    train, labels = whole["train"], task.classes_of_rows(whole, setup)
    if labels is None:
        raise UserError("the labels are numbers, and it needs classes. Leave it out.", key="select")
    found = choose([train[role][:] for role in task.texts if role in train.column_names], labels, how)
    first = len(splits["train"])
    parts = {"train": found[found < first], TRANSFER: found[found >= first] - first}
    asked = int(unlabelled(labels).sum())
    known = len(train) - asked
    measure = "smallest margin" if how.by == "margin" else "largest entropy"
    say(
        f"select: {len(found) - known:,} of {asked:,} train rows without a label, those with the {measure} for a "
        f"classifier of {known:,} labelled rows; the others are left out"
    )
    return {
        name: split.select(parts[name]) if name in parts else split
        for name, split in splits.items()
        if name not in parts or len(parts[name])
    }


def with_new_rows(task: Task, how: Augmentation, splits: Mapping[str, Dataset], say: Say) -> dict[str, Dataset]:
    """Return the splits with new rows at the end of `train`, without a label, made of all rows but those of `eval`.

    Args:
        task: The task.
        how: How rows are made.
        splits: `train`, `eval` and maybe `transfer`, columns named by role.
        say: Called with lines that say how many rows were made.

    Raises:
        UserError: The rows have columns beside their texts, or no row could be made.
    """
    roles = texts_of(task, splits)
    whole = append_transfer(splits, task.label_role)["train"]
    rows = whole.select_columns(roles)
    kept = _kept(rows)
    new = augmented(_as_texts(rows).select(kept), how, say)
    made = _of_sources(_like(new.remove_columns(SOURCE), rows), whole.select(kept).select(new[SOURCE][:]))
    if not len(made):
        raise UserError(
            f"no new row could be made of {len(rows):,} rows: there is no word in them to replace. Leave it out.",
            key="augment",
        )
    say(f"augment: {len(made):,} rows without a label, made of {len(rows):,} train rows")
    train = {"train": splits["train"], TRANSFER: made}
    return {**splits, **append_transfer(train, task.label_role)}


def _of_sources(made: Dataset, sources: Dataset) -> Dataset:
    """Return new rows with the group and the weight of the rows that they were made of."""
    names = held(sources)
    if not names:
        return made
    whole = made
    for name in names:
        whole = whole.add_column(name, column(sources, name).combine_chunks(), feature=sources.features[name])
    whole._fingerprint = fingerprint(made._fingerprint, dataset_fingerprint(sources.select_columns(names)))
    return whole


def _listed(rows: Dataset) -> list[str]:
    """Return the roles that have a list of words."""
    return [role for role, kind in rows.features.items() if not hasattr(kind, "dtype")]


def _kept(rows: Dataset) -> Sequence[int]:
    """Return the rows whose words, joined by spaces, can be cut into the same words again."""
    listed = _listed(rows)
    if not listed:
        return range(len(rows))
    return [at for at, row in enumerate(rows) if all(" ".join(row[role]).split(" ") == row[role] for role in listed)]


def _as_texts(rows: Dataset) -> Dataset:
    """Return the rows with words joined by spaces where a role has a list of words."""
    from datasets import Features, Value

    listed = _listed(rows)
    if not listed:
        return rows
    texts = {role: rows[role][:] for role in rows.column_names}
    joined = {role: [" ".join(one) if role in listed else one for one in column] for role, column in texts.items()}
    features = Features({role: Value("string") for role in joined})
    return type(rows).from_dict(joined, features)


def _like(made: Dataset, rows: Dataset) -> Dataset:
    """Return new texts as lists of words where `rows` have such lists."""
    listed = _listed(rows)
    if not listed:
        return made
    texts = {role: made[role][:] for role in made.column_names}
    cut = {role: [one.split(" ") if role in listed else one for one in column] for role, column in texts.items()}
    whole = type(rows).from_dict(cut, rows.features)
    whole._fingerprint = fingerprint(made._fingerprint, listed)  # the same in every process and run
    return whole


def look_at(task: Task, data: Data, sample: Sample, setup: Setup) -> tuple[Mapping[str, Dataset], list[str]]:
    """Return the rows that `data.select` chooses of a whole sample, and lines for `--check`.

    With a part of the transfer rows alone nothing is chosen. New rows are not made, since that loads a model.

    Raises:
        UserError: No rows could be chosen or made.
    """
    splits, lines = sample.splits, list[str]()
    if data.augment is not None:
        texts_of(task, splits)
    if data.select is None:
        return splits, []
    if not sample.whole_transfer:
        return splits, ["not checked data.select: it needs all transfer rows"]
    splits = chosen(task, data.select, splits, setup, lines.append)
    return splits, [line.replace("select: ", "select      ", 1) for line in lines]


def texts_of(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """Return the roles of the texts of a row.

    Raises:
        UserError: There are other columns too, whose values for a new text are not known.
    """
    names = [name for name in splits["train"].column_names if name not in (task.label_role, *EXAMPLE_COLUMNS)]
    if other := [name for name in names if name not in task.texts]:
        raise UserError(
            f"new texts have no value for the column of '{other[0]}'. Leave it out, or the column.", key="augment"
        )
    return [role for role in task.texts if role in names]
