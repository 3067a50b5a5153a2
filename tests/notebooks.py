"""Runs the cells of a notebook in the process of a test: a kernel would import everything anew."""

from __future__ import annotations

import os
import sys
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

    names: dict[str, Any] = {"__name__": "__main__"}
    before, places, modules = Path.cwd(), sys.path[:], set(sys.modules)
    os.chdir(scratch)
    try:
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):  # type: ignore[no-untyped-call]
            if cell.cell_type != "code":
                continue
            head, _, rest = cell.source.partition("\n")
            if head.startswith("%%writefile "):  # the only magic they use
                Path(head.removeprefix("%%writefile ").format_map(names)).write_text(rest + "\n", encoding="utf-8")
                continue
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", ()):
                assert parameters.keys() <= names.keys(), (
                    f"{path.name} has no {sorted(parameters.keys() - names.keys())}"
                )
                names |= parameters
    finally:
        os.chdir(before)
        sys.path[:] = places
        for name in sys.modules.keys() - modules:
            if str(scratch) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    return names
