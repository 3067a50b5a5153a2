"""The command `hf-distill compare DIR DIR ...`: several finished runs as one table and one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.errors import UserError

if TYPE_CHECKING:
    from hf_distill.report.runs.comparison import RunComparison
    from hf_distill.report.runs.reading import ComparedRun

PAGE = "compare.html"


def main(words: Sequence[str]) -> int:
    """Print several finished runs side by side, write a page if asked for, and return the exit status: 0.

    Args:
        words: Arguments behind `hf-distill compare`.

    Raises:
        UserError: A directory has no report, or the page cannot be written.
        SystemExit: From argparse, for `--help` and wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog="hf-distill compare",
        description="Compare finished runs: what their recipes change, and what that did to quality, size and speed.",
        allow_abbrev=False,
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", help="output directory of a finished run")
    parser.add_argument("--into", metavar="PAGE.html", help="also write a page that opens offline")
    arguments = parser.parse_args(words)
    from hf_distill.report.runs.comparison import RunComparison
    from hf_distill.report.runs.reading import read_runs
    from hf_distill.report.runs.terminal import show

    compared = RunComparison(tuple(_with_defaults(read_runs(arguments.directories))))
    page = _page(compared, arguments.into) if arguments.into else None
    if parallel.is_first_of_all():
        show(compared, page=page)
    return 0


def _with_defaults(runs: Sequence[ComparedRun]) -> Sequence[ComparedRun]:
    """Return runs with the default values of their recipes, if a recipe leaves out a key that another one has."""
    from hf_distill.report.runs.recipes import leave_out

    if not leave_out([run.recipe for run in runs]):
        return runs  # reading a recipe takes seconds, as it imports PyTorch
    from hf_distill.run.whole_recipe import whole_recipe

    return [replace(run, whole=whole_recipe(run.report.recipe)) for run in runs]


def _page(compared: RunComparison, into: str) -> Path:
    from hf_distill.files.atomic import write_atomic
    from hf_distill.report.runs.page import html

    place = Path(into).expanduser()
    if place.is_dir():
        place /= PAGE
    if place.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--into: wanted the path of an HTML page or a directory, found {into}.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, html(compared))
    except OSError as error:
        raise UserError(f"--into: cannot write {place}: {error.strerror or error}.") from error
    return place
