"""`make release`: `scripts/release.py`, on a small repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.1.0] - 2026-11-30\n\n- All.\n"


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a build that takes no time."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    sys.modules.pop("release", None)
    import release  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setattr(release, "build", lambda root: (root / "dist").mkdir())
    made: ModuleType = release
    return made


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose package is 0.1.0, released, with one change after it."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.example")
    files = {
        "CHANGELOG.md": CHANGELOG,
        "hf_distill/_version.py": '"""V."""\n\n__version__ = "0.1.0"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 0.1.0\ndate-released: 2026-11-30\n",
        "tests/project/public_api.txt": "distill(recipe)\n",
        ".gitignore": "dist/\n",
        "pyproject.toml": "[project.urls]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def test_a_release_moves_the_changes_and_writes_the_version_everywhere(script: ModuleType, repository: Path) -> None:
    """A version that two files tell differently cannot be cited, and pip installs what the changelog does not know."""
    assert script.main(["0.2.0", "--commit"], repository) == 0
    text = (repository / "CHANGELOG.md").read_text()
    found = script.sections(text)
    assert list(found) == ["Unreleased", "0.2.0", "0.1.0"]
    assert (found["Unreleased"], found["0.2.0"]) == ("", "### Added\n\n- A thing.")
    assert '__version__ = "0.2.0"' in (repository / "hf_distill" / "_version.py").read_text()
    date = text.split("## [0.2.0] - ")[1][:10]
    assert (repository / "CITATION.cff").read_text() == f"cff-version: 1.2.0\nversion: 0.2.0\ndate-released: {date}\n"
    assert (repository / "tests/project/public_api_released.txt").read_text() == "distill(recipe)\n"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "describe", "--tags") == "v0.2.0"
    assert script.notes(repository, "0.2.0") == "### Added\n\n- A thing."


def test_nothing_is_committed_unasked(script: ModuleType, repository: Path) -> None:
    """Who looks first must not find a tag that was pushed by the next `git push --follow-tags`."""
    assert script.main(["0.2.0"], repository) == 0
    assert git(repository, "tag") == ""
    assert git(repository, "log", "--format=%s") == "start"


@pytest.mark.parametrize(
    ("version", "file", "text", "words"),
    [
        ("0.1.0", "", "", "not newer than 0.1.0"),
        ("0.0.9", "", "", "not newer than 0.1.0"),
        ("v0.2.0", "", "", "written plainly it is 0.2.0"),
        ("next", "", "", "not a version"),
        ("0.2.0", "new.txt", "x", "not committed: ?? new.txt"),
        ("0.2.0", "CHANGELOG.md", CHANGELOG.replace("- A thing.\n", ""), "nothing stands under"),
    ],
)
def test_what_is_not_ready_is_refused(
    version: str,
    file: str,
    text: str,
    words: str,
    script: ModuleType,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A release cannot be taken back: PyPI never takes the same version twice."""
    if file:
        (repository / file).write_text(text)
        if file == "CHANGELOG.md":
            git(repository, "commit", "-q", "-a", "-m", "empty")
    before = (repository / "CHANGELOG.md").read_text()
    assert script.main([version, "--commit"], repository) == (2 if words else 0)
    assert words in capsys.readouterr().err
    assert ((repository / "CHANGELOG.md").read_text() == before) == bool(words)


def test_a_failing_build_leaves_everything_as_it_was(
    script: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-made release, tried again, would find a dirty tree and a version that is not newer."""

    def fail(root: Path) -> None:
        raise subprocess.CalledProcessError(1, ["build"])

    monkeypatch.setattr(script, "build", fail)
    assert script.main(["0.2.0", "--commit"], repository) == 1
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "tag") == ""


@pytest.mark.parametrize("step", ["commit", "tag"])
def test_a_commit_or_tag_that_git_refuses_leaves_everything_as_it_was(
    step: str, script: ModuleType, repository: Path
) -> None:
    """The next try would find changes that are not committed, or a version that is not newer."""
    if step == "commit":
        hook = repository / ".git" / "hooks" / "pre-commit"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
    else:
        git(repository, "config", "tag.gpgSign", "true")
        git(repository, "config", "gpg.program", "false")
    assert script.main(["0.2.0", "--commit"], repository) == 1
    assert (git(repository, "status", "--porcelain"), git(repository, "tag")) == ("", "")
    assert git(repository, "log", "--format=%s") == "start"


def test_the_first_release_has_the_version_there_is(script: ModuleType, repository: Path) -> None:
    """The package is born as 0.1.0: asking for a newer one would leave 0.1.0 out for ever."""
    (repository / "CHANGELOG.md").write_text(CHANGELOG.partition("## [0.1.0]")[0])
    git(repository, "commit", "-q", "-a", "-m", "nothing was released")
    assert script.main(["0.1.0"], repository) == 0
    assert list(script.sections((repository / "CHANGELOG.md").read_text())) == ["Unreleased", "0.1.0"]


def test_this_repository_can_be_released(script: ModuleType) -> None:
    """The script reads files by their form: one that changed would be found on the day of a release."""
    texts = script.written(ROOT, "99.0.0", "2030-01-01")
    assert list(script.sections(texts["CHANGELOG.md"]))[:2] == ["Unreleased", "99.0.0"]
    assert "version: 99.0.0\ndate-released: 2030-01-01\n" in texts["CITATION.cff"]
    from hf_distill import __version__

    assert script.current(ROOT) == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
