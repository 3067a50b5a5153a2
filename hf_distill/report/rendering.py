"""Fill in a template of a page: one HTML file that needs no network; foreign text in it is shown, and does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_distill.formatting import readable_lines
from hf_distill.report.svg import PALETTE

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return a page. Everything is escaped except `Markup`, which only the plots made here are.

    Args:
        template: Name of a file in `templates/`.
        **values: What the template shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(palette=PALETTE, **values)


def _shown(value: Any) -> Any:
    """Return a value for the page; foreign text without control characters and secrets."""
    from markupsafe import Markup

    return readable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value
