"""Escape foreign text for markdown, so that it cannot add links, images, HTML or table cells."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup

from hf_distill.formatting import readable

# Not `_` within a word, which is not markup there: names of models and metrics stay readable.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^(?=[#+=-])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(value: Any) -> str:
    r"""Return a value escaped for markdown; `Markup`, which this package made, is not changed.

    >>> markdown("a|b <img src=x> *c* copy_layers")
    'a\\|b &lt;img src=x&gt; \\*c\\* copy_layers'
    """
    if isinstance(value, Markup):
        return str(value)
    text = _MARKUP.sub(r"\\\g<0>", readable(value))
    return re.sub("[&<>]", lambda found: _HTML[found[0]], text)


def inline_code(value: Any) -> Markup:
    """Return a value as inline code.

    >>> print(inline_code("kl"), inline_code("a`b"))
    `kl` ``a`b``
    """
    text = readable(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    # A pipe would end a table cell even in code.
    return Markup("".join((fence, pad, text.replace("|", "\\|"), pad, fence)))


def fenced(text: str, language: str) -> Markup:
    """Return a block of code with fences longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def literal(value: Any) -> Markup:
    """Return a text as a Python literal, for a block of code."""
    return Markup(json.dumps(readable(value), ensure_ascii=False))
