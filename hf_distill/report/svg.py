"""Draw SVG for the page, in the colours of its style sheet, so that dark mode and print work."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hf_distill.formatting import readable

# One colour and one shape for each model, and for each of several runs, in every plot: key -> on a light and on a dark
# page. The first three can be told apart with every kind of colour blindness (blue and vermilion of Okabe and Ito's
# palette, and grey); the shapes help with the others and in grey print.
PALETTE = {
    "teacher": ("#0072b2", "#56b4e9"),
    "student": ("#d55e00", "#ff8a4c"),
    "baseline": ("#7d8590", "#a3abb5"),
    "run1": ("#0071b3", "#58b5ea"),
    "run2": ("#d45d00", "#ff8b4d"),
    "run3": ("#00806a", "#35c7a4"),
    "run4": ("#a2559c", "#dd97d6"),
    "run5": ("#857000", "#e0c341"),
    "run6": ("#7b858f", "#a4acb6"),
}
COLOURS = {key: light for key, (light, _) in PALETTE.items()}
MARKERS = dict(zip(PALETTE, ("s", "o", "^", "s", "o", "^", "D", "v", "P"), strict=True))
RUNS = tuple(key for key in PALETTE if key.startswith("run"))
INK, LINE = "#1f2328", "#d1d9e0"
# Each stands for a variable of the page's style sheet.
VARIABLES = {**{colour: f"var(--{model})" for model, colour in COLOURS.items()}, INK: "var(--ink)", LINE: "var(--line)"}

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # a label named "$" is not a formula
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}
WIDTH = 4.2  # inches; narrow, so that the text can be read on a phone


def to_svg(title: str, draw: Callable[[Figure, Any], None], data: Any, says: str) -> str:
    """Return the `<svg>` element of a drawing, the same for the same data.

    Args:
        title: Title of the drawing, unique on the page.
        draw: Draws `data` on a figure.
        data: The data.
        says: What it shows, for somebody who does not see it.
    """
    from markupsafe import escape

    # A fixed salt makes the ids of clip paths reproducible; by default they are random.
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": title})
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own fonts
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, data)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids must be unique on the page, so each plot adds its own prefix.
    prefix = re.sub(r"\W+", "-", title)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], text)
    # The page's style sheet sets the width; a fixed height would leave a gap on a phone.
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    label = escape(readable(f"{title}. {says}", limit=600))
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} {view[0]} role="img" aria-label="{label}">{text.partition(">")[2]}'
