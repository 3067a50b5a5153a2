"""The cache of a run: where it lies, what decides that it belongs, and `hf-distill cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_distill.cache.cache import Cache
    from hf_distill.recipe.recipe import Recipe


def capture(recipe: Recipe) -> Cache:
    """Do what a run does up to its cache: `hf-distill cache RECIPE.yaml`. The run goes on from there.

    The output directory stays free for any run: nothing is written there but a teacher that is trained there.

    Raises:
        UserError: The recipe, its data or the way it was launched is at fault, or its teacher is not a cached one.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.run.launch import check_launch
    from hf_distill.run.preparation import open_run

    if not recipe.teacher.caches:
        raise recipe.mistake(
            "teacher", "nothing is kept of this teacher. Write {name: cached, teacher: {...}} around it."
        )
    check_launch()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    run = open_run(recipe, restart=False, for_teacher=True)
    with run.directory.lock:
        run.store_targets(run.load_teacher())
    assert run.cache is not None
    return run.cache
