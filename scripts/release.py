"""Make a release: `make release VERSION=0.2.0`, or `python scripts/release.py 0.2.0 [--commit] [--notes]`.

Moves what stands under "Unreleased" in CHANGELOG.md to a section of the version, writes the version into the package
and CITATION.cff, stores the public API as that of a release, builds wheel and sdist into dist/ and has twine check
them. With `--commit` it commits and makes the tag `vVERSION`, whose push starts .github/workflows/release.yml. It
publishes nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = "CHANGELOG.md"
VERSION = "hf_distill/_version.py"
CITATION = "CITATION.cff"
API, RELEASED_API = "tests/project/public_api.txt", "tests/project/public_api_released.txt"
_HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?[^\n]*\n", re.MULTILINE)


class Refused(Exception):
    """There can be no such release; the arguments are lines that say why."""


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Make a release, or print the notes of one, and return the exit status: 2 if it is refused, 1 if a tool fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--commit", action="store_true", help="commit, and make the tag")
    parser.add_argument("--notes", action="store_true", help="print what CHANGELOG.md says of this version, do no more")
    arguments = parser.parse_args(argv)
    try:
        if arguments.notes:
            print(notes(root, arguments.version))
            return 0
        release(root, arguments.version, commit=arguments.commit)
    except Refused as error:
        print("\n".join(f"release: {line}" for line in error.args), file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"release: {error}. The files are as they were.", file=sys.stderr)
        return 1
    return 0


def release(root: Path, version: str, *, commit: bool) -> None:
    """Write, build and check a release; if a step fails, every file is as it was.

    Raises:
        Refused: The tree, the version or the changelog is not ready.
        subprocess.CalledProcessError: A tool failed.
    """
    if why := list(reasons(root, version)):
        raise Refused(*why)
    texts = written(root, version, datetime.now(timezone.utc).date().isoformat())
    start = _git(root, "rev-parse", "HEAD")
    before = {name: (root / name).read_bytes() if (root / name).exists() else None for name in texts}
    try:
        for name, text in texts.items():
            (root / name).write_text(text, encoding="utf-8")
        build(root)
        if commit:
            _git(root, "add", "--", *texts)
            _git(root, "commit", "--quiet", "-m", f"Release {version}")
            _git(root, "tag", "-a", f"v{version}", "-m", f"hf_distill {version}")
    except BaseException:
        if commit:  # a hook may refuse the commit, or a missing key the tag
            _git(root, "reset", "--quiet", start)
        for name, data in before.items():
            (root / name).unlink() if data is None else (root / name).write_bytes(data)
        raise
    done = f"git push --follow-tags publishes v{version}." if commit else "Look at git diff; COMMIT=1 commits and tags."
    print(f"{version}: dist/ is built and checked. {done}")
    if "[project.urls]" not in (root / "pyproject.toml").read_text(encoding="utf-8"):
        print(
            "pyproject.toml has no [project.urls] yet (Repository, Documentation): the page on PyPI will link nowhere."
        )


def reasons(root: Path, version: str) -> Iterator[str]:
    """Yield why there can be no such release."""
    if status := _git(root, "status", "--porcelain"):
        yield f"the working tree has changes that are not committed: {status.splitlines()[0].strip()}"
    if _git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} is there already"
    text = (root / CHANGELOG).read_text(encoding="utf-8")
    try:
        new = Version(version)
    except InvalidVersion:
        yield f"'{version}' is not a version, such as 0.2.0"
    else:
        if str(new) != version or new.local or new.is_devrelease:
            yield f"'{version}' is not a version that can be released; written plainly it is {new.public}"
        now = Version(current(root))
        released = [Version(name) for name in sections(text) if name != "Unreleased"]
        # The first release has the version that the package was born with.
        if new < now or new in released or any(new < one for one in released):
            yield f"{version} is not newer than {max([now, *released])}"
    if not _entries(sections(text).get("Unreleased", "")):
        yield f"nothing stands under [Unreleased] in {CHANGELOG}"


def current(root: Path) -> str:
    """Return the version of the package, without importing it."""
    found = re.search(r'__version__ = "([^"]+)"', (root / VERSION).read_text(encoding="utf-8"))
    if found is None:
        raise Refused(f"{VERSION} names no version")
    return found[1]


def sections(text: str) -> dict[str, str]:
    """Return name -> body of the sections of a changelog."""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {heading["name"]: text[heading.end() : end].strip() for heading, end in zip(headings, ends, strict=True)}


def _entries(body: str) -> list[str]:
    return re.findall(r"^[-*] \S", body, re.MULTILINE)


def written(root: Path, version: str, date: str) -> dict[str, str]:
    """Return file -> its content after the release."""
    read = {name: (root / name).read_text(encoding="utf-8") for name in (CHANGELOG, VERSION, CITATION, API)}
    citation = re.sub(r"^date-released:.*\n", "", read[CITATION], flags=re.MULTILINE)
    return {
        CHANGELOG: _HEADING.sub(f"## [Unreleased]\n\n## [{version}] - {date}\n", read[CHANGELOG], count=1),
        VERSION: _replaced(r'__version__ = "[^"]+"', f'__version__ = "{version}"', read[VERSION]),
        CITATION: _replaced(r"(?m)^version:.*$", f"version: {version}\ndate-released: {date}", citation),
        RELEASED_API: read[API],
    }


def _replaced(pattern: str, new: str, text: str) -> str:
    changed, number = re.subn(pattern, new, text)
    if number != 1:
        raise Refused(f"wanted one {pattern!r}, found {number}")
    return changed


def build(root: Path) -> None:
    """Build wheel and sdist into `dist/`, which has nothing else then, and have twine check them."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", "dist", "."], cwd=root, check=True)
    files = sorted(str(path) for path in (root / "dist").iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], cwd=root, check=True)


def notes(root: Path, version: str) -> str:
    """Return what the changelog says of a version.

    Raises:
        Refused: The package has another version, or the changelog does not have this one.
    """
    text = sections((root / CHANGELOG).read_text(encoding="utf-8")).get(version)
    if current(root) != version:
        raise Refused(f"the package is {current(root)}, not {version}")
    if not text:
        raise Refused(f"{CHANGELOG} has no section [{version}]")
    return text


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
