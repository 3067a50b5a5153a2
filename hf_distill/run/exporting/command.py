"""The command `hf-distill export DIR`: writes the finished student of a run in other formats."""

from __future__ import annotations

import argparse
import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable
from hf_distill.files.durable import sha256
from hf_distill.files.ownership import RECIPE, Ownership
from hf_distill.formatting import readable
from hf_distill.report.exports import PYTORCH
from hf_distill.report.files import REPORT
from hf_distill.run.console import Narrator
from hf_distill.run.requirements import output_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.report.exports import Exported, WritingFigures
    from hf_distill.report.report import Report

logger = logging.getLogger(__name__)

NAME = "export"
# Beginnings of the keys that may have another value than in the run.
CHANGES = ("export.", "report.", "data.path")


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    made = argparse.ArgumentParser(
        prog=f"hf-distill {NAME}",
        description="Write the student of a finished run in formats that run without PyTorch; compare each with it.",
        allow_abbrev=False,
    )
    made.add_argument("directory", metavar="DIR", help="output_dir of a finished run")
    made.add_argument(
        "overrides", metavar="export.key=value", nargs="*", default=[], help="replaces a value of the run's recipe"
    )
    made.add_argument(
        "--format", action="append", default=[], metavar="NAME", dest="formats", help="such as onnx; may be repeated"
    )
    made.add_argument("--into", metavar="DIR", help="where each format gets its folder; default: beside the student")
    return made


def main(words: Sequence[str]) -> int:
    """Export the student of a finished run, print how the formats compare, and return the exit status: 0.

    Args:
        words: Arguments behind `hf-distill export`.

    Raises:
        UserError: The directory is not that of a finished run, or a format cannot be written.
        SystemExit: From argparse, for `--help` and wrong arguments.
    """
    arguments = parser().parse_intermixed_args(words)
    recipe = read(arguments)
    from hf_distill.report.terminal import show_exports
    from hf_distill.run.launch import end_with_launcher

    end_with_launcher()
    gc.enable()
    report = export(recipe, arguments.into)
    if parallel.is_first():
        show_exports(report)
    return 0


def read(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe of a finished run, with the formats that the command line names.

    Raises:
        UserError: The directory is not that of a finished run, or no format is named.
    """
    from hf_distill.recipe.paths import check_paths
    from hf_distill.recipe.reader import load_recipe

    directory = Path(arguments.directory)
    if not (directory / RECIPE).is_file():
        raise UserError(
            f"{directory} has no {RECIPE}. Wanted the output_dir of a finished run: its recipe says what the student "
            "does, and on which data an export is compared with it."
        )
    named = [f"export.formats=[{', '.join(arguments.formats)}]"] if arguments.formats else []
    recipe = load_recipe(directory / RECIPE, [*arguments.overrides, *named, f"training.output_dir={directory}"])
    if not recipe.export.formats:
        raise UserError("no format is named. Write, for example, --format onnx --format onnx-int8.")
    if other := [word for word in arguments.overrides if not word.startswith(CHANGES)]:
        raise UserError(
            f"'{readable(other[0])}' would compare another student, or on other data, than the run. Only export.* and "
            "report.* can be changed here, and data.path* if the same files lie somewhere else now."
        )
    check_paths(recipe)
    if Ownership(directory).recipe_sum not in (None, sha256(directory / RECIPE)):
        logger.warning(
            "%s was changed since its run wrote it: texts are cut, and the export is compared, as it says now. The "
            "report may have been measured otherwise",
            directory / RECIPE,
        )
    return recipe


def export(recipe: Recipe, into: str | None) -> Report:
    """Write the student of a finished run in the formats of its recipe, and add their figures to its report.

    Args:
        recipe: Its recipe.
        into: Where the folders of the formats are made; the report of the run then stays as it is. None for beside the
            student.

    Returns:
        The report with the figures.

    Raises:
        UserError: The run is not finished, or a format cannot be written.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.report.report import Report
    from hf_distill.run.exporting.stage import with_exports
    from hf_distill.run.measured_before import save_with_more
    from hf_distill.run.preparation import open_run

    disable_progress_bar()  # type: ignore[no-untyped-call]
    directory = output_directory(recipe)
    if not (directory / REPORT).is_file():
        raise UserError(
            f"{directory} has no {REPORT}: its run is not finished. Run its recipe again to finish it, then export."
        )
    run = replace(open_run(recipe, restart=False, claims=False), narrator=Narrator(enabled=parallel.is_first()))
    before = Report.load(directory)
    if before.rows_fingerprint not in ("", run.eval_rows):
        raise UserError(
            f"the eval rows are not those of the run in {directory}: its report has figures of other rows, and an "
            "export cannot be compared with them. Bring the data back, or run the recipe again.",
            key="data",
        )
    place = directory if into is None else Path(into).expanduser()
    parallel.asked_once(lambda: check_writable(place))
    with run.directory.lock as lock:
        parallel.asked_once(lock.take_or_refuse)
        report = with_exports(run, before, place)
        if into is None and run.is_main:
            report = replace(report, exports=merged(before.exports, report.exports))
            save_with_more(report, directory)
    parallel.wait()
    return report


def merged(before: Sequence[Exported], after: Sequence[Exported]) -> tuple[Exported, ...]:
    """Return exports that were there, with those of the same format replaced, and new ones at the end.

    All speeds are of one measurement, in which the formats take turns: of two, at different loads or with other numbers
    of threads, one format would look faster than another by chance. Those of an earlier one stay if none is measured.
    """
    new = {one.format: one for one in after}
    if any(one.latency is not None for one in after):
        before = [replace(one, latency=None, edge=None, writing=_at(one.writing, None)) for one in before]
    elif (torch := next((one for one in before if one.format == PYTORCH), None)) is not None:
        speed = None if torch.writing is None else torch.writing.tokens_per_second
        new[PYTORCH] = replace(new[PYTORCH], latency=torch.latency, writing=_at(new[PYTORCH].writing, speed))
    kept = [new.pop(one.format, one) for one in before]
    return (*kept, *new.values())


def _at(writing: WritingFigures | None, speed: float | None) -> WritingFigures | None:
    """Return figures of writing with another speed."""
    return None if writing is None else replace(writing, tokens_per_second=speed)
