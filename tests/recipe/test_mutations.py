"""Thousands of broken recipes: never a traceback, never a file, never a character that a terminal obeys.

MUTATIONS=20000 python -m pytest -s -m slow tests/recipe/test_mutations.py
"""

from __future__ import annotations

import os
import random
import re
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mutations import mutants
from runs import REPO

from hf_distill.cli import main
from hf_distill.formatting import LIMIT

RECIPES = sorted((REPO / "recipes").glob("*.yaml"))
COUNT = int(os.environ.get("MUTATIONS", "2000"))
SEED = int(os.environ.get("SEED", "0"))
ACTIVE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

WriteRecipe = Callable[..., Path]


def tried(text: str, count: int, seed: int, capsys: pytest.CaptureFixture[str]) -> tuple[Counter[str], list[str]]:
    """Check changed recipes where nothing may be written; return how many ended how, and what should not be."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    path = Path("recipe.yaml")
    for index, mutant in enumerate(mutants(text, count, seed)):
        path.write_bytes(mutant)
        before = {str(one): one.stat().st_mtime_ns for one in Path().rglob("*") if one != path}
        random.seed(0)
        try:
            counts[f"status {main([str(path), '--check'])}"] += 1
        except BaseException as error:
            counts["traceback"] += 1
            wrong.append(f"{seed}/{index}: {type(error).__name__}: {error}"[:300] + traceback.format_exc()[-900:])
        said = "".join(capsys.readouterr())
        if ACTIVE.search(said) or "Traceback" in said or max(map(len, said.splitlines()), default=0) > LIMIT + 200:
            wrong.append(f"{seed}/{index}: said {said[:600]!a}")
        if before != {str(one): one.stat().st_mtime_ns for one in Path().rglob("*") if one != path}:
            wrong.append(f"{seed}/{index}: wrote a file")
    return counts, wrong


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback for a slip of the pen says nothing to who made it."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    counts, wrong = tried(text, max(COUNT // (len(RECIPES) + 1), 3), SEED * 100 + RECIPES.index(path), capsys)
    with capsys.disabled():
        print(f"\n{path.stem}: {dict(counts)}")
    assert not wrong, "\n".join(wrong[:20]) + f"\n({len(wrong)} in all)"


@pytest.mark.slow
def test_a_recipe_whose_models_are_here(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where models and data can be opened, there is more to go wrong."""
    text = write_recipe().read_text(encoding="utf-8")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    counts, wrong = tried(text, max(COUNT // (len(RECIPES) + 1), 3), SEED * 100 + 99, capsys)
    with capsys.disabled():
        print(f"\nmodels and data on disk: {dict(counts)}")
    assert not wrong, "\n".join(wrong[:20]) + f"\n({len(wrong)} in all)"
