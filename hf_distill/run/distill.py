"""`distill(recipe)`: a run from beginning to end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from hf_distill import parallel
from hf_distill.report.terminal import show
from hf_distill.run.benchmarks import benchmarks
from hf_distill.run.beside import Beside, SharedTrainings
from hf_distill.run.chain import trainings
from hf_distill.run.completing import write_completions
from hf_distill.run.console import Narrator
from hf_distill.run.evaluation import report_on
from hf_distill.run.exporting.stage import with_exports
from hf_distill.run.harness import Harness
from hf_distill.run.launch import check_launch
from hf_distill.run.log_file import logging_output
from hf_distill.run.measured_before import measured_before, remember
from hf_distill.run.planned_chain import check_models
from hf_distill.run.preparation import open_run
from hf_distill.run.pseudo_labels import leave_out_unsure
from hf_distill.run.trackers import run_name, send_report

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.report.report import Report
    from hf_distill.run.fit import Fitted
    from hf_distill.run.run import Run


def distill(recipe: Recipe, *, restart: bool = False) -> Report:
    """Run a recipe: teacher, student, baseline, report, push.

    The same call again resumes an interrupted run, which ends with the same weights. A finished run is not trained
    again, and its report is measured again only if something that it depends on has changed.

    Args:
        recipe: From `load_recipe`, or built in Python.
        restart: Start over in a directory that holds another or a finished run.

    Returns:
        The report, also written to `training.output_dir`.

    Raises:
        UserError: There is a mistake in the recipe, its data or the launch.
    """
    return distill_among(recipe, restart=restart)


def distill_among(recipe: Recipe, *, restart: bool = False, shared: SharedTrainings | None = None) -> Report:
    """Run a recipe, as `distill` does, as one of several runs that train some models once for all.

    Args:
        recipe: The recipe.
        restart: As of `distill`.
        shared: Where these models are.
    """
    check_launch()
    # Hides the bars of loading and saving weights, which take no time here; those of training stay.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    every = trainings(recipe)
    if len(every) > 1:
        check_models(recipe, restart)
    beside = Beside()
    with logging_output(enabled=parallel.is_first_of_all()) as log:
        for training in every:
            if training.title and parallel.is_first_of_machine():
                Narrator(enabled=True).heading(training.title)
            run = open_run(training.recipe, restart, whole=training.stored)
            with run.directory.lock:
                log.into(run.directory.path)
                report = _distill(run, beside.of(training, run, shared), alone=len(every) == 1)
            beside = beside.after(training, run, report)
        log.add("done")
    return report


def _distill(run: Run, beside: Beside, *, alone: bool) -> Report:
    recipe = run.recipe
    with recipe.locate("evaluation"):
        harness = Harness(recipe.evaluation.lm_eval) if recipe.evaluation.lm_eval else None
    teacher = run.load_teacher()
    write_completions(run, teacher)
    run.store_targets(teacher)
    leave_out_unsure(run, teacher)
    students: list[Fitted] = []
    baselines: list[Fitted] = []
    for seed in run.seeds:
        students.append(run.train_student(teacher, seed))
        if recipe.report.baseline:
            baselines.append(run.train_student(teacher, seed, baseline=True))
    with run.stage("report"):
        trained = [*students, *baselines]
        before = measured_before(run, trained) if alone else None
        taught = teacher.at_end(students[0].trainer.source or teacher)
        report = before or report_on(run, taught, students, baselines, beside)
        if harness is not None:
            report = replace(report, benchmarks=benchmarks(run, harness, teacher, students[0], baselines))
        if recipe.export.formats:
            if run.is_main:  # an export that fails leaves the student and its report
                report.save(run.directory.path)
            report = with_exports(run, report)
        if run.is_main:
            report.save(run.directory.path)
        if run.is_main and before is None:
            remember(run, trained)
            send_report(report, run.args, students[0].model, run_name(run.training, "report"))
    if recipe.hub.push:
        with run.stage("push"):
            students[0].trainer.has_model_card = True
            students[0].trainer.push_to_hub(commit_message="Distilled with hf_distill")
    if run.is_main:
        show(report, page=run.directory.path / "report.html")
    parallel.wait()
    return report
