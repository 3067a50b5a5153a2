"""`data.pseudo_labels`: the teacher is asked about the train rows without a label, and those it is sure of stay."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill import parallel
from hf_distill.data import column
from hf_distill.data.example_columns import without_examples
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.data.pseudo_labels import sure_class, sure_labels
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.records import read_record, write_record
from hf_distill.models.target_model import ROW
from hf_distill.run.data_options import FOLLOWS, has_several, labelled_rows
from hf_distill.run.evaluation import in_students_order
from hf_distill.run.requirements import check_steps
from hf_distill.run.sure_rows import SureRows, is_sure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_distill.models.target_model import TargetSource
    from hf_distill.run.run import Run

    Array = NDArray[Any]

# What the teacher was sure of, in the output directory: a resumed run must train on the same rows to the last one.
FILE = "_pseudo_labels.json"


def leave_out_unsure(run: Run, teacher: TargetSource) -> None:
    """Find the rows without a label that the teacher is sure of, and let the run's students learn from no others.

    Raises:
        UserError: There is no such row, or the teacher changes while the student trains.
    """
    options = run.recipe.data.pseudo_labels
    if options is None:
        return
    source = teacher if run.stored is None else run.stored[1]
    if source.follows_student:
        raise run.recipe.mistake("data.pseudo_labels", FOLLOWS)
    with run.stage("pseudo-labels"):
        labelled = labelled_rows(run.prepared)
        asked = np.flatnonzero(~labelled)
        sure = _sure(run, teacher, source, asked, options.threshold)
        rows = np.flatnonzero(labelled | np.isin(np.arange(len(labelled)), asked[is_sure(sure)]))
        found = SureRows(rows, asked, sure, options.soft, options.threshold)
        run.narrator.say(found.in_words())
        check_steps(run.recipe, len(rows), int(labelled.sum()), parallel.processes())
        run.sure = found


def _sure(run: Run, teacher: TargetSource, source: TargetSource, asked: Array, threshold: float) -> Array:
    """Return what the teacher is sure of, as in `SureRows.sure`: found in the output directory, or asked now.

    Raises:
        UserError: It is sure of no row.
    """
    rows = run.prepared.train.select(asked)
    own = without_examples(rows.remove_columns([name for name in rows.column_names if name == ROW]))
    several = has_several(run.prepared)
    key = fingerprint(source.fingerprint(), dataset_fingerprint(own), threshold, run.args.bf16)
    file = run.directory.path / FILE
    held = parallel.asked_once(lambda: read_record(file)) or {}
    if held.get("key") != key:
        probabilities = _probabilities(run, teacher, asked, several)
        sure = sure_labels(probabilities, threshold) if several else sure_class(probabilities, threshold)
        if not is_sure(sure).any():
            largest = (np.maximum(probabilities, 1 - probabilities) if several else probabilities).max()
            raise run.recipe.mistake(
                "data.pseudo_labels.threshold",
                f"the teacher is sure of none of {len(asked):,} train rows without a label: its largest probability is "
                f"{largest:.3g}, wanted {threshold:g}. Lower it, or leave pseudo_labels out.",
            )
        held = {"key": key, "sure": np.nan_to_num(sure, nan=-1).astype(int).tolist()}
        if run.is_main:
            run.directory.owned.take([FILE])
            write_record(file, held)
        parallel.wait()
    found = np.array(held["sure"])
    return np.where(found < 0, np.nan, found) if several else found


def _probabilities(run: Run, teacher: TargetSource, asked: Array, several: bool) -> Array:
    """Return the teacher's probabilities at temperature 1, `(rows, classes)` or `(rows, labels)`."""
    from scipy.special import expit, softmax

    fitter, model = run.for_teacher(teacher)  # reads the cache, if there is one
    rows = fitter.prepared.train.select(asked)
    order = np.argsort(column(rows, "length").to_numpy(), kind="stable")
    evaluator = replace(fitter.prepared.evaluator, names=())
    prepared = replace(fitter.prepared, eval=rows.select(order), evaluator=evaluator)
    predictions, _ = replace(fitter, prepared=prepared).predict(model, run.training, whose="the teacher")
    logits = in_students_order(predictions, prepared).logits
    assert logits is not None
    exact = np.empty(logits.shape)
    exact[order] = logits
    return np.asarray(expit(exact) if several else softmax(exact, axis=-1))
