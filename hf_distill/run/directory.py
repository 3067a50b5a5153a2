"""The output directory of a run: check that the run may use it, lock it, and clear it for a restart."""

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
    """The output directory of a run (`training.output_dir`).

    Attributes:
        path: The directory.
        recipe: Resolved text of the recipe that is to run there. Its `report`, `export` and `hub` sections may change
            between runs, since no result of training depends on them.
    """

    path: Path
    recipe: str

    @cached_property
    def lock(self) -> Lock:
        """The lock that keeps other runs out; `claim` takes it."""
        return Lock(self.path)

    @property
    def owned(self) -> Ownership:
        """The record of which files here were written by runs."""
        return Ownership(self.path)

    def check(self, restart: bool, *, for_teacher: bool = False) -> None:
        """Refuse a directory that this run must not use. Writes nothing.

        Args:
            restart: Start over: the directory may hold a run of another recipe.
            for_teacher: Only a teacher is going to be trained: the directory may hold a run of another recipe.

        Raises:
            UserError: The directory holds another recipe's run, an active run, or files of something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; wanted a directory.", key="output_dir")
        if self.lock.holder is not None:
            self.lock.take_or_refuse()
        self.owned.check()
        stored = None if restart or for_teacher else _stored_text(self.path)
        if stored is not None and (different := _differences(stored, self.recipe)):
            raise UserError(
                f"{self.path} holds a run of another recipe: {_describe_differences(different)}. Choose another "
                "directory, go back to that recipe to resume, or start over with --restart.",
                key="output_dir",
            )

    def claim(self, restart: bool) -> None:
        """Lock the directory, delete the old run on a restart, and write the recipe. Call it in one process only.

        A fine-tuned teacher is not deleted: it is reused if model, data and settings are the same.

        Raises:
            UserError: The directory cannot be written to, or another run has locked it.
        """
        self._enter(restart)
        if restart:
            self._remove(self.owned.names() or set())
        self.owned.take(recipe=hashlib.sha256(self.recipe.encode()).hexdigest())
        write_atomic(self.path / RECIPE, self.recipe)

    def claim_teachers(self) -> None:
        """Lock the directory for the training of a teacher that later runs can reuse. Call it in one process only.

        The recipe is stored with the teacher, since reuse depends on its precision (`stored_recipe`).

        Raises:
            UserError: The directory cannot be written to, or another run has locked it.
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
        self.check(restart, for_teacher=for_teacher)  # again: another run may have come and gone since the first check
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


def last_checkpoint(path: Path, teachers: Iterable[Path | None] = ()) -> str | None:
    """Return the checkpoint from which an interrupted run will resume; None if its training has none yet.

    Its files are not compared with their checksums: a run that was told to stop must end before it is killed, and
    hundreds of gigabytes take minutes. Whoever resumes compares them.

    Args:
        path: Directory of the run.
        teachers: Directories of fine-tuned teachers; None for the usual one inside `path`.
    """
    for folder, record in records(path, teachers):
        if record["finished"]:
            continue
        sealed = record.get("sealed", False)
        if found := last_complete_checkpoint(folder, record["key"], sealed=sealed, hashed=False):
            return found
    return None


def records(path: Path, teachers: Iterable[Path | None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the record of each training of a run that was begun. Arguments as of `last_checkpoint`."""
    places = {place or path / TEACHERS for place in teachers} or {path / TEACHERS}
    for folder in [path, *path.glob(f"{RUNS}/*"), *(folder for place in places for folder in place.glob("*"))]:
        if (record := read_record(folder)) is not None:
            yield folder, record


def stored_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe stored by the run in a directory, or else with its teacher, as plain values; None if none."""
    text = _stored_text(path)
    if text is None and (path / TEACHERS / RECIPE).is_file():
        text = (path / TEACHERS / RECIPE).read_text(encoding="utf-8", errors="replace")
    return None if text is None else _plain(text)


def _stored_text(path: Path) -> str | None:
    """Return the text of the recipe that a run stored in a directory; None if there is none, or if it was changed.

    A changed recipe is ignored and written again. That is safe: each training checks by itself whether it belongs to
    the recipe that is to run.
    """
    try:
        content = (path / RECIPE).read_bytes()
    except OSError:
        return None
    wanted = Ownership(path).recipe_sum
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        logger.warning("%s was changed or damaged since it was written; a run writes it again", path / RECIPE)
        return None
    return content.decode(errors="replace")


def _plain(text: str) -> dict[str, Any]:
    from hf_distill.recipe.document import Fault, parse

    try:
        content, _ = parse(text)
    except Fault:  # not a recipe: every key then counts as different
        return {}
    return content if isinstance(content, dict) else {}


def _differences(stored: str, wanted: str) -> list[tuple[str, Any, Any]]:
    """Return (key path, stored value, wanted value) for each difference between two resolved recipes.

    `report`, `export` and `hub` are ignored, since no result of training depends on them, and so is `output_dir`, since
    the same directory can be written in several ways.
    """
    one, other = (
        {key: value for key, value in _plain(text).items() if key not in ("report", "export", "hub")}
        for text in (stored, wanted)
    )
    for recipe in (one, other):
        if isinstance(training := recipe.get("training"), dict):
            recipe["training"] = {key: value for key, value in training.items() if key != "output_dir"}
    training = other.get("training", {})
    if training.get("bf16") == "auto":  # the stored recipe has the value that was chosen when the run began
        other["training"] = {**training, "bf16": one.get("training", {}).get("bf16", "auto")}
    return list(_compare("", one, other))


def _compare(path: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences at or below a key path; entries with different names are one difference."""
    if isinstance(one, dict) and isinstance(other, dict) and one.get("name") == other.get("name"):
        for key in dict.fromkeys((*sorted(one), *sorted(other))):
            yield from _compare(join(path, key), one.get(key, _LEFT_OUT), other.get(key, _LEFT_OUT))
    elif isinstance(one, list) and isinstance(other, list):
        for index, (mine, theirs) in enumerate(zip_longest(one, other, fillvalue=_LEFT_OUT)):
            yield from _compare(join(path, index), mine, theirs)
    elif one != other:
        yield path, one, other


def _describe_differences(different: list[tuple[str, Any, Any]], limit: int = 3) -> str:
    """Return the first differences with both values: `training.seed is 1 there and 2 here, and 4 more`."""
    parts = []
    for path, *values in different[:limit]:
        there, here = map(_value, values)
        if there == here:  # numbers that differ only after the sixth digit
            there, here = map(repr, values)
        parts.append(f"{path} is {there} there and {here} here")
    rest = len(different) - limit
    return ", ".join([*parts, f"and {rest} more"] if rest > 0 else parts)


def _value(value: Any) -> str:
    if value is _LEFT_OUT:
        return "left out"
    # Quoted, since a text could be read as a part of the sentence: "is left out there and hidden here".
    return f"'{shown(value)}'" if isinstance(value, str | dict) else shown(value)
