"""What a page has from the code: `<!-- generated: NAME -->` in a page is replaced by text when the site is built.

The text is Markdown, made by the function of that name in `GENERATORS`. On GitHub a reader sees the line in italics
that stands below the mark, and says where the text is; the site leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import command_line
import objective_pages
import python_api
import report_fields
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

MARK = re.compile(r"^<!-- generated: (\S+) -->$(?:\n\n\*[^\n]+\*$)?", re.MULTILINE)
GENERATORS: dict[str, Callable[[], str]] = {
    "command-line": command_line.markdown,
    "objectives": objective_pages.objectives,
    "presets": objective_pages.presets,
    "report.json": report_fields.markdown,
    **{f"python.{page}": python_api.page(page) for page in python_api.PAGES},
}


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    def made(found: re.Match[str]) -> str:
        if found[1] not in GENERATORS:
            raise ExtensionError(f"{docname}: nothing generates {found[1]}; known: {', '.join(GENERATORS)}")
        app.env.note_reread()  # the code may have changed
        return GENERATORS[found[1]]()

    source[0] = MARK.sub(made, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Fill the pages, and check that each public name has its place in one."""
    app.connect("source-read", _fill)
    python_api.connect(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
