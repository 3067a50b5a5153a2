"""Apply overrides, `section.key=value` on the command line, to a recipe before it is checked."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

from hf_distill.formatting import counted, is_secret, readable
from hf_distill.mistakes import describe, join
from hf_distill.recipe.document import MAX_DEPTH, Document, Fault, parse

logger = logging.getLogger(__name__)

KEY = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[\d+\])*")
# A longer override is cut in the middle when shown.
SHOWN = 200
# Entries that can be just a name: `teacher.dtype=...` must not overwrite the name.
SHORT_FORM = re.compile(r"task|teacher|student|chain\[\d+\]|((stages|chain)\[\d+\]\.)?objectives\[\d+\]")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each `section.key=value` in a document: values in YAML, list entries by number (`objectives.0.weight`).

    New keys are allowed, and so is a new entry at the end of a list. An override that is malformed, or that does not
    fit the recipe, changes nothing and is added to `document.refused`.
    """
    for override in overrides:
        before = deepcopy((document.data, document.lines, document.overrides))
        try:
            _apply(document, override)
        except Fault as fault:
            document.data, document.lines, document.overrides = before
            document.refused += [(_shown(override), what) for _, what in fault.faults]
        document.given.append(_shown(override))


def _shown(override: str) -> str:
    """Return an override for messages, without secrets: errors end up in logs."""
    key, equals, _ = override.partition("=")
    last = re.split(r"[.\]]", key)[-1]
    return readable(f"{key}{equals}..." if is_secret(last) else override, limit=SHOWN)


def _apply(document: Document, override: str) -> None:
    """Set one `key=value`.

    Raises:
        Fault: It is malformed, or does not fit the recipe.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not KEY.fullmatch(key):
        raise Fault((1, "wanted section.key=value, for example training.learning_rate=1e-4."))
    value = parse(text)[0] if text.strip() else None
    if key.count(".") + key.count("[") >= MAX_DEPTH:
        raise Fault((1, f"has more than {MAX_DEPTH} keys in its path; a recipe is not that deep."))
    tokens = [int(token) if token.isdecimal() else token for token in re.findall(r"[^.\[\]]+", key)]
    here: Any = document.data
    path = ""
    for token, following in pairwise(tokens):
        _check_step(here, token, path)
        path = join(path, token)
        inner = _entry(here, token)
        if inner is None:
            inner = [] if isinstance(following, int) else {}
            document.overrides[path] = _shown(override)
        elif isinstance(inner, str) and SHORT_FORM.fullmatch(path):
            inner = {"name": inner}
        _store(here, token, inner)
        here = inner
    _check_step(here, tokens[-1], path)
    _store(here, tokens[-1], value)
    path = join(path, tokens[-1])
    for earlier in dict.fromkeys(document.overrides[key] for key in _below(document.overrides, path)):
        logger.info("override '%s' replaces what '%s' has set", _shown(override), earlier)
    _forget(document, path)
    document.overrides[path] = _shown(override)


def _entry(here: Any, token: Any) -> Any:
    """Return an entry; None if it does not exist yet."""
    if isinstance(here, dict):
        return here.get(token)
    return here[token] if token < len(here) else None


def _check_step(here: Any, token: str | int, path: str) -> None:
    """Check that the value `here`, at `path`, can have an entry `token`.

    Raises:
        Fault: It cannot.
    """
    if isinstance(here, dict):
        if isinstance(token, int):
            raise Fault((1, f"{path or 'the recipe'} is a mapping, so it has no entry number {token}."))
    elif isinstance(here, list):
        if not isinstance(token, int):
            raise Fault((1, f"{path} is a list. Name an entry by its number: {path}.0 is the first."))
        if token > len(here):
            size = f"{counted(len(here), 'entry', 'entries')}, counted from 0"
            raise Fault((1, f"{path} has {size}. {path}.{len(here)} would add one."))
    else:
        raise Fault((1, f"{path} is {describe(here)}, which has no keys. Give it whole: {path}={{{token}: ...}}."))


def _store(here: Any, token: str | int, value: Any) -> None:
    if isinstance(here, list) and token == len(here):
        here.append(value)
    else:
        here[token] = value


def _forget(document: Document, path: str) -> None:
    """Remove the recorded lines of a value that has been replaced."""
    for places in (document.lines, document.overrides):
        for key in _below(places, path):
            del places[key]


def _below(places: Iterable[str], path: str) -> list[str]:
    """Return a path and those below it, of some."""
    return [key for key in places if key == path or key.startswith((f"{path}.", f"{path}["))]
