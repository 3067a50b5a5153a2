"""The pages as they are read on GitHub and copied from: anchors of links, and parts of recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(one for folder in ("docs", "recipes", "examples", "benchmarks") for one in (ROOT / folder).rglob("*.md")),
]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings; of equal ones the second has `-1`."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        same = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", one) is not None for one in found)
        found.append(f"{slug}-{same}" if same else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_headings(page: Path) -> None:
    """A heading that is renamed leaves readers of other pages at the top of a long page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)", text)
    # Pages of the reference have headings that are made when the site is built, which checks them.
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links if "reference/" not in file]
    assert [f"{path.name}#{anchor}" for path, anchor in targets if anchor not in anchors(path)] == []


def parts(text: str) -> Iterator[str]:
    """Yield the parts of a block that each stand for themselves: a new one begins where a key comes again."""
    lines: list[str] = []
    keys: set[str] = set()
    for line in text.splitlines():
        key = re.match(r"(\w+):", line)
        if key and key[1] in keys:
            yield "\n".join(lines)
            lines, keys = [], set()
        keys |= {key[1]} if key else set()
        lines.append(line)
    yield "\n".join(lines)


def is_left_out(error: jsonschema.ValidationError) -> bool:
    """Return whether a part of a section leaves out what stands elsewhere."""
    return error.validator == "required" and len(error.path) == 1


def test_every_part_of_a_recipe_is_valid() -> None:
    """A part with a renamed key, or a value that is refused, is copied into a recipe and fails there."""
    schema: dict[str, Any] = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
    for key in ("required", "oneOf", "anyOf", "allOf"):
        schema.pop(key, None)  # a part need not be whole
    validator = jsonschema.Draft202012Validator(schema)
    seen, wrong = 0, []
    for page in PAGES:
        for indent, language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language not in ("yaml", "yml"):
                continue
            for part in parts(re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)):
                content = YAML(typ="safe", pure=True).load(part)
                seen += 1
                errors = [one for one in validator.iter_errors(content) if not is_left_out(one)]
                wrong += [f"{name_of(page)}: {one.json_path}: {one.message}" for one in errors]
    assert seen > 60
    assert wrong == []
