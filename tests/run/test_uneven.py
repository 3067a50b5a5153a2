"""Fewer rows than two processes need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engines
import pytest
from cached_runs import cached
from runs import WriteRecipe, run


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_fewer_rows_than_processes(kind: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A process without an eval row, or without a shard of the cache, would wait for ever, or count a row twice; a row
    that is trained on twice is said."""
    model = str(make_model("bert", seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    rows = ["great film,positive", "dull plot,negative", "funny cast,positive"]
    for name, some in (("train", rows), ("eval", rows[:1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence,label", *some, ""]))
    recipe = write_recipe(
        data={
            "path": {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "eval.csv")},
            "columns": {"text": "sentence"},
        },
        teacher=cached(model) if kind == "cached" else {"name": "pretrained", "model": model},
        student={"name": "copy_layers", "layers": 2, "model": model},
        training={"max_steps": 1},
    )

    def words(name: str, size: int) -> list[str]:
        path = [f"teacher.path={tmp_path / name / 'targets'}"] if kind == "cached" else []
        return [f"training.output_dir={tmp_path / name}", f"training.per_device_train_batch_size={size}", *path]

    assert engines.command("ddp", recipe, *words("two", 2), directory=tmp_path / "logs") == [0, 0]
    assert "repeats 1 row, so" in (tmp_path / "logs" / "0.log").read_text()
    run(recipe, *words("one", 4))
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    for whose in ("teacher", "student"):
        assert one[whose]["metrics"] == two[whose]["metrics"]
    assert one["agreement"] == two["agreement"]
    first = [report["history"]["student"][0]["loss"] for report in (one, two)]
    assert first[0] != pytest.approx(first[1], rel=1e-6)  # of 3 rows, and of 4
