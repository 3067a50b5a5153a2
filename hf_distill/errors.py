"""The exceptions for a user's mistakes: one line per mistake, no traceback, exit status 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from hf_distill.formatting import readable


class UserError(ValueError):
    """One or more mistakes in a recipe, its data or the way a run was started.

    Each mistake is one line: what was wanted, what was found, what to do. The command line prints the
    lines to stderr and exits with status 2; a Python caller sees a `ValueError`.

    Args:
        *mistakes: The lines; `formatting.readable` is applied to each.
        key: Dotted path of the recipe key at fault, relative to the section that raises (`"model"` in a teacher,
            `"columns.text"` in `data`). `Recipe.locate` later turns it into `file:line: path`.

    Attributes:
        mistakes: The lines.
        key: Path of the key at fault; of the first line if there are several.
        keys: Path of the key of each line.
    """

    def __init__(self, *mistakes: str, key: str = "") -> None:
        # The lines quote names, values and messages of libraries, which may hold control characters or secrets.
        self.mistakes = tuple(map(readable, mistakes))
        super().__init__("\n".join(self.mistakes))
        self.key = key
        self.keys = (key,) * len(mistakes)

    @classmethod
    def together(cls, errors: Sequence[UserError]) -> UserError:
        """Return one error with the lines of several, each with its own key."""
        whole = cls(*(line for error in errors for line in error.mistakes), key=errors[0].key)
        whole.keys = tuple(key for error in errors for key in error.keys)
        return whole


class FieldError(UserError):
    """Wrong fields of a recipe entry that was made in Python.

    Args:
        owner: Name of the entry, or of its class.
        wrong: Pairs of field path below the entry (`"temperature.start"`) and message.

    Attributes:
        wrong: Pairs of field path below the entry and message.
    """

    def __init__(self, owner: str, wrong: Sequence[tuple[str, str]]) -> None:
        super().__init__(*(f"{owner}.{where}: {what}" if where else f"{owner}: {what}" for where, what in wrong))
        self.wrong = tuple(wrong)


class Stopped(KeyboardInterrupt):
    """A signal told the run to end. Unlike `KeyboardInterrupt`, from which it derives, it says which signal.

    Args:
        signal: Number of the signal.

    Attributes:
        signal: Number of the signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"`, or the list of choices if none is similar.

    >>> did_you_mean("temprature", ["temperature", "weight"])
    " Did you mean 'temperature'?"
    >>> did_you_mean("zzz", ["kl", "labels"])
    ' Known: kl, labels.'
    """
    known = list(choices)
    close = get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}."


class NotFinite(UserError, FloatingPointError):
    """The run has stopped because a loss, gradient, target, logit or weight is NaN or infinite."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def under(path: str) -> Iterator[None]:
    """Context manager: put `path` before the keys of errors, for an entry inside another entry."""
    try:
        yield
    except NotFinite:  # of a step, not of a key
        raise
    except UserError as error:
        raise UserError(*error.mistakes, key=".".join(part for part in (path, error.key) if part)) from error
