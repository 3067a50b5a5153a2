"""One setting of a sweep: the values of the keys that vary, the directory of its run, and its recipe."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.recipe.recipe import Hub
from hf_distill.report.sweep.results import short_keys
from hf_distill.report.sweep.text import in_words
from hf_distill.run.sweep.axes import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.sweep.axes import Words

# More are a mistake, such as a range written out, and would be checked for an hour.
MOST = 1000
# Characters of a value, and of all values, in the name of a directory.
OF_VALUE, OF_NAME = 24, 80


@dataclass(frozen=True)
class Setting:
    """The values that the keys of a sweep have in one of its runs.

    Attributes:
        values: Key -> value.
    """

    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its directory: its values, shortened, and a hash of them."""
        texts = {key: text_of(value) for key, value in self.values.items()}
        names = short_keys(texts)
        parts = (f"{names[key]}-{_plain(text)}" for key, text in texts.items())
        digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8]
        return f"{'_'.join(parts)[:OF_NAME].rstrip('-_.')}-{digest}"

    def in_words(self) -> str:
        """Return the values: `temperature 2, learning_rate 0.0001`."""
        return in_words(self.values)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.")[:OF_VALUE] or "x"


def grid(words: Words) -> list[Setting]:
    """Return every combination of the listed values, the last key varying fastest.

    Raises:
        UserError: There are too many.
    """
    number = prod(len(axis.values) for axis in words.axes)
    if number > MOST:
        raise UserError(f"these values make {number:,} settings. Draw some of them at random: --trials 50")
    return list(map(Setting, _combinations(words)))


def ends(words: Words) -> list[Setting]:
    """Return what is checked of a random search: each value or end of a range, with the first ones of the others."""
    first = {axis.key: axis.ends[0] for axis in words.axes}
    every = [Setting({**first, axis.key: value}) for axis in words.axes for value in axis.ends]
    return list({one.name: one for one in every}.values())


def _combinations(words: Words) -> Iterator[dict[str, Any]]:
    for values in product(*(axis.values for axis in words.axes)):
        yield dict(zip(words.keys, values, strict=True))


@dataclass(frozen=True)
class PlannedSetting:
    """A setting with its recipe.

    Attributes:
        setting: The setting.
        recipe: The recipe of its run, with an output directory of its own; it is pushed nowhere.
    """

    setting: Setting
    recipe: Recipe

    @property
    def directory(self) -> Path:
        """Directory of its run."""
        return Path(self.recipe.training["output_dir"]).expanduser()


def planned(setting: Setting, recipe: Recipe, sweep: Path) -> PlannedSetting:
    """Return a setting with its recipe, in its directory below that of the sweep."""
    training: Mapping[str, Any] = {**recipe.training, "output_dir": str(sweep / setting.name)}
    return PlannedSetting(setting, replace(recipe, training=dict(training), hub=Hub()))
