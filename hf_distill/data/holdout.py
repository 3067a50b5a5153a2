"""Hold out a part of the train split for evaluation, chosen by the content of the rows."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

KEY = "splits.eval"
# With more distinct labels than this, or fractional ones, they are not classes: proportions are not preserved.
_MOST_CLASSES = 1_000


def hold_out(whole: Dataset, size: int | float, inputs: str, label: str | None) -> dict[str, Dataset]:
    """Split the rows into `train` and `eval`, the same way in every process, on every machine and with every seed.

    Rows with the same input stay together, so that no eval text is in train. A hash of the inputs decides which are
    held out. Their order and `training.seed` play no part, so runs with different seeds are evaluated on the same rows.
    Each class is split in the same proportion, as far as rows with equal inputs allow.

    Args:
        whole: The split, with columns named by role.
        size: Share of the rows (below 1), or number of rows.
        inputs: Role whose equal values stay together.
        label: Role of the labels; None if there are none.

    Raises:
        UserError: One of the two splits would be empty.
    """
    wanted = check_size(size, len(whole))
    groups = _groups(_values(whole, inputs))
    if len(groups) < 2:
        raise UserError(f"every row has the same '{inputs}': a held-out row would also be in train.", key=KEY)
    classes = _classes(whole[label][:] if label else None, groups)
    quotas = _quotas({name: sum(map(len, some)) for name, some in classes.items()}, wanted, len(whole))
    held: list[int] = []
    for name, some in classes.items():
        held += _take(some, quotas[name])
    held = held or min(groups, key=len)
    if not held or len(held) == len(whole):
        side = "eval" if not held else "train"
        raise UserError(
            f"{size} of {len(whole)} rows leaves nothing for {side}, since equal inputs stay together.", key=KEY
        )
    judged = np.zeros(len(whole), bool)
    judged[held] = True
    # Arrays, since `datasets` pickles lists number by number for its fingerprint.
    return {"train": whole.select(np.flatnonzero(~judged)), "eval": whole.select(np.flatnonzero(judged))}


def check_size(size: int | float, rows: int | None = None) -> int:
    """Return the number of rows that `size`, a share or a number, stands for.

    Raises:
        UserError: `size` is neither a share between 0 and 1 nor a number of rows that leaves some to train on.
    """
    share = isinstance(size, float) and not size.is_integer()
    if isinstance(size, bool) or size <= 0 or (share and size > 1) or (isinstance(size, float) and not share):
        raise UserError(
            f"cannot hold out {size}. Wanted a share such as 0.1, or a number of rows such as 500.", key=KEY
        )
    if rows is None:
        return 0
    wanted = max(1, round(size * rows)) if share else int(size)
    if wanted >= rows:
        raise UserError(f"cannot hold out {wanted} of {rows} rows: none would be left to train on.", key=KEY)
    return wanted


def _values(split: Dataset, name: str) -> Iterator[Any]:
    for batch in split.select_columns([name]).iter(batch_size=1_000):
        yield from batch[name]


def _groups(inputs: Iterable[Any]) -> list[list[int]]:
    """Return the rows of each input, in the order of a hash of the inputs."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, value in enumerate(inputs):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        rows[
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=b"hold out").digest()
        ].append(row)
    return [rows[digest] for digest in sorted(rows)]


def _classes(labels: Sequence[Any] | None, groups: Iterable[list[int]]) -> dict[str, list[list[int]]]:
    """Return class -> its groups; a group belongs to the class of its first row."""
    names = [_name(label) for label in labels] if labels is not None else []
    if len(set(names)) > _MOST_CLASSES or any(isinstance(label, float) for label in labels or ()):
        names = []
    classes: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        classes[names[group[0]] if names else ""].append(group)
    return dict(sorted(classes.items()))


def _name(label: Any) -> str:
    """Return the class of a row as text; for a list of labels, the set of labels in it."""
    return json.dumps(sorted(set(map(str, label))) if isinstance(label, list) else label, default=str, sort_keys=True)


def _quotas(sizes: Mapping[str, int], wanted: int, rows: int) -> dict[str, int]:
    """Return class -> rows to hold out, in proportion; rounding remainders go to the largest fractions.

    A class with at least two rows has one in each split, if enough rows are held out.
    """
    exact = {name: wanted * size / rows for name, size in sizes.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    if wanted >= sum(1 for size in sizes.values() if size > 1):
        quotas = {name: max(one, 1) if sizes[name] > 1 else one for name, one in quotas.items()}
    by_loss = sorted(sizes, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_loss:
        if sum(quotas.values()) < wanted and quotas[name] + 1 < max(sizes[name], 2):
            quotas[name] += 1
    for name in reversed(by_loss):
        if sum(quotas.values()) > wanted and quotas[name] > 1:
            quotas[name] -= 1
    return quotas


def _take(groups: Sequence[list[int]], quota: int) -> list[int]:
    """Return the rows of the first groups that fit into the quota; at least one group is left for train."""
    taken: list[int] = []
    left = len(groups)
    for group in groups:
        if left > 1 and len(taken) + len(group) <= quota:
            taken += group
            left -= 1
    return taken
