"""The directory of a run: whose it is, whether it may be written, what a restart removes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files import check_writable, write_atomic
from hf_distill.fit import RECORD, read_record
from hf_distill.reading.document import join
from hf_distill.reading.words import shown
from hf_distill.training.checkpoints import last_complete_checkpoint

RECIPE = "recipe.yaml"
_LEFT_OUT = object()
# Underscored, so that `Trainer.push_to_hub` leaves them out.
TEACHERS = "_teacher"
RUNS = "_runs"


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

    def check(self, restart: bool) -> None:
        """Refuse a directory that holds something else. Writes nothing.

        Raises:
            UserError: Another recipe's run, or files that are no run at all.
        """
        held = self.held()
        different = [] if held is None else _differences(held, self.recipe)
        if different and not restart:
            raise UserError(
                f"{self.path} holds a run of another recipe: {_told(different)}. Choose another directory, go back to "
                "that recipe to resume, or start over with --restart.",
                key="output_dir",
            )

    def held(self) -> str | None:
        """Return the recipe of the run that is there; None where there is none, but perhaps a teacher for one.

        Raises:
            UserError: There are files that are no run at all.
        """
        if not self.path.exists() or (self.path.is_dir() and all(one.name == TEACHERS for one in self.path.iterdir())):
            return None
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; wanted a directory.", key="output_dir")
        held = self.path / RECIPE
        if not held.is_file():
            raise UserError(
                f"{self.path} is not empty and holds no run of this package; its files might be overwritten. Choose "
                "another directory, or empty it.",
                key="output_dir",
            )
        return held.read_text(encoding="utf-8")

    def claim(self, restart: bool) -> None:
        """Create the directory, remove what a restart is to redo, and write the recipe. For one process only.

        A fine-tuned teacher stays: it is found again by model, data and settings, or not used.

        Raises:
            UserError: The directory cannot be written.
        """
        _check_writable(self.path)
        if restart:
            for stale in (*self.path.glob("checkpoint-*"), self.path / RUNS):
                shutil.rmtree(stale, ignore_errors=True)
            for name in (RECORD, "report.json", "report.html", "README.md"):
                (self.path / name).unlink(missing_ok=True)
        write_atomic(self.path / RECIPE, self.recipe)

    def claim_teachers(self) -> None:
        """Have a teacher trained here, for whichever run is to come. For one process only.

        The recipe is written beside it for the precision, with which it is found again (`held_recipe`).

        Raises:
            UserError: The directory cannot be written.
        """
        _check_writable(self.path / TEACHERS)
        write_atomic(self.path / TEACHERS / RECIPE, self.recipe)

    def tidy(self) -> None:
        """Remove the checkpoints of a finished run; the models themselves stay."""
        for stale in (*self.path.glob("checkpoint-*"), *self.path.glob(f"{RUNS}/*/checkpoint-*")):
            shutil.rmtree(stale, ignore_errors=True)


def _check_writable(path: Path) -> None:
    try:
        check_writable(path)
    except UserError as error:
        raise UserError(*error.mistakes, key="output_dir") from error


def last_checkpoint(path: Path, teachers: Path | None = None) -> str | None:
    """Return the checkpoint from which an interrupted run will go on; None where its training has none yet.

    Args:
        path: Directory of the run.
        teachers: Where fine-tuned teachers are kept, if not there.
    """
    trainings = [path, *path.glob(f"{RUNS}/*"), *(teachers or path / TEACHERS).glob("*")]
    for folder in trainings:
        record = read_record(folder)
        if record is not None and not record["finished"] and (found := last_complete_checkpoint(folder)):
            return found
    return None


def held_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe that a directory's run, or else its teacher, began with, as plain values; None without one."""
    files = [file for file in (path / RECIPE, path / TEACHERS / RECIPE) if file.is_file()]
    return _plain(files[0].read_text(encoding="utf-8")) if files else None


def _plain(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError:  # not ours, then: it differs in everything
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
