"""Targets that are NaN or infinite are neither cached nor read from a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariants.cached import cache_of, capture, parts
from invariants.cases import arguments

from hf_distill.cache import cache as module
from hf_distill.cache import shards as cache_format
from hf_distill.cache.recorder import Recorder
from hf_distill.errors import NotFinite, UserError
from hf_distill.models.layers import States

NAN, INF = float("nan"), float("inf")
SETTINGS: Any = {"states": (States(1), States(2, "mean"))}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_EXAMPLES", 4)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("kind", ["classification", "regression", "token-classification", "question-answering",
                                  "causal-lm", "masked-lm", "sentence-similarity"])  # fmt: skip
def test_they_are_not_cached(kind: str, value: float, tmp_path: Path) -> None:
    """A cache of them looks complete, and every student that is trained from it learns nothing."""
    _, teacher, data = parts(kind)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.view(-1)[0] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        capture(teacher, data, tmp_path / "cache")
    assert not (tmp_path / "cache" / cache_format.CACHE).exists()
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_the_example_is_named_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One example of a hundred thousand: the hours spent on the others are not lost."""
    _, teacher, data = parts("classification")
    real, calls = Recorder.__call__, []

    def spoilt(self: Any, batch: Any, seed: int) -> Any:
        calls.append(1)
        columns = real(self, batch, seed)
        if len(calls) == 3:
            columns["logits"][1] = columns["logits"][1] * NAN
        return columns

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", spoilt)
        with pytest.raises(NotFinite, match=r"^the teacher's targets for row \d+ of the (train|eval) split are NaN"):
            capture(teacher, data, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
    capture(teacher, data, tmp_path / "cache")


def test_classes_that_a_teacher_rules_out_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logit of -inf is a probability of 0, with which training from the teacher itself works too."""
    _, teacher, data = parts("classification")
    real = Recorder.__call__

    def ruling_out(self: Any, batch: Any, seed: int) -> Any:
        columns = real(self, batch, seed)
        for row in columns["logits"]:
            row[0] = -INF
        return columns

    monkeypatch.setattr(Recorder, "__call__", ruling_out)
    capture(teacher, data, tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("classification", "logits"),
        ("classification", "hidden_1"),
        ("token-classification", "logits"),
        ("causal-lm", "log_probabilities"),
        ("causal-lm", "remaining"),
        ("causal-lm", "hidden_2_mean"),
    ],
)
def test_they_are_not_read(kind: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache from elsewhere may hold anything, and have the right checksums."""
    _, teacher, data = parts(kind)
    settings = {**SETTINGS, "hidden_precision": "float16"}
    real, calls = Recorder.__call__, []

    def spoilt(self: Any, batch: Any, seed: int) -> Any:
        calls.append(1)
        columns = real(self, batch, seed)
        if len(calls) == 2:
            values = columns[column][1]
            if isinstance(values, bytes):
                numbers = np.frombuffer(values, "float32").copy()
                numbers[-1] = NAN
                columns[column][1] = numbers.tobytes()
            else:
                columns[column][1] = np.where(np.arange(values.size).reshape(values.shape) == 1, NAN, values).astype(
                    values.dtype
                )
        return columns

    if kind == "causal-lm":
        settings["precision"] = "float32"
        teacher = teacher.float()
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", spoilt)
        patch.setattr(module, "check_recorded", lambda *_: None)
        patch.setattr(module, "check_shards", lambda *_: None)
        capture(teacher, data, tmp_path / "cache", **settings)
    again = cache_of(teacher, data, tmp_path / "cache", **settings)
    with pytest.raises(NotFinite, match=rf"00001-of.*row 1, column {column}") as refused:
        again.fill(arguments(tmp_path / "args"))
    assert refused.value.key == "path"
    assert json.loads((tmp_path / "cache" / cache_format.CACHE).read_text())  # for whoever wants to look at it
