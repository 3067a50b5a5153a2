"""Teachers with quantized weights. What needs torchao or bitsandbytes is left out where they are not installed."""

from __future__ import annotations

from typing import Any

import pytest
from runs import WriteRecipe, run

METHODS = ("int8", "llm_int8", "nf4")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cached", [False, True])
def test_run(method, cached, write_recipe: WriteRecipe, make_model: Any, tmp_path) -> None:
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1)), "quantization": method}
    if cached:
        teacher = {"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")}
    path = write_recipe(
        teacher=teacher,
        student={"name": "from_config", "overrides": {"num_hidden_layers": 1}},
        report={"latency": True},
    )
    report = run(path)
    print(report.teacher)
    print((tmp_path / "out/README.md").read_text()[:3000])
    report = run(path)
