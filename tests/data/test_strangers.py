"""Data of a stranger: archives, folders and data cards that are made to read or to write elsewhere, or without end."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasets import config

from hf_distill.data.archives import data_files, unpack
from hf_distill.data.loading import load_splits
from hf_distill.data.section import Data
from hf_distill.errors import UserError

ROLES = {"text": True, "label": False}
ROWS = "text,label\nok,a\nok,b\n"
SPLITS = {"train": "train", "eval": "test"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives are unpacked below the test's directory."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache" / "deep" / "deeper")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    for name in ("train.csv", "test.csv"):
        (place / name).write_text(ROWS)
    return place


def files(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}


def linked(archive: zipfile.ZipFile, name: str, target: str) -> None:
    one = zipfile.ZipInfo(name)
    one.external_attr = 0o120777 << 16
    archive.writestr(one, target)


def test_an_archive_writes_into_its_folder_only(tmp_path: Path) -> None:
    """Names with `..` or from the root, and links, must not lead what is unpacked anywhere else."""
    secret = tmp_path / "secret.csv"
    secret.write_text("mine")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        for name in ("../../../../x.csv", f"{tmp_path}/y.csv", "..\\z.csv", "train.csv"):
            archive.writestr(name, ROWS)
        linked(archive, "link.csv", str(secret))
    before = files(tmp_path)
    place = unpack(str(tmp_path / "slip.zip"), "slip.zip")
    assert files(tmp_path) - before == {str((place / name).relative_to(tmp_path)) for name in files(place)}
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert (place / "link.csv").read_text() == str(secret)
    with zipfile.ZipFile(tmp_path / "into.zip", "w") as archive:
        linked(archive, "into", str(tmp_path))
        archive.writestr("into/x.csv", ROWS)
    with pytest.raises((UserError, OSError)):
        unpack(str(tmp_path / "into.zip"), "into.zip")
    assert not (tmp_path / "x.csv").exists()


def test_an_archive_that_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that becomes a gigabyte, or whatever does not fit, is refused before anything is written."""
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train.csv", "w") as stream:
        for _ in range(300):
            stream.write(bytes(2**20))
    with pytest.raises(UserError, match="as no archive of texts does"):
        unpack(str(bomb), "bomb.zip")
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(small, "w") as archive:
        archive.writestr("train.csv", ROWS)
    usage: Any = type("Usage", (), {"free": 3})
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(UserError, match="GiB free"):
            unpack(str(small), "small.zip")
    assert not files(tmp_path / "cache")
    assert files(unpack(str(small), "small.zip")) == {"train.csv"}


def test_links_that_lead_around(folder: Path) -> None:
    """Two links to their own folder made a search through 2^40 folders."""
    for name in "abc":
        os.symlink(".", folder / name)
    assert sorted(path.name for path in data_files(folder)) == ["test.csv", "train.csv"]


@pytest.mark.parametrize("way", ["{secret}", "../secret.csv", "file://{secret}", "x/../../secret.csv"])
def test_a_data_card_names_files_of_its_folder_only(way: str, folder: Path, tmp_path: Path) -> None:
    """A card that names a file of the user put it into the training data, and from there into reports and models."""
    secret = tmp_path / "secret.csv"
    secret.write_text("text,label\nmine,a\nmine,b\n")
    named = way.format(secret=secret)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - {{split: train, path: '{named}'}}\n"
        "  - {split: test, path: test.csv}\n---\n"
    )
    with pytest.raises(UserError, match=r"names a (file outside of it|missing file)"):
        load_splits(Data(path=str(folder), splits=SPLITS), ROLES)


@pytest.mark.parametrize(
    "head", ["a: !!python/object/apply:os.mkdir [{mark}]", "configs: 3", "configs: [", "a: &a [*a]"]
)
def test_a_data_card_is_plain_data(head: str, folder: Path, tmp_path: Path) -> None:
    """The card is YAML that a library reads; it must construct nothing, and end."""
    mark = tmp_path / "mark"
    (folder / "README.md").write_text(f"---\n{head.format(mark=mark)}\n---\n")
    with contextlib.suppress(UserError):
        load_splits(Data(path=str(folder), splits=SPLITS), ROLES)
    assert not mark.exists()


def test_a_script_beside_the_data(folder: Path, tmp_path: Path) -> None:
    """Older versions of `datasets` ran a script with the name of the folder."""
    mark = tmp_path / "mark"
    (folder / f"{folder.name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    assert load_splits(Data(path=str(folder), splits=SPLITS), ROLES)["train"]["text"][:] == ["ok", "ok"]
    assert not mark.exists()
