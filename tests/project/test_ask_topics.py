"""scripts/ask_topics.py: questions about topics, as prompts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


def test_a_held_out_topic_is_asked_about_in_no_training_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question about a topic of the training, among the held-out ones, would make what is learned look general."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    script = importlib.import_module("ask_topics")
    arguments = ["--topics", str(tmp_path), "--into", str(tmp_path / "questions")]
    assert script.main(arguments) == 2
    assert "python scripts/fetch_smollm2.py" in capsys.readouterr().err
    for split, topic in (("train", "string-methods"), ("validation", "while")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"topic": topic, "text": "..."}) + "\n", encoding="utf-8")
    assert script.main(arguments) == 0
    for split, topic in (("train", "string methods"), ("validation", "while")):
        lines = (tmp_path / "questions" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [json.loads(line)["prompt"] for line in lines]
        assert len(set(asked)) == 4
        assert all(one.startswith("Question: ") and one.endswith("\nAnswer:") and topic in one for one in asked)
