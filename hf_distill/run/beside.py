"""What the runs of a chain hand on to the next one, besides the student: for its teacher's training, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.files.ownership import TEACHERS
from hf_distill.report.results import SeedResult
from hf_distill.teachers.ensemble.averaging import Ensemble

if TYPE_CHECKING:
    from hf_distill.report.report import Report
    from hf_distill.run.chain import ChainRun
    from hf_distill.run.run import Run
    from hf_distill.run.scored import Scored


@dataclass(frozen=True)
class SharedTrainings:
    """Directories of what several runs train once, each with a folder for every training that is different.

    Attributes:
        teachers: Of fine-tuned teachers that have no `output_dir` of their own.
        baselines: Of the students that are trained without a teacher.
    """

    teachers: Path
    baselines: Path


@dataclass(frozen=True)
class Beside:
    """What a run of a chain gets from those before it.

    Attributes:
        together: Directories of the generations whose mean is evaluated in its report; mostly none.
        direct: Results of its student taught by the first teacher, for each seed, if there are some.
        alone: Predictions of the first of them; None without.
        teachers: Directory and training arguments of the teachers that the first run fine-tunes.
    """

    together: tuple[Path, ...] = ()
    direct: tuple[SeedResult, ...] = ()
    alone: Scored | None = None
    teachers: tuple[Path, Mapping[str, Any]] | None = None

    def of(self, training: ChainRun, run: Run, shared: SharedTrainings | None = None) -> Beside:
        """Return what the report of a run needs, and let the run find the models that are trained already."""
        run.teachers = self.teachers
        if shared is not None:
            run.teachers = self.teachers or (shared.teachers, run.training)
            run.baselines = shared.baselines
        return replace(self, together=training.together)

    def after(self, training: ChainRun, run: Run, report: Report) -> Beside:
        """Return what the next run gets."""
        own = report.seeds or (SeedResult(run.args.seed, report.student.metrics),)
        return Beside(
            direct=own if training.direct else (),
            alone=run.scored if training.direct else None,
            teachers=run.teachers or (run.directory.path / TEACHERS, run.training),
        )


def mean_of(run: Run, directories: tuple[Path, ...]) -> Mapping[str, float]:
    """Return the metrics of the mean of several generations on the eval split; nothing for none."""
    if not directories:
        return {}
    from hf_distill.models.loading import load_model

    trusts = run.recipe.trusts_code
    models = [
        load_model(str(one), run.prepared.head, own_head=True, trust_remote_code=trusts)[0] for one in directories
    ]
    together = Ensemble(models).predicting(run.prepared.layout)
    predictions, _ = run.fitter.predict(together, run.training, whose="the mean of all generations")
    return run.prepared.evaluator.evaluate(predictions)
