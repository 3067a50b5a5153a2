"""The directory of a run: whose it is, whether it may be written, what a restart removes."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable, is_left_over, write_atomic
from hf_distill.files.lock import Lock
from hf_distill.files.ownership import RECIPE, RUNS, TEACHERS, Ownership
from hf_distill.mistakes import join
from hf_distill.recipe.writer import shown
from hf_distill.run.found import read_record
from hf_distill.training.checkpoints import last_complete_checkpoint

logger = logging.getLogger(__name__)

_LEFT_OUT = object()


@dataclass(frozen=True)
class RunDirectory:
    """`training.output_dir`.

    Attributes:
        path: Where.
        recipe: Resolved text of the recipe that is to run there; its `report` and `hub` sections may change
            between runs, as they change nothing that was computed.
    """

    path: Path
    recipe: str

    @cached_property
    def lock(self) -> Lock:
        """Keeps other runs out, once `claim` has taken it."""
        return Lock(self.path)

    @property
    def owned(self) -> Ownership:
        """Which of its files are ours."""
        return Ownership(self.path)

    def check(self, restart: bool, *, for_teacher: bool = False) -> None:
        """Refuse a directory that holds something else. Writes nothing.

        Args:
            restart: Whether a run of another recipe may be there.
            for_teacher: Likewise, as only a teacher is going to be trained there.

        Raises:
            UserError: Another recipe's run, one that is going on, or files that are no run at all.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; wanted a directory.", key="output_dir")
        if self.lock.holder is not None:
            self.lock.take_or_refuse()
        self.owned.check()
        held = None if restart or for_teacher else _held(self.path)
        if held is not None and (different := _differences(held, self.recipe)):
            raise UserError(
                f"{self.path} holds a run of another recipe: {_told(different)}. Choose another directory, go back to "
                "that recipe to resume, or start over with --restart.",
                key="output_dir",
            )

    def claim(self, restart: bool) -> None:
        """Lock the directory, remove what a restart is to redo, and write the recipe. For one process only.

        A fine-tuned teacher stays: it is found again by model, data and settings, or not used.

        Raises:
            UserError: The directory cannot be written, or another run was faster.
        """
        self._enter(restart)
        if restart:
            self._remove(self.owned.names() or set())
        self.owned.take(recipe=hashlib.sha256(self.recipe.encode()).hexdigest())
        write_atomic(self.path / RECIPE, self.recipe)

    def claim_teachers(self) -> None:
        """Have a teacher trained here, for whichever run is to come. For one process only.

        The recipe is written beside it for the precision, with which it is found again (`held_recipe`).

        Raises:
            UserError: The directory cannot be written, or a run is going on there.
        """
        self._enter(False, for_teacher=True)
        self.owned.take()
        (self.path / TEACHERS).mkdir(exist_ok=True)
        write_atomic(self.path / TEACHERS / RECIPE, self.recipe)

    def _enter(self, restart: bool, *, for_teacher: bool = False) -> None:
        try:
            check_writable(self.path)
        except UserError as error:
            raise UserError(*error.mistakes, key="output_dir") from error
        self.lock.take_or_refuse()
        self.check(restart, for_teacher=for_teacher)  # again: another run may have begun and ended meanwhile
        for stale in self.path.iterdir():
            if is_left_over(stale.name):
                stale.unlink(missing_ok=True)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            place = self.path / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)


def last_checkpoint(path: Path, teachers: Path | None = None) -> str | None:
    """Return the checkpoint from which an interrupted run will go on; None where its training has none yet.

    Args:
        path: Directory of the run.
        teachers: Where fine-tuned teachers are kept, if not there.
    """
    trainings = [path, *path.glob(f"{RUNS}/*"), *(teachers or path / TEACHERS).glob("*")]
    for folder in trainings:
        record = read_record(folder)
        if record is None or record["finished"]:
            continue
        if found := last_complete_checkpoint(folder, record["key"], sealed=record.get("sealed", False)):
            return found
    return None


def held_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe that a directory's run, or else its teacher, began with, as plain values; None without one."""
    text = _held(path)
    if text is None and (path / TEACHERS / RECIPE).is_file():
        text = (path / TEACHERS / RECIPE).read_text(encoding="utf-8", errors="replace")
    return None if text is None else _plain(text)


def _held(path: Path) -> str | None:
    """Return the text of the recipe of the run that is there; None without one.

    Nor is there one that was changed since it was written: it is written anew, and whether the trainings are those of
    the recipe that is to run, they know themselves.
    """
    try:
        content = (path / RECIPE).read_bytes()
    except OSError:
        return None
    wanted = Ownership(path).recipe_sum
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        logger.warning("%s was changed or damaged since it was written; it is written anew", path / RECIPE)
        return None
    return content.decode(errors="replace")


def _plain(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):  # not ours, then: it differs in everything
        return {}
    return content if isinstance(content, dict) else {}


def _differences(held: str, wanted: str) -> list[tuple[str, Any, Any]]:
    """Return key path and both values of all in which two resolved recipes differ.

    `report` and `hub` aside, which compute nothing, and the directory itself, which has more than one spelling.
    """
    one, other = (
        {key: value for key, value in _plain(text).items() if key not in ("report", "hub")} for text in (held, wanted)
    )
    for recipe in (one, other):
        if isinstance(training := recipe.get("training"), dict):
            recipe["training"] = {key: value for key, value in training.items() if key != "output_dir"}
    training = other.get("training", {})
    if training.get("bf16") == "auto":  # whatever the machine had where the run began
        other["training"] = {**training, "bf16": one.get("training", {}).get("bf16", "auto")}
    return list(_compare("", one, other))


def _compare(path: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs at or below a key path; entries of different names as a whole."""
    if isinstance(one, dict) and isinstance(other, dict) and one.get("name") == other.get("name"):
        for key in dict.fromkeys((*sorted(one), *sorted(other))):
            yield from _compare(join(path, key), one.get(key, _LEFT_OUT), other.get(key, _LEFT_OUT))
    elif isinstance(one, list) and isinstance(other, list):
        for index, (mine, theirs) in enumerate(zip_longest(one, other, fillvalue=_LEFT_OUT)):
            yield from _compare(join(path, index), mine, theirs)
    elif one != other:
        yield path, one, other


def _told(different: list[tuple[str, Any, Any]], limit: int = 3) -> str:
    """Return the first differences with both values: `training.seed is 1 there and 2 here, and 4 more`."""
    said = []
    for path, *values in different[:limit]:
        there, here = map(_value, values)
        if there == here:  # numbers that differ in their seventh digit
            there, here = map(repr, values)
        said.append(f"{path} is {there} there and {here} here")
    rest = len(different) - limit
    return ", ".join([*said, f"and {rest} more"] if rest > 0 else said)


def _value(value: Any) -> str:
    if value is _LEFT_OUT:
        return "left out"
    # An entry or a text may read like a part of the sentence: "is left out there and hidden here".
    return f"'{shown(value)}'" if isinstance(value, str | dict) else shown(value)
