"""A metric that is a Python function of one's own, `module:function`, on generated texts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.errors import UserError, first_line
from hf_distill.outside import may_run

FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")

Texts = tuple[str, ...]
# A prediction without a reference has None.
References = tuple[str | None, ...]


def is_function(name: str) -> bool:
    """Return whether a metric is named as `module:function`.

    >>> is_function("my_metrics:has_rhyme"), is_function("rouge2"), is_function("evaluate/C:/a.py")
    (True, False, False)
    """
    return FUNCTION.fullmatch(name) is not None


def check_function(name: str) -> None:
    """Import a function, so that a mistake in its name shows before training.

    Raises:
        UserError: It cannot be imported, or takes other arguments.
    """
    if may_run():  # else its source was looked at when the recipe was read
        _load(name)


def values_of(
    name: str, predictions: Sequence[str], references: Sequence[str | None], prompts: Sequence[str]
) -> NDArray[np.float64]:
    """Return what a function says of generated texts: one number, `()`, or one for each text, `(texts,)`.

    A function is called once for the same texts, as it may be slow, or ask a model that never says the same twice.

    Args:
        name: `module:function`.
        predictions: Generated texts.
        references: The true text of each; None for texts that have none.
        prompts: What each text continues.

    Raises:
        UserError: The function fails, or does not return a number or as many numbers as there are texts.
    """
    return _values(name, tuple(predictions), tuple(references), tuple(prompts))


@lru_cache(maxsize=32)
def _values(name: str, predictions: Texts, references: References, prompts: Texts) -> NDArray[np.float64]:
    function, takes_prompts = _load(name)
    given: list[Any] = [list(predictions), list(references), *([list(prompts)] if takes_prompts else [])]
    try:
        found = np.asarray(function(*given), dtype=np.float64)
    # Code of the recipe's author, which may raise anything.
    except Exception as error:
        raise UserError(f"'{name}' failed: {type(error).__name__}: {first_line(error)}", key="metrics") from error
    if found.shape not in ((), (len(predictions),)):
        raise UserError(
            f"'{name}' returned an array of shape {found.shape} for {len(predictions)} texts. Wanted: one number, or "
            "a list with one for each text.",
            key="metrics",
        )
    found.flags.writeable = False
    return found


@lru_cache(maxsize=32)
def _load(name: str) -> tuple[Callable[..., Any], bool]:
    """Return a function, and whether it takes prompts as well."""
    module, _, attribute = name.partition(":")
    try:
        function: Any = getattr(import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"cannot import '{module}' ({type(error).__name__}: {first_line(error)}). The module must be installed, on "
            "PYTHONPATH or beside the recipe.",
            key="metrics",
        ) from error
    if not callable(function):
        raise UserError(f"'{name}' is not a function: wanted one in the module {module}.", key="metrics")
    wanted = f"'{name}' must take (predictions, references) or (predictions, references, prompts): lists of texts."
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        return function, False
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return function, count == 3
    raise UserError(wanted, key="metrics")
