"""The command `hf-distill doctor`: examines a recipe, prints what was found, and returns the exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from hf_distill import parallel
from hf_distill.run.doctor.examination import examine
from hf_distill.run.doctor.show import as_json, show, worst

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe


def doctor(recipe: Recipe, *, as_document: bool = False) -> bool:
    """Examine a recipe, and print what was found in the first process.

    Args:
        recipe: The recipe.
        as_document: Print JSON.

    Returns:
        Whether there is no mistake.

    Raises:
        UserError: `--check` finds mistakes; nothing was loaded.
    """
    progress = Console(stderr=True, quiet=not parallel.is_first_of_machine())
    with progress.status("checking the recipe") as status:
        found = examine(recipe, lambda name: status.update(f"checking: {name}"))
    if parallel.is_first():
        if as_document:
            print(as_json(found))
        else:
            show(found)
    return worst(found) != "mistake"
