"""Check that a recipe's local paths exist, before anything heavy is imported, to report a typo at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distill.data import check_data
from hf_distill.errors import UserError
from hf_distill.locations import resolve
from hf_distill.mistakes import join
from hf_distill.students import STUDENTS
from hf_distill.teachers import TEACHERS

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe


def check_paths(recipe: Recipe) -> None:
    """Check that the paths of models, tokenizer and data exist; Hub ids are not checked.

    Raises:
        UserError: One line for each missing path.
    """
    # Only entries of this package: a class from outside may use `model` for something else.
    sources = [
        (join("teacher", path), "model", one.source)
        for path, one in recipe.teacher.members()
        if type(one) in TEACHERS.values()
    ]
    for place, student in recipe.students:
        for depth, one in enumerate(student.every_entry()):
            if type(one) in STUDENTS.values():
                sources.append((place + ".student" * depth, "model", getattr(one, "model", None)))
    mistakes: list[str] = []
    for section, key, source in (*sources, ("", "tokenizer", recipe.tokenizer)):
        try:
            with recipe.locate(section):
                if source is not None:
                    resolve(source, key)
        except UserError as error:
            mistakes += error.mistakes
    try:
        with recipe.locate("data"):
            check_data(recipe.data, recipe.task.roles)
    except UserError as error:
        mistakes += error.mistakes
    if mistakes:
        raise UserError(*mistakes)
