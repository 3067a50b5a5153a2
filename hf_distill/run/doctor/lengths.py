"""How long are the texts, how many are truncated, and which are empty?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.data.shared_rows import inputs_of
from hf_distill.data.transfer import TRANSFER
from hf_distill.errors import UserError
from hf_distill.models.tokenizers import longest_input
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.sampling import of_rows, sample, unheard
from hf_distill.run.preparation import setup_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.run.doctor.opened import Opened

    Lengths = NDArray[np.int64]

NAME = "length"
# Share of truncated texts from which it is worth a warning, and the share that the advice keeps whole.
TRUNCATED, KEPT = 0.01, 0.99
# A text this many times as long as almost all others decides how much memory a batch needs.
OUTLIER = 8


def lengths(opened: Opened) -> Iterator[Finding]:
    """Yield how many texts of each split are truncated, or are far longer than the others, and how many are empty."""
    yield from _empty(opened.splits)
    if getattr(opened.recipe.task, "packing", False):
        tokens = int(np.sum(column(opened.prepared.train, "length").to_numpy()))
        blocks = len(opened.prepared.train)
        yield Finding(NAME, "ok", f"packed: {tokens:,} train tokens in {blocks:,} blocks, nothing is truncated")
        return
    limit = opened.pair.max_length
    most = _most(opened)
    if limit is not None and most is not None and limit < most:
        yield Finding(NAME, "ok", f"texts are cut at {limit:,} tokens, the models take {most:,}")
    for name, rows, found in _measured(opened):
        yield _of_split(name, rows, found, limit, most)
        if (outlier := _outlier(name, found, limit)) is not None:
            yield outlier


def _measured(opened: Opened) -> Iterator[tuple[str, str, Lengths]]:
    """Yield name, rows in words, and the number of tokens that each row would have without a limit."""
    splits = opened.splits
    for other in [name for name in ("eval", TRANSFER) if name in splits]:
        parts = {"train": sample(splits["train"]), "eval": sample(splits[other])}
        made = _vectors(opened, parts) if opened.recipe.task.vectors else _whole(opened, parts)
        if other == "eval":
            yield "train", of_rows(splits["train"]), made["train"]
        yield other, of_rows(splits[other]), made["eval"]


def _whole(opened: Opened, parts: Mapping[str, Dataset]) -> dict[str, Lengths]:
    """Return the lengths of rows as the task tokenises them, without truncation."""
    setup = replace(setup_of(opened.recipe, opened.pair), max_length=None)
    if opened.recipe.teacher.own_inputs:  # its model is of another task
        setup = replace(setup, teacher_tokenizer=None, configs=(opened.pair.student,))
    if setup.label_names is None and opened.prepared.label_names is not None:
        setup = replace(setup, label_names=list(opened.prepared.label_names))  # some rows may lack a class
    try:
        with unheard():
            made = opened.recipe.task.prepare(parts, setup)
    except UserError as error:
        raise CannotCheck(f"some rows alone cannot be tokenised: {error}") from error
    return {"train": _of(made.train), "eval": _of(made.eval)}


def _of(split: Dataset) -> Lengths:
    return np.asarray(column(split, "length").to_numpy(), dtype=np.int64)


def _vectors(opened: Opened, parts: Mapping[str, Dataset]) -> dict[str, Lengths]:
    """Return the length of the longest text of each row; a sentence encoder's own files limit it in `prepare`."""
    tokenizer: Any = opened.pair.tokenizer
    found = {}
    for name, split in parts.items():
        texts = [split[role][:] for role in opened.recipe.task.texts if role in split.column_names]
        with unheard():
            each = [[len(ids) for ids in tokenizer(texts_of_role)["input_ids"]] for texts_of_role in texts]
        found[name] = np.array(each, dtype=np.int64).max(0)
    return found


def _most(opened: Opened) -> int | None:
    """Return how many tokens the models and their tokenizers take; None where nothing limits it."""
    pair = opened.pair
    tokenizers = [one for one in (pair.tokenizer, pair.teacher_tokenizer) if one is not None]
    return longest_input((pair.teacher, pair.student), tokenizers)


def _of_split(name: str, rows: str, found: Lengths, limit: int | None, most: int | None) -> Finding:
    said = f"{name} ({rows}): median {np.median(found):,.0f}, longest {found.max():,} tokens"
    if limit is None:
        return Finding(NAME, "ok", f"{said}, no limit")
    share = float((found > limit).mean())
    if share < TRUNCATED:
        cut = f"{share:.1%} are" if share else "none is"
        return Finding(NAME, "ok", f"{said}, {cut} longer than {limit:,}")
    enough = int(np.quantile(found, KEPT, method="higher"))
    return Finding(
        NAME,
        "warning",
        f"{share:.1%} of {name} ({rows}) are longer than {limit:,} tokens: what comes after is not read",
        f"data.max_length: {enough} keeps {KEPT:.0%} of them whole."
        if most is None or enough <= most
        else f"The models take at most {most:,}, which keeps {(found <= most).mean():.0%}; {KEPT:.0%} need {enough:,}.",
    )


def _outlier(name: str, found: Lengths, limit: int | None) -> Finding | None:
    longest = min(int(found.max()), limit or int(found.max()))
    usual = int(np.quantile(found, KEPT))
    if longest < OUTLIER * max(usual, 16):
        return None
    return Finding(
        NAME,
        "warning",
        f"the longest text of {name} has {longest:,} tokens, and {KEPT:.0%} have at most {usual:,}: a batch with it "
        f"needs {longest / usual:.0f} times the memory",
        f"Cut it with data.max_length: {usual}, or drop it.",
    )


def _empty(splits: Mapping[str, Dataset]) -> Iterator[Finding]:
    """Yield a warning for each split with texts of nothing but white space."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for name, split in splits.items():
        for role in split.column_names:
            values = column(split, role)
            if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
                continue
            empty = pc.equal(pc.utf8_trim_whitespace(values), "")
            if many := pc.sum(empty).as_py():
                yield Finding(
                    NAME,
                    "warning",
                    f"{many:,} of {len(split):,} rows of {name} have an empty {role}, first row "
                    f"{pc.index(empty, True).as_py()} (counted from 0)",
                    "Drop them: both models say the same to all of them."
                    if inputs_of(split) == [role]
                    else "Drop them, unless that is meant.",
                )
