"""What is published: the contents of wheel and sdist, and their metadata."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_distill import __version__

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta

into = sys.argv[1]  # which the first build replaces
build_meta.build_sdist(into)
build_meta.build_wheel(into)
"""


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, also those not committed yet; the sdist's own where there is no repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tracked: list[str]) -> Path:
    """A directory with wheel and sdist, built from a copy: a build leaves files where it works."""
    pytest.importorskip("setuptools", minversion="77")
    source, into = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    # In a process of its own: it changes directory, and what is imported.
    subprocess.run(
        [sys.executable, "-c", BUILD, str(into)], cwd=source, check=True, capture_output=True, text=True, timeout=300
    )
    return into


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, open."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile, tracked: list[str]) -> None:
    """A template that is left out fails at the end of somebody's first run; tests in it land in site-packages."""
    info = f"hf_distill-{__version__}.dist-info/"
    names = sorted(name for name in wheel.namelist() if not name.startswith(info))
    assert names == [name for name in tracked if name.startswith("hf_distill/")]
    assert {"hf_distill/py.typed", "hf_distill/report/templates/report.html.jinja"} <= {*names}
    assert f"{info}licenses/LICENSE" in wheel.namelist()


def test_the_sdist_has_what_its_tests_need(built: Path, tracked: list[str]) -> None:
    """Distributions run the tests of an sdist: without recipes and pages, every second one fails there."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert [name for name in tracked if name not in names and not name.startswith((".ci/", "build/"))] == []
    assert [name for name in names if name.endswith(".pyc") or "__pycache__" in name] == []


def test_the_metadata_is_complete(wheel: zipfile.ZipFile) -> None:
    """PyPI's page, and pip's choice of a version, come from it: a Python that is not named looks unsupported."""
    said = email.message_from_bytes(wheel.read(f"hf_distill-{__version__}.dist-info/METADATA"))
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("hf-distill", __version__, "Apache-2.0")
    assert said["Requires-Python"] == ">=3.10"
    assert said["Summary"]
    assert said["Keywords"]
    assert said["Author"]
    assert said["Description-Content-Type"] == "text/markdown"
    assert str(said.get_payload()).lstrip().startswith("# hf_distill")
    pythons = {one[1] for text in said.get_all("Classifier", []) if (one := re.search(r":: (3\.\d+)$", text))}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tested = re.search(r"python: \[([^\]]+)\]", workflow)
    assert tested
    assert pythons == set(re.findall(r"[\d.]+", tested[1])), "what is promised is what is tested"
    assert b"hf-distill = hf_distill.cli:main" in wheel.read(f"hf_distill-{__version__}.dist-info/entry_points.txt")
