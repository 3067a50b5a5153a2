"""Links of a page to files of the repository: checked, and turned into links to the repository.

Pages are read on GitHub as well, so they link to `../recipes/bert.yaml` as it lies beside them. On the site such a link
goes to the repository's address, `[project.urls]` in pyproject.toml. Without one, the site carries a copy of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]

ROOT = Path(__file__).parents[2]
logger = logging.getLogger(__name__)


def address() -> str:
    """Return where the repository can be read, without a slash at the end; empty if pyproject.toml does not say."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        urls: dict[str, str] = tomllib.load(file)["project"].get("urls", {})
    return next((url.rstrip("/") for name, url in urls.items() if name.lower() in ("repository", "source")), "")


class RepositoryLinks(SphinxPostTransform):
    """Give each link to a file or folder that is not a page its address in the repository."""

    default_priority = 5  # before MyST resolves links and before files are collected for download

    def run(self, **kwargs: Any) -> None:
        """Replace the links of one page."""
        found = [*self.document.findall(addnodes.download_reference), *self.document.findall(addnodes.pending_xref)]
        for node in found:
            if node.get("reftype") == "myst":
                self._link(node)

    def _link(self, node: nodes.Element) -> None:
        path, _, anchor = node["reftarget"].partition("#")
        if node["refdomain"] == "doc":  # Markdown: MyST has cut off its ending
            path, anchor = f"{path}.md", node["reftargetid"] or ""
        place = Path(os.path.normpath(Path(self.env.doc2path(node["refdoc"])).parent / path))
        if not place.exists() or Path(self.env.srcdir) in (place, *place.parents):
            return  # a page, or a file beside it; or nothing, of which MyST warns
        if ROOT not in place.parents:
            logger.warning("link out of the repository: %s", node["reftarget"], location=node, type="repository")
        elif anchor and anchor not in anchors(place):
            logger.warning("no heading #%s in %s", anchor, place.name, location=node, type="repository")
        node.replace_self(self._target(node, place.relative_to(ROOT).as_posix(), place.is_dir(), anchor))

    def _target(self, node: nodes.Element, inside: str, is_folder: bool, anchor: str) -> nodes.Element:
        if self.config.repository_address:
            kind = "tree" if is_folder else "blob"
            url = f"{self.config.repository_address}/{kind}/{self.config.repository_branch}/{inside}"
            return nodes.reference("", "", *node.children, internal=False, refuri=f"{url}#{anchor}".rstrip("#"))
        if is_folder:
            return nodes.inline("", "", *node.children)
        return addnodes.download_reference("", "", *node.children, reftarget=f"/../{inside}", refdoc=node["refdoc"])


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown file."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {slug + (f"-{number}" if number else "") for slug, number in _numbered(slugs)}


def _numbered(slugs: list[str]) -> Iterator[tuple[str, int]]:
    for place, slug in enumerate(slugs):
        yield slug, slugs[:place].count(slug)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the transform and its settings."""
    app.add_config_value("repository_address", address(), "env")
    app.add_config_value("repository_branch", "main", "env")
    app.add_post_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
