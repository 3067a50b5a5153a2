"""Lets a student choose its part of the vocabulary, once the data has been read, and prepares the data for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.labelled import has_label
from hf_distill.data.loading import ordered_alike
from hf_distill.data.two_tokenizers import BothNumbers, Renumbered
from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.models.outline import outline
from hf_distill.models.token_counts import TokenCounts, count_tokens
from hf_distill.students.cut_vocabulary import cut_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

    from hf_distill.models.cut_tokenizer import Cut
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared

    Found = tuple[Prepared, tuple[Prepared, TargetSource] | None]


def with_vocabulary(
    recipe: Recipe, pair: Pair, splits: Mapping[str, Dataset], prepare: Callable[[Pair], Found]
) -> Pair:
    """Return the pair with the student's part of the vocabulary; the same pair if the student has all of it.

    Args:
        recipe: The recipe.
        pair: Teacher and student, as they are before the data has been read.
        splits: The raw splits.
        prepare: Returns what the task makes of the splits.

    Raises:
        UserError: The vocabulary cannot be cut, or the task cannot be learned with a smaller one.
    """
    separate = False

    def counts() -> TokenCounts:
        nonlocal separate
        _check_task(recipe)
        found, _ = prepare(pair)
        separate = found.for_teacher is not None
        tokens, train = max(pair.tokenizer.get_vocab().values()) + 1, found.train
        if recipe.teacher.keeps_private:  # the student's tokens would tell what is in these rows
            train = train.select(np.flatnonzero(~has_label(train)))
        return TokenCounts(count_tokens(train, tokens), count_tokens(found.eval, tokens))

    with recipe.locate("student"):
        cut = recipe.student.cut(pair.tokenizer, pair.student, counts)
        if cut is None:
            return pair
        student = cut_config(pair.student, cut.kept)
    smaller = partial(replace, tokenizer=cut.tokenizer, student=student, cut=cut)
    # A teacher without a model of its own reads what the student reads, and some make inputs of their own.
    without = pair.members or recipe.teacher.is_without_model or recipe.teacher.own_inputs
    whole = pair.teacher_tokenizer or (None if without else pair.tokenizer)
    # Where it reads other texts than the student, or is asked once about training and evaluation, it reads its tokens.
    alone = separate or recipe.teacher.keeps_private
    found = smaller(
        pair,
        uncut=pair,
        renumbered=whole is pair.tokenizer and not alone,
        teacher_tokenizer=whole,
        members=tuple(smaller(one, teacher_tokenizer=one.teacher_tokenizer or one.tokenizer) for one in pair.members),
    )
    with recipe.locate("teacher"):
        recipe.teacher.check_pair(
            recipe.task, [objective for stage in recipe.plan for objective in stage.objectives], found
        )
    return found


class _NeedsRows(Exception):
    """The tokens of the data were asked for."""


def needs_rows(recipe: Recipe, pair: Pair) -> bool:
    """Return whether all rows decide which tokens the student has; check the rest of the entry.

    Raises:
        UserError: The vocabulary cannot be cut, or the task cannot be learned with a smaller one.
    """

    def counts() -> TokenCounts:
        _check_task(recipe)
        raise _NeedsRows

    try:
        with recipe.locate("student"):
            recipe.student.cut(pair.tokenizer, pair.student, counts)
    except _NeedsRows:
        return True
    return False


def _check_task(recipe: Recipe) -> None:
    if recipe.task.compares_tokens or recipe.task.head_kind == "tokens":
        raise UserError(
            f"{recipe.task.name} compares the models token by token, over the whole vocabulary, so it cannot be cut. "
            "Name a student without it: student: {name: copy_layers, ...}.",
            key="name",
        )


def prepared_for(pair: Pair, prepare: Callable[[Pair], Found]) -> Found:
    """Return the data for a pair; if the student has a part of the vocabulary, also as the teacher reads it.

    Args:
        pair: Teacher and student.
        prepare: Returns what the task makes of the splits.
    """
    if not pair.renumbered:
        return prepare(pair)
    assert pair.uncut is not None
    assert pair.cut is not None
    # The rows of both are the same texts, in the order in which they would be without a cut: a teacher that was trained
    # for a student with the whole vocabulary is found again.
    with ordered_alike():
        whole, _ = prepare(pair.uncut)
        own, stored = prepare(replace(pair, teacher_tokenizer=None))
    teacher = Renumbered(own.collator, pair.cut.kept)
    shared = replace(own, collator=teacher, head=whole.head)
    return replace(own, collator=BothNumbers(teacher), for_teacher=whole, in_teacher_ids=shared), stored


def in_words(recipe: Recipe, pair: Pair) -> list[str]:
    """Return lines that say what stays of the vocabulary; none if all of it does."""
    if pair.cut is None or pair.uncut is None:
        return []
    cut: Cut = pair.cut
    before, after = (_sizes(recipe, one) for one in (pair.uncut, pair))
    return [
        f"vocabulary: {len(cut.kept):,} of {cut.whole:,} tokens stay; embeddings {before[1]} -> {after[1]}, student "
        f"{before[0]} -> {after[0]} parameters; {cut.split:.1%} of the tokens of the eval split are left out, and "
        "split into smaller ones"
    ]


def _sizes(recipe: Recipe, pair: Pair) -> tuple[str, str]:
    """Return the number of parameters of a student and of its embeddings."""
    model: Any = outline(recipe.task.auto_class, pair.student, trust_remote_code=recipe.trusts_code)
    return count(model.num_parameters()), count(model.get_input_embeddings().weight.numel())
