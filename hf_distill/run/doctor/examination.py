"""`examine(recipe)`: every check of the table on a recipe, and what the run itself warns of."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.errors import UserError, first_line
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.opened import Opened
from hf_distill.run.doctor.table import CHECKS, Check
from hf_distill.run.dry_run import check as check_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_distill.recipe.recipe import Recipe

logger = logging.getLogger(__name__)

# Modules whose warnings a check repeats with more detail.
SAID_BY_CHECKS = ("hf_distill.data.shared_rows",)


def examine(recipe: Recipe, tell: Callable[[str], None] | None = None) -> list[Finding]:
    """Check a recipe as `--check` does, then load what a run would load, and look at it.

    Nothing is written into the output directory. All processes of a launch call this together.

    Args:
        recipe: The recipe.
        tell: Called with the name of each check as it begins.

    Returns:
        The findings, in the order of the table; then what the run itself warns of while it loads.

    Raises:
        UserError: `--check` finds mistakes; nothing was loaded.
    """
    from datasets.utils import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    with _listening() as warnings, tempfile.TemporaryDirectory(prefix="hf-distill-doctor-") as scratch:
        check_recipe(recipe)
        opened = Opened(recipe, Path(scratch))
        found: list[Finding] = []
        for name, check in CHECKS.items():
            if tell is not None:
                tell(name)
            found += findings(name, check, opened)
    said = {one.found for one in found}
    return [*found, *(Finding("run", "warning", text) for text in dict.fromkeys(warnings) if text not in said)]


def findings(name: str, check: Check, opened: Opened) -> list[Finding]:
    """Return what a check finds; what it raises is a finding, too.

    Args:
        name: Its name in the table.
        check: The check.
        opened: What the run would load.
    """
    found: list[Finding] = []
    try:
        found.extend(check(opened))  # findings before an error stay
    except CannotCheck as error:
        found.append(Finding(name, "skipped", str(error)))
    except UserError as error:
        found += [Finding(name, "mistake", line) for line in error.mistakes]
    except Exception as error:  # one check that fails must not hide what the others find
        logger.debug("the check %s failed", name, exc_info=True)
        text = f"stopped by {type(error).__name__}: {first_line(error)}"
        found.append(Finding(name, "mistake", text, "The run may stop in the same way."))
    return found


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Context manager: collect what this package warns of, instead of printing it."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name not in SAID_BY_CHECKS:
                heard.append(record.getMessage())

    package, listener = logging.getLogger("hf_distill"), Listener(logging.WARNING)
    before = package.propagate
    package.addHandler(listener)
    package.propagate = False
    try:
        yield heard
    finally:
        package.removeHandler(listener)
        package.propagate = before
