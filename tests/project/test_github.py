"""The files that GitHub reads: nothing else runs them before they are pushed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is_and_may_do_little(path: Path) -> None:
    """A renamed target fails on GitHub only; a job without limit or with rights it does not need costs or leaks."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        for run in (step["run"] for step in job["steps"] if "run" in step):
            for words in re.findall(r"^\s*make ([a-z ]+)", run, re.MULTILINE):
                assert set(words.split()) <= targets, name
            assert all((ROOT / script).is_file() for script in re.findall(r"\bscripts/\w+\.py", run)), name
            assert "${{" not in run, f"{name}: what others may choose reaches a shell by the environment only"


def test_a_report_of_a_bug_has_the_output_of_env() -> None:
    """Without versions and device, the first answer to every report is a question."""
    assert FORMS
    for form in map(read, FORMS):
        fields = {field["id"]: field for field in form["body"] if "id" in field}
        assert "hf-distill env" in fields["env"]["attributes"]["label"]
        assert form["labels"] != ["bug"] or fields["env"]["validations"]["required"]


def test_what_runs_before_a_commit_fetches_nothing() -> None:
    """A hook from the network has another version of ruff or mypy than the tests, and fails without a network."""
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert checks
    tools = {line.split("/")[1].split()[0] for line in checks[1].splitlines()}
    assert {hook["entry"].split()[0].rpartition("/")[2] for hook in repository["hooks"]} == tools
