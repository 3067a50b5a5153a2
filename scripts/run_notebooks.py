"""Execute the notebooks of `examples/` on real data, and write their outputs into them.

    python scripts/run_notebooks.py [examples/python_api.ipynb ...]

Each runs in a kernel of its own, in its own directory, as Jupyter would run it. Progress bars and log lines (standard
error) are not written. A notebook is written only if all of its cells ran, and if its outputs name no path of this
machine.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic
from hf_distill.locations import require

ROOT = Path(__file__).parents[1]
# Of one cell.
SECONDS = 3600
# The root of a file system, a home, or a drive: right on one machine only.
OWN_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|mnt|tmp|work|usr|opt|var)/|[A-Z]:\\")


def execute(path: Path) -> None:
    """Run a notebook and write its outputs into it.

    Raises:
        UserError: A cell failed (the line says how, or what has to be run first), an output has a path of this machine,
            or a package is missing.
    """
    for package in ("nbformat", "nbclient", "ipykernel"):
        require(package, "a notebook that is run")
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(path.parent)}}
    try:
        client = NotebookClient(notebook, timeout=SECONDS, resources=where, record_timing=False, coalesce_streams=True)
        client.execute()
    except CellExecutionError as error:
        failed = "" if error.ename == UserError.__name__ else f"a cell failed with {error.ename}: "
        raise UserError(f"{path.name}: {failed}{error.evalue}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                for kept in (output, output.get("data", {})):
                    for kind, text in kept.items():
                        if isinstance(text, str):
                            kept[kind] = text.replace(f"{path.parent.resolve()}/", "")  # a path is below the notebook's
                if "text/markdown" in output.get("data", {}):
                    output.data.pop("text/plain", None)  # the same again, as long as `repr` makes it
            for text in texts(cell.outputs):
                if found := OWN_PATH.search(text):
                    raise UserError(
                        f"{path.name}: an output has a path of this machine, '{text[found.start() :][:80]}'."
                    )
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # not the version of whoever ran it last
    write_atomic(path, nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]


def texts(outputs: Sequence[Any]) -> Iterator[str]:
    """Yield the texts of a cell's outputs, in every form that is stored; not pictures."""
    for output in outputs:
        yield from filter(None, [output.get("text")])
        yield from (text for kind, text in output.get("data", {}).items() if not kind.startswith("image/"))


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; return the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description="Execute notebooks and write their outputs into them.")
    parser.add_argument("notebooks", type=Path, nargs="*", help="which ones (all of examples/)")
    given = parser.parse_args(arguments)
    try:
        for path in given.notebooks or sorted((ROOT / "examples").glob("*.ipynb")):
            started = time.monotonic()
            execute(path)
            print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
