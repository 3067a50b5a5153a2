"""Record which files of a directory a run wrote: it overwrites and deletes only these."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files import lock
from hf_distill.files.atomic import is_left_over
from hf_distill.files.records import read_record, write_record

FILE = "_run.json"
RECIPE = "recipe.yaml"
TRAINING = "_fit.json"
# Names with an underscore: `Trainer.push_to_hub` leaves them out.
TEACHERS = "_teacher"
RUNS = "_runs"
ANSWERS = "_noisy"
CHAIN = "_chain"
EXPORT = "_export"
LOG = "_log.txt"
CHECKPOINT = re.compile(r"checkpoint-\d+")
# Every run writes these; the files of the student's model are added when they are written.
_ALWAYS = (RECIPE, TRAINING, EXPORT, RUNS, LOG, "report.json", "report.html", "README.md")
# Files that are already there when the record is first written.
_HARMLESS = (FILE, lock.FILE, TEACHERS, ANSWERS, CHAIN)
# Names under which a student is saved: a conflict is reported before training, not after it.
_STUDENT = re.compile(
    r"checkpoint-\d+|(adapter_|generation_)?config\.json|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|tokenizer.*\.(json|model)|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.\w+|modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json|\d_[A-Z]\w+"
)


@dataclass(frozen=True)
class Ownership:
    """The record of what runs wrote in a directory.

    Attributes:
        path: The directory; it need not exist.
    """

    path: Path

    def names(self) -> set[str] | None:
        """Return the names that runs of this package wrote; None if the directory is not one of a run."""
        if (record := self._record()) is not None:
            # The record may come from elsewhere, with the directory: what leads out of it was not written by a run.
            return {name for name in record["wrote"] if _is_plain(name)}
        present = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if self._is_of_the_version_before() or (FILE in present and lock.FILE in present):  # damaged, the second
            return {name for name in present if name in _ALWAYS or _STUDENT.fullmatch(name)}
        free = all(name in _HARMLESS or is_left_over(name) for name in present)
        return set() if free and FILE not in present else None

    @property
    def recipe_sum(self) -> str | None:
        """The sha256 of the recipe that was written last; None if not recorded."""
        record = self._record()
        return None if record is None else record.get("recipe")

    @property
    def report(self) -> dict[str, str]:
        """What `take` recorded of the report that was measured last; empty if not recorded."""
        found = (self._record() or {}).get("report")
        return found if isinstance(found, dict) else {}

    def check(self) -> None:
        """Refuse a directory in which the run would overwrite files that this package did not write.

        Raises:
            UserError: There are such files, or links in the place of what runs write; the message names them.
        """
        ours = self.names()
        if ours is None:
            raise UserError(
                f"{self.path} is not empty and was not written by this package; its files might be overwritten. Choose "
                "another directory, or empty it.",
                key="output_dir",
            )
        present = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        self._refuse(name for name in present if name not in ours and (name in _ALWAYS or _STUDENT.fullmatch(name)))
        self._refuse_links(name for name in present if name in (*ours, *_HARMLESS))

    def take(
        self, names: Iterable[str] = (), recipe: str | None = None, report: Mapping[str, str] | None = None
    ) -> None:
        """Record names before the files are written. Call it in one process only.

        Args:
            names: Files and folders besides those that every run writes.
            recipe: The sha256 of the recipe, if a new one is going to be written.
            report: What the report depends on that was just written.

        Raises:
            UserError: One of these names exists and was not written by this package.
        """
        ours = self.names() or set()
        new = {*names} - ours
        self._refuse(name for name in new if (self.path / name).exists())
        if new or recipe is not None or report is not None or self._record() is None:
            record = {"by": "hf_distill", "recipe": recipe or self.recipe_sum, "wrote": sorted({*ours, *new, *_ALWAYS})}
            measured = dict(report or self.report)
            write_record(self.path / FILE, {**record, **({"report": measured} if measured else {})})

    def _refuse(self, names: Iterable[str]) -> None:
        if foreign := sorted(names):
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise UserError(
                f"{', '.join(foreign[:3])}{more} in {self.path} was not written by this package and would be "
                "overwritten. Move it away, or choose another directory.",
                key="output_dir",
            )

    def _refuse_links(self, names: Iterable[str]) -> None:
        """Refuse symbolic links at or below some names: what is written or deleted through one lies elsewhere."""
        if link := next((link for name in sorted(names) for link in _links(self.path / name)), None):
            raise UserError(
                f"{link} is a symbolic link, and a run writes and deletes nothing through links. Put what it points to "
                "in its place, remove it, or choose another directory.",
                key="output_dir",
            )

    def _record(self) -> dict[str, Any] | None:
        record = read_record(self.path / FILE)
        wrote = None if record is None or record.get("by") != "hf_distill" else record.get("wrote")
        return record if isinstance(wrote, list) and all(isinstance(name, str) for name in wrote) else None

    def _is_of_the_version_before(self) -> bool:
        record = read_record(self.path / TRAINING)
        return record is not None and {"key", "finished"} <= record.keys() and (self.path / RECIPE).is_file()


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a visible entry of the directory itself; no run writes hidden ones."""
    return not name.startswith(".") and not {*name} & {"/", "\\", "\0"} and bool(name)


def _links(place: Path) -> Iterator[Path]:
    """Yield the symbolic links at or below a path; none is followed."""
    if place.is_symlink():
        yield place
        return
    for folder, folders, files in os.walk(place):
        yield from (path for name in sorted((*folders, *files)) if (path := Path(folder, name)).is_symlink())
