"""Runs with a cached teacher, and how often it was asked."""

from __future__ import annotations

from typing import Any

import pytest


def cached(model: Any, **settings: Any) -> dict[str, Any]:
    return {"name": "cached", "teacher": {"name": "pretrained", "model": str(model)}, **settings}


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes of all batches that a cache asks a teacher about."""
    from hf_distill.cache.recorder import Recorder

    seen: list[int] = []
    real = Recorder.__call__

    def counting(self: Any, batch: Any, seed: int = 0) -> Any:
        seen.append(len(batch["input_ids"]))
        return real(self, batch, seed)

    monkeypatch.setattr(Recorder, "__call__", counting)
    return seen
