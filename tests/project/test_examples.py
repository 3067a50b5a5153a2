"""The programs in `examples/` do what their pages say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(folder: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return `run.py` of an example as a module."""
    monkeypatch.syspath_prepend(EXAMPLES / folder)
    monkeypatch.delitem(sys.modules, "models", raising=False)
    spec = importlib.util.spec_from_file_location(f"{folder}_run", EXAMPLES / folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_chunker_teaches_an_automatizer_what_it_does_not_learn_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without this, the example could show a rule that a longer training learns as well, or a chunker still needed."""
    example = load("history_compression", monkeypatch)
    alone, longer, seen, taught, left = (value for _, value in example.run(tmp_path, lag=25, steps=250, seed=3))
    assert max(alone, longer) < 0.6
    assert seen == 2.0
    assert taught == 1.0
    assert left == 1.0
