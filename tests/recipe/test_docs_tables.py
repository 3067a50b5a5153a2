"""The generated tables of docs/: `hf_distill/recipe/docs_tables.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_distill.mistakes import attributes
from hf_distill.objectives import OBJECTIVES
from hf_distill.objectives.schedule import Schedule
from hf_distill.recipe.docs_tables import DEFAULT, FILES, TABLE, written
from hf_distill.recipe.reader import SECTIONS
from hf_distill.recipe.recipe import Stage
from hf_distill.students import STUDENTS
from hf_distill.tasks import TASKS
from hf_distill.teachers import TEACHERS

ROOT = Path(__file__).parents[2]
CLASSES: list[Any] = [*SECTIONS.values(), Stage, Schedule]
CLASSES += [cls for table in (TASKS, TEACHERS, STUDENTS, OBJECTIVES) for cls in table.values()]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_tables_are_up_to_date(file: Path) -> None:
    """A page that describes the keys of yesterday is believed. Remedy: make schema."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert TABLE.search(text)
    assert text == written(text)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_key_has_help_and_a_default_in_words(cls: Any) -> None:
    """Editors and docs/recipe.md show an empty line; a default of null says nothing of what happens without the key."""
    said = attributes(cls)
    for key, field in cls.__pydantic_fields__.items():
        assert said.get(key), key
        if not field.is_required() and field.get_default(call_default_factory=True) is None:
            assert DEFAULT.search(said[key]), key


def test_a_bar_stays_in_its_cell() -> None:
    """A `|` of a formula begins a new cell, and the rest of the row moves to the right."""
    text = written("<!-- table: objectives.js -->\n<!-- end -->\n" + "<!-- table: formulas -->\nold\n<!-- end -->\n")
    assert r"KL(p \|\| m)" in text
    assert "old" not in text
