"""Runs the cells of a notebook in the process of a test: a kernel would import everything anew."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def run_notebook(path: Path, scratch: Path, **parameters: Any) -> dict[str, Any]:
    """Execute the code cells of a notebook in `scratch`, and return its names.

    Args:
        path: The notebook.
        scratch: Current directory meanwhile.
        parameters: What to set after the cell that is tagged `parameters`, which must set the same names.
    """
    import nbformat

    with _settings_kept():
        return _executed(nbformat.read(path, as_version=4), path.name, scratch, parameters)  # type: ignore[no-untyped-call]


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Context manager: give back what a kernel would take with it: handlers of messages, levels, progress bars."""
    from transformers.utils import logging as theirs

    loggers = [logging.root, *(logging.getLogger(name) for name in ("hf_distill", "hf_distill.teachers"))]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    try:
        yield
    finally:
        for logger, handlers, its_level in before:
            logger.handlers[:] = handlers
            logger.setLevel(its_level)
        theirs.set_verbosity(level)
        (theirs.enable_progress_bar if bars else theirs.disable_progress_bar)()


def _executed(notebook: Any, title: str, scratch: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    before, places, modules = Path.cwd(), sys.path[:], set(sys.modules)
    os.chdir(scratch)
    try:
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            head, _, rest = cell.source.partition("\n")
            if head.startswith("%%writefile "):  # the only magic they use
                Path(head.removeprefix("%%writefile ").format_map(names)).write_text(rest + "\n", encoding="utf-8")
                continue
            exec(compile(cell.source, f"{title}, cell {number}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", ()):
                assert parameters.keys() <= names.keys(), f"{title} has no {sorted(parameters.keys() - names.keys())}"
                names |= parameters
    finally:
        os.chdir(before)
        sys.path[:] = places
        for name in sys.modules.keys() - modules:
            if str(scratch) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    return names
