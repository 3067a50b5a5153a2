"""docs/papers.md names every paper that the code names, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from hf_distill.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
IDS = re.compile(r"\b\d{4}\.\d{5}\b|(?<=arXiv )\d{4}\.\d{4}\b")


def test_every_paper_that_the_code_names_is_on_the_page() -> None:
    """Whoever adds an objective names its paper; what the page leaves out is not found by those who look for it."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "hf_distill").rglob("*.py"))}
    # A name and its number may stand on two lines.
    named = {one: path.name for path, text in texts.items() for one in IDS.findall(re.sub(r"\s+", " ", text))}
    assert len(named) > 40
    assert {one: file for one, file in named.items() if f"[{one}](https://arxiv.org/abs/{one})" not in PAGE} == {}
    assert set(re.findall(r"arxiv.org/abs/([\d.]+)", PAGE)) <= named.keys(), "on the page, and nowhere in the code"


def test_every_objective_stands_beside_its_papers() -> None:
    """A paper without a number (RankNet) would be left out, or an objective credited to the paper of its neighbour."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    for name, cls in OBJECTIVES.items():
        papers = [one for one in cls.paper.split("; ") if re.search(r"\b(19|20)\d\d\b", one)]
        for author in (re.split(r"[ ,]", one)[0] for one in papers):
            assert [row for row in rows if author in row[0] and f"`{name}`" in row[1]], f"{name}: {author}"


def test_the_tests_that_it_names_exist() -> None:
    """A claim that is held by a test which was renamed is held by nothing."""
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(\S+?)\)", PAGE)
    assert named
    assert [one for one, file in named if f"def {one}(" not in (ROOT / file).read_text(encoding="utf-8")] == []
