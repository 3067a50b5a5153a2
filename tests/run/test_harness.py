"""Tasks of the lm-evaluation-harness: refused before training where they cannot run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hf_distill.errors import UserError
from hf_distill.models.loading import open_tokenizer
from hf_distill.run.harness import Harness, check_installed


def test_a_harness_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImportError after a training of hours."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hf-distill\[harness\]"):
        check_installed(["hellaswag"])


def test_a_task_of_ones_own(make_model: Any, tmp_path: Path) -> None:
    """The accuracy must be that of the choice which the model finds likelier, not of the order in the file."""
    pytest.importorskip("lm_eval")
    from transformers import AutoModelForCausalLM

    rows = [{"q": "the plot", "choices": [" is stale", " dull"], "a": 0}]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = tmp_path / "facts.yaml"
    task.write_text(
        "task: facts\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'facts.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: a\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        "utf-8",
    )
    path = make_model("llama-lm", seed=3)
    found = Harness([str(task)]).evaluate(AutoModelForCausalLM.from_pretrained(path), open_tokenizer(str(path)), 2)
    assert found["facts acc"] in (0.0, 1.0)
    with pytest.raises(UserError, match="cannot load its tasks nonsense"):
        Harness(["nonsense"])
