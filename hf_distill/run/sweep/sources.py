"""Tells whether the files that a recipe names are those of an earlier run: by size and time, without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.locations import resolve
from hf_distill.recipe.document import parse
from hf_distill.recipe.writer import dump_recipe

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe


def sources(recipe: Recipe) -> str:
    """Return a hash of names, sizes and times of the local data and models of a recipe.

    A file that is written again with the same content has another one. A setting is then run again, which finds its
    trainings finished and only evaluates; with other content it is refused by them.
    """
    content, _ = parse(dump_recipe(recipe))
    found = sorted({line for text in _texts({**content, "training": {}}) for line in _files(text)})
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _files(text: str) -> Iterator[str]:
    """Yield name, size and time of a file, or of the files in a directory; nothing if the text names neither."""
    try:
        place = Path(resolve(text)).expanduser()
        entries = list(os.scandir(place)) if place.is_dir() else [place] if place.is_file() else []
        for one in entries:
            if one.is_file():
                found = one.stat()
                yield f"{os.fspath(one)} {found.st_size} {found.st_mtime_ns}"
    except (OSError, UserError, ValueError):  # no path at all
        return
