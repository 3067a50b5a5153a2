"""Checks, before anything is trained, that a student can be written in the formats of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.errors import UserError
from hf_distill.export import FORMATS
from hf_distill.locations import is_here, missing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.recipe.recipe import Recipe


def check_exports(recipe: Recipe, student: PretrainedConfig | None) -> None:
    """Refuse formats in which a student cannot be written, or whose packages are missing. Loads no weights.

    Args:
        recipe: The recipe.
        student: The student's configuration; None if it is not known.

    Raises:
        UserError: A line for each mistake.
    """
    mistakes: list[str] = []
    for index, name in enumerate(recipe.export.formats):
        one, path = FORMATS[name](), f"export.formats[{index}]"
        absent = [package for package in one.needs if not is_here(package)]
        why = missing(absent[0], f"'{name}'") if absent else None
        if why is None and student is not None:
            why = one.refuses(recipe.task.auto_class, student)
        if why is not None:
            mistakes += recipe.mistake(path, why).mistakes
    if mistakes:
        raise UserError(*mistakes)
