"""The command `hf-distill cache --targets-only`: publish a private teacher's targets for public texts, and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_distill import parallel
from hf_distill.cache.hub import push
from hf_distill.cache.published import check_place, text_hashes, write
from hf_distill.data.labelled import has_label
from hf_distill.errors import UserError
from hf_distill.run.evaluation import in_students_order
from hf_distill.training.labelled import labels_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from hf_distill.models.target_model import TargetSource
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.run import Run
    from hf_distill.tasks import Prepared


@dataclass(frozen=True)
class Publication:
    """What was published.

    Attributes:
        path: The directory.
        rows: Number of distinct texts.
        size: Number of labelled rows that was told; None if it was not.
    """

    path: Path
    rows: int
    size: int | None

    def in_words(self) -> str:
        """Return the line that the command prints."""
        told = "not told" if self.size is None else f"{self.size:,} labelled rows"
        return f"targets of {self.rows:,} public texts, without the texts; size of this party: {told}"


def check_publishing(recipe: Recipe) -> Path:
    """Return the directory for the targets, from the recipe alone.

    Raises:
        UserError: The recipe names none, or its task has no targets by text.
    """
    from hf_distill.teachers.published.teacher import check_task

    path = recipe.teacher.place
    if path is None:
        raise recipe.mistake(
            "teacher",
            "--targets-only writes the targets to a directory of their own. Name it: {name: cached, path: ..., "
            "teacher: {...}}.",
        )
    with recipe.locate("task"):
        check_task(recipe.task)
    for key in ("augment", "pseudo_labels", "select"):
        if getattr(recipe.data, key) is not None:
            raise recipe.mistake(
                f"data.{key}",
                "changes which rows have a label, or makes texts of private ones, and every row without a label is "
                "published. Leave it out with --targets-only.",
            )
    return Path(path).expanduser()


def publish(recipe: Recipe, *, with_size: bool = True) -> Publication:
    """Train or load the teacher of a recipe, and write its targets for the rows of train without a label.

    These are the rows of `data.transfer`, and others of train without a label. Rows with a label are private: nothing
    of them is written but their number.

    Args:
        recipe: The recipe; its teacher is `cached` with a `path`.
        with_size: Whether the number of labelled rows is told, by which an ensemble can weight its members.

    Raises:
        UserError: There is a mistake in the recipe or its data, or no row is public.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.run.chain import trainings
    from hf_distill.run.launch import check_launch
    from hf_distill.run.preparation import complete, open_run

    path = check_publishing(recipe)
    check_launch()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    raw: dict[str, Dataset] = {}
    recipe = trainings(recipe)[0].recipe
    run = open_run(recipe, restart=False, for_teacher=True, read=raw.update)
    public = public_rows(run.prepared)
    if not len(public):
        raise recipe.mistake(
            "data.transfer",
            "every row of train has a label, so that all are private, and there are no public texts to publish targets "
            "for. Name them: data: {transfer: {path: public.csv}}.",
        )
    with recipe.locate("teacher"):
        parallel.asked_once(lambda: check_place(path))
    with run.directory.lock:
        teacher = run.load_teacher()
        with run.stage("cache"):
            logits = _targets(run, teacher, public)
    texts = complete(recipe, raw)[0]["train"].select(public)
    size = labels_of(run.prepared)["train_rows_with_label"] if with_size else 0
    held = run.prepared.layout
    rows = parallel.asked_once(
        lambda: write(
            path,
            text_hashes(texts, [role for role in recipe.task.roles if role != recipe.task.label_role]),
            logits,
            kind=str(getattr(held, "kind", "")),
            labels=run.prepared.label_names,
            size=size or None,
            teacher=teacher.fingerprint(),
        )
    )
    if run.targets_repository and run.is_main:
        push(path, run.targets_repository)
    return Publication(path, rows, size or None)


def public_rows(prepared: Prepared) -> NDArray[np.int64]:
    """Return which rows of train are public: those without a label."""
    if not prepared.labelled:
        return np.arange(len(prepared.train))
    return np.flatnonzero(~has_label(prepared.train))


def _targets(run: Run, teacher: TargetSource, public: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the teacher's logits for some rows of train, classes in the order of the label names."""
    if len(teacher.models) != 1:
        raise UserError(
            f"--targets-only publishes the logits of one model, and the teacher has {len(teacher.models)}. Publish the "
            "student of these teachers instead, or one of them.",
            key="teacher",
        )
    fitter, model = run.for_teacher(teacher)
    data = replace(fitter.prepared, eval=fitter.prepared.train.select(public))
    data = replace(data, evaluator=replace(data.evaluator, names=()))  # no row has a label
    predictions, _ = replace(fitter, prepared=data).predict(model, run.training, whose="the teacher")
    logits = in_students_order(predictions, data).logits
    assert logits is not None
    assert len(logits) == len(public)
    found: NDArray[np.float32] = logits.astype(np.float32).reshape(len(public), -1)
    return found
