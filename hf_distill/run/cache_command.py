"""The command `hf-distill cache`: store a teacher's targets without training a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.teachers.base import StoredTargets


def capture(recipe: Recipe) -> StoredTargets:
    """Run a recipe up to its cache, and return the stored targets of its teacher. A later run uses it.

    The output directory stays free for any run: nothing is written there, except a teacher that is fine-tuned there.

    Raises:
        UserError: There is a mistake in the recipe, its data or the launch, or its teacher is not `cached`.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.run.chain import trainings
    from hf_distill.run.completing import write_completions
    from hf_distill.run.completion_checks import check_targets
    from hf_distill.run.launch import check_launch
    from hf_distill.run.preparation import open_run

    if not recipe.teacher.caches:
        raise recipe.mistake(
            "teacher", "the targets of this teacher are not stored. Write {name: cached, teacher: {...}} around it."
        )
    check_launch()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    check_targets(recipe)
    # Of a chain the first teacher: the others are trained first.
    run = open_run(trainings(recipe)[0].recipe, restart=False, for_teacher=True)
    with run.directory.lock:
        teacher = run.load_teacher()
        write_completions(run, teacher)
        run.store_targets(teacher)
    assert run.cache is not None
    return run.cache
