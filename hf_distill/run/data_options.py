"""Checks of `data.select`, `data.augment` and `data.pseudo_labels`, before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.labelled import has_label

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_distill.data.augmentation import Augmentation
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared


def check_data_options(recipe: Recipe) -> None:
    """Refuse `data.select`, `data.augment` and `data.pseudo_labels` where they have no meaning.

    Raises:
        UserError: One of them does not fit the task, the teacher or the objectives.
    """
    given = [name for name in ("select", "augment", "pseudo_labels") if getattr(recipe.data, name) is not None]
    if given and recipe.teacher.keeps_private:
        raise recipe.mistake(
            f"data.{given[0]}",
            "the labelled rows are private to the teacher, and the student would learn about them, or ask it more "
            "often than is counted. Leave it out.",
        )
    if recipe.data.select is not None and not recipe.task.classifies_rows:
        raise recipe.mistake(
            "data.select",
            f"a classifier of rows chooses the texts, and {recipe.task.name} has no classes of rows. Leave it out.",
        )
    _check_pseudo_labels(recipe)
    if recipe.data.augment is not None:
        _check_augment(recipe, recipe.data.augment)


def _check_augment(recipe: Recipe, how: Augmentation) -> None:
    if not recipe.task.texts:
        raise recipe.mistake(
            "data.augment",
            f"what {recipe.task.name} learns are the words themselves, or places among them, so none can be replaced. "
            "Leave it out.",
        )
    if recipe.teacher.reads:
        raise recipe.mistake(
            "data.augment",
            "the teacher reads columns of the data, and new texts have none. Leave it out, or take another teacher.",
        )
    with recipe.locate("data.augment"):
        how.check()


def _check_pseudo_labels(recipe: Recipe) -> None:
    """Refuse `data.pseudo_labels` where it has no meaning, before anything is loaded.

    Raises:
        UserError: The task has no classes of rows, the teacher changes while the student trains, or nothing learns from
            the labels that are written.
    """
    options = recipe.data.pseudo_labels
    if options is None:
        return
    if not recipe.task.classifies_rows:
        raise recipe.mistake(
            "data.pseudo_labels",
            f"they are for rows with a class, or several classes, and {recipe.task.name} has none. Leave it out: the "
            "student learns the teacher's targets of all rows.",
        )
    if recipe.teacher.follows_student:
        raise recipe.mistake("data.pseudo_labels", FOLLOWS)
    learned = any(objective.needs().labels for stage in recipe.plan for objective in stage.objectives)
    if not options.soft and not learned:
        raise recipe.mistake(
            "data.pseudo_labels.soft",
            "false writes labels, but no objective learns from labels. Add {name: labels}, or set it to true.",
        )


FOLLOWS = (
    "the teacher changes while the student trains, so before the training it is sure of nothing yet. Leave it out, or "
    "take a teacher that is trained before."
)


def check_sure_rows(recipe: Recipe, prepared: Prepared) -> str | None:
    """Check `data.pseudo_labels` against the data.

    Returns:
        A line that says of how many rows the teacher will be asked; None without `data.pseudo_labels`.

    Raises:
        UserError: The labels are numbers, the threshold is not above that of a guess, or all rows have a label.
    """
    options = recipe.data.pseudo_labels
    if options is None:
        return None
    if not prepared.layout.has_classes:
        raise recipe.mistake("data.pseudo_labels", "the labels are numbers, of which no teacher says how sure it is.")
    classes = 2 if has_several(prepared) else int(prepared.head.settings["num_labels"])
    if options.threshold <= 1 / classes:
        what = "a label applies or does not" if has_several(prepared) else f"there are {classes} classes"
        raise recipe.mistake(
            "data.pseudo_labels.threshold",
            f"{options.threshold:g} leaves nothing out: {what}, so the larger probability is at least "
            f"{1 / classes:.3g}. Wanted more.",
        )
    asked = len(prepared.train) - int(labelled_rows(prepared).sum())
    if not asked and recipe.data.transfer is None and recipe.data.augment is None:
        raise recipe.mistake(
            "data.pseudo_labels",
            "every train row has a label, so there is no other to leave out. Leave it out, or add texts: data: "
            "{transfer: ...}.",
        )
    then = "" if options.soft else ", which becomes their label"
    return (
        f"pseudo-labels: of {asked:,} train rows without a label, those stay in which the teacher gives a class "
        f"{options.threshold:g} or more{then}"
    )


def labelled_rows(prepared: Prepared) -> NDArray[np.bool_]:
    """Return which train rows have a label, bool `(rows,)`."""
    if "labels" not in prepared.train.column_names:
        return np.zeros(len(prepared.train), dtype=bool)
    return has_label(prepared.train)


def has_several(prepared: Prepared) -> bool:
    """Return whether a row may have several labels; each then has a probability of its own."""
    return not prepared.layout.has_named_classes
