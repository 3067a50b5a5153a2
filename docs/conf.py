"""The site of the documents: `make docs` writes it into build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).with_name("_ext"))]

from hf_distill._version import __version__  # noqa: E402

project = "hf_distill"
author = "The hf_distill authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated",
    "repository_links",
]
exclude_patterns = ["_ext", "_static", "_templates"]
templates_path = ["_templates"]

# Pages are read on GitHub as well: headings get GitHub's anchors, and nothing is used that only MyST understands.
myst_heading_anchors = 6
myst_enable_extensions = ["colon_fence"]

# Docstrings are written as they read best in an editor: `name` is code there.
default_role = "code"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # types stand in the signature; of a recipe's keys, their values in words
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"hf_distill {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["versions.js"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "footer_icons": []}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
