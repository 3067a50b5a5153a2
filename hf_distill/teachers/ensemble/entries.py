"""Checks of the entries of an ensemble: whether they can teach together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.teachers.base import Teacher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.pair import Pair

# Key path and entry of each teacher.
Entries = Sequence[tuple[str, Teacher]]


def check_entries(entries: Entries, weights: Any, route: str | None) -> None:
    """Refuse entries that are not one model each, and settings that do not fit them.

    Args:
        entries: The entries.
        weights: `weights` of the ensemble.
        route: `route` of the ensemble.

    Raises:
        ValueError: They cannot teach together.
    """
    if all(one.is_published for _, one in entries):
        for key, wrong in (("weights", weights == "validation"), ("route", route is not None)):
            if wrong:
                raise ValueError(f"{key}: only models can be asked that, and these are the targets of other parties")
        return
    if weights == "size":
        raise ValueError(
            "weights: size is told by published teachers alone. Write the weights themselves: weights: [1, 2, ...]"
        )
    for path, one in entries:
        if one.reads_another_prompt:
            raise ValueError(f"{path}.context: the teachers of an ensemble read the student's prompt. Leave it out")
        several = [inner for inner, _ in one.members()] != [""]
        if several or one.is_without_model or (one.own_inputs and not one.caches):
            stored = ", or cached: {name: cached, teacher: {...}}" if one.own_inputs else ""
            raise ValueError(f"{path}: wanted a model, pretrained or finetuned{stored}; found {one.name}")
    headed = [path for path, one in entries if one.has_head]
    if headed and headed[0] != entries[0][0]:
        raise ValueError(
            f"{entries[0][0]} takes the labels of the data, and {headed[0]} brings its labels. List that one first"
        )


def check_number(entries: Entries, count: int | None) -> None:
    """Refuse one teacher alone, and several copies of one that is trained already.

    Args:
        entries: The entries.
        count: How many teachers are trained of one entry; None if each is one teacher.

    Raises:
        ValueError: The number is wrong.
    """
    if count is None:
        if len(entries) < 2:
            raise ValueError(
                f"teachers: there {'is one entry' if entries else 'are none'}, and a mean needs two or more. Add "
                "another; or train several of one finetuned entry: count: 5"
            )
        return
    if count < 2:
        raise ValueError(f"count: wanted two teachers or more, found {count}")
    if len(entries) != 1:
        raise ValueError(f"count: trains several teachers of one entry, and there are {len(entries)} of them")
    if not entries[0][1].fine_tuning:
        raise ValueError(
            f"count: {entries[0][0]} is not trained by this run, so that all would be the same. Wanted finetuned"
        )


def check_cached(entries: Entries, count: int | None, route: str | None) -> None:
    """Refuse teachers of which only some are cached, and settings of a cache that do not work for several.

    Args:
        entries: The entries, some of them cached.
        count: How many teachers are trained of one entry; None if each is one teacher.
        route: Column that names the teacher of a row.

    Raises:
        ValueError: Their targets cannot be stored one by one.
    """
    for path, one in entries:
        if not one.caches:
            raise ValueError(f"{path}: wanted all teachers cached, as others are; or none of them")
        if one.published is not None:
            raise ValueError(
                f"{path}: push is for the teacher of a recipe. Store and push this one with its own recipe"
            )
        if one.place is not None and count is not None:
            raise ValueError(f"{path}: path is the directory of one cache, and count makes {count}. Leave it out")
    if route is not None:
        raise ValueError("route: it is for teachers that are not cached one by one. Put cached around the ensemble")


def check_vocabulary(config: PretrainedConfig, pair: Pair) -> None:
    """Refuse a vocabulary with fewer entries than the compared tokens.

    Raises:
        UserError: It has fewer.
    """
    from hf_distill.rows.inferred import vocabulary

    columns = config.get_text_config().vocab_size
    wanted = vocabulary(pair.student, pair.teacher, pair.tokenizer)
    if wanted is not None and columns < wanted:
        raise UserError(
            f"its vocabulary has {columns:,} entries, and {wanted:,} tokens are compared. Wanted teachers with the "
            "same vocabulary.",
            key="model",
        )
