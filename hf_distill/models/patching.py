"""Changing a live model for a moment: an attribute of one instance, put back whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(model: Any, name: str, value: Any) -> Iterator[Callable[[], None]]:
    """Give an object an attribute of its own, such as another `forward`, and put back afterwards what was there.

    Yields:
        What puts it back at once.
    """
    missing = object()
    before = vars(model).get(name, missing)  # a `forward` may be there: accelerate's, under autocast

    def put_back() -> None:
        if before is missing:
            vars(model).pop(name, None)
        else:
            vars(model)[name] = before

    vars(model)[name] = value
    try:
        yield put_back
    finally:
        put_back()
