"""Checks what a recipe says about completions, and says who writes how many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_distill.component import settings
from hf_distill.data import column
from hf_distill.data.example_columns import PROMPT_LENGTH
from hf_distill.data.two_tokenizers import TEACHER_PROMPT
from hf_distill.errors import UserError, under
from hf_distill.tasks.text_prompts import without_completion
from hf_distill.training.writing_models import ONE_LIVE_MODEL, STORED

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared

CANNOT_WRITE = (
    "the teacher would write completions, and it is not one language model that runs here or behind a server of vLLM. "
    "Name one (teacher: {name: pretrained, model: ...}), or let the student write (by: student)."
)
OTHER_TOKENS = (
    "the teacher would write completions in tokens that are not the student's. Let it write a data set first, in a run "
    "of its own with a student that has all of its tokens (hf-distill generate --by teacher), and learn from the texts."
)
OF_DATA = "the completions of the data, not those of the teacher"
# Key of `completions` -> who must write so that it means something.
_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("share", "reuse", "special_tokens"), ("student", "mixture")),
    "teacher_share": ("mixture",),
    **dict.fromkeys(("num_beams", "min_tokens", "drop_cut"), ("teacher",)),
}


def check_completions(recipe: Recipe) -> None:
    """Refuse settings of `completions` that the task, the backend or who writes cannot follow.

    Raises:
        UserError: There is one; `key` names it.
    """
    own = recipe.completions
    if own.by == "data":
        return
    if not recipe.task.writes:
        raise UserError(
            f"the models of {recipe.task.name} write no completions. Leave out this section, or take text-generation.",
            key="by",
        )
    if own.by == "teacher" and not recipe.teacher.writes:
        raise UserError(CANNOT_WRITE, key="by")
    for key in settings(own):
        if own.by not in (writers := _FOR.get(key, (own.by,))):
            raise UserError(f"it is for by: {' and '.join(writers)}, and has no effect here. Leave it out.", key=key)
    if own.by == "teacher" and recipe.teacher.writes_elsewhere:
        for key in ("backend", "num_beams"):
            if key in settings(own):
                raise UserError("the teacher writes on its own server, which draws tokens. Leave it out.", key=key)
    with under("backend"):
        own.backend.check()
    if own.num_beams > 1 and not own.backend.searches:
        raise UserError(f"the backend {own.backend.name} does not search. Take backend: transformers.", key="num_beams")
    if own.by == "mixture" and not recipe.teacher.caches:  # else `check_targets` says why
        _check_mixture(recipe)
    if own.per_prompt > 1 and (own.num_beams > 1 or not own.temperature):
        raise UserError(
            f"nothing is drawn, so a prompt would have the same completion {own.per_prompt} times. Leave it out, or "
            "set a temperature above 0.",
            key="per_prompt",
        )


def check_targets(recipe: Recipe) -> None:
    """Refuse stored targets for texts that are written while the student trains; `hf-distill generate` may write such.

    Raises:
        UserError: Their teacher is `cached`.
    """
    if recipe.teacher.caches and any(recipe.completions_in(stage).in_training for stage in recipe.plan):
        raise recipe.mistake("completions.by", STORED)


def writes_eval(recipe: Recipe, prepared: Prepared) -> Literal["teacher", "student"]:
    """Return who writes the completions that eval rows lack.

    It is the teacher if it can; it does not write after a context that the student does not read.

    Args:
        recipe: The recipe.
        prepared: Its data.

    Raises:
        UserError: The models have different tokens, so that what one writes is not what the other reads.
    """
    if TEACHER_PROMPT in prepared.eval.column_names and recipe.teacher.reads_another_prompt:
        return "student"
    if prepared.for_teacher is None and prepared.in_teacher_ids is None:
        return "teacher" if recipe.teacher.writes else "student"
    if recipe.teacher.writes:
        raise UserError(OTHER_TOKENS, key="completions.by")
    raise UserError(
        "eval rows have no completion, and the student would write them in tokens that are not the teacher's. Give the "
        "eval split completions, or take a student with the teacher's tokenizer and all of its tokens.",
        key="completions.by",
    )


def _check_mixture(recipe: Recipe) -> None:
    if not recipe.completions.backend.mixes:
        raise UserError(
            f"the backend {recipe.completions.backend.name} runs one model, and by: mixture draws from two. Take "
            "backend: transformers.",
            key="backend",
        )
    teacher = recipe.teacher
    if teacher.own_inputs or len([*teacher.every_entry()]) > 1:
        raise UserError(ONE_LIVE_MODEL, key="by")


def completions_in_words(recipe: Recipe, prepared: Prepared) -> list[str]:
    """Return lines that say who writes how many completions, before training and in it; none if the data has them."""
    own = recipe.completions
    if own.by == "data" or PROMPT_LENGTH not in prepared.train.column_names:
        return []
    other_tokens = prepared.for_teacher is not None or prepared.in_teacher_ids is not None
    if own.by == "teacher" and other_tokens:
        raise recipe.mistake("completions.by", OTHER_TOKENS)
    lengths = np.sort(column(prepared.train, PROMPT_LENGTH).to_numpy())
    who = {"student": "the student", "teacher": "the teacher", "mixture": "student and teacher together"}[own.by]
    when = "once, before the training" if own.by == "teacher" else "while the student trains"
    prompts = (
        f"{len(lengths):,} prompts of {lengths[0]:,} to {lengths[-1]:,} tokens (median {lengths[len(lengths) // 2]:,})"
    )
    many = f"{own.per_prompt} completions each" if own.per_prompt > 1 else "one completion each"
    writes = "write" if own.by == "mixture" else "writes"
    lines = [f"completions: {who} {writes} {many} of {prompts}, at most {own.max_new_tokens:,} tokens, {when}"]
    if own.share < 1:
        lines.append(
            f"completions: share {own.share:g}: of the rows of a step, {100 * own.share:g} % have one that is written, "
            "the others keep that of the data"
        )
    if own.reuse > 1:
        lines.append(f"completions: reuse {own.reuse}: each is used for {own.reuse} optimiser steps")
    if missing := len(without_completion(prepared.eval)):
        with recipe.locate(""):
            by = writes_eval(recipe, prepared)
        who = (
            "the teacher writes them once, before the training, and the models are evaluated on these"
            if by == "teacher"
            else "the student writes them once, as it is before the training; they are no labels, so that these rows "
            "are compared with the teacher alone"
        )
        lines.append(f"completions: {missing:,} of {len(prepared.eval):,} eval rows have none: {who}")
    if own.by == "teacher" and recipe.report.baseline:
        lines.append(f"completions: the baseline learns from {OF_DATA}")
    return lines
