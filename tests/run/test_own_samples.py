"""Every model writes after the same held-out prompts: the figures of the report, against NumPy and models by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run, unfinish

from hf_distill.errors import UserError
from hf_distill.models.loading import open_tokenizer

PROMPTS = ["the plot", "a great film with a clever cast and a moving story is", "dull", "it was a very bad"]
COMPLETIONS = [" is stale", " good", " and funny !", " story !"]
NEW = 6


@pytest.fixture
def on_policy(write_recipe: Any, make_model: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write the recipe of a student that writes in training; keyword arguments replace sections."""

    def write(**sections: Any) -> Path:
        data = tmp_path / "data.jsonl"
        pairs = list(zip(PROMPTS, COMPLETIONS, strict=True)) * 3
        data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs), "utf-8")
        training = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 3}
        return write_recipe(
            **{
                "task": "text-generation",
                "data": {"path": {"train": str(data), "validation": str(data)}, "max_length": 40},
                "teacher": {"name": "pretrained", "model": str(make_model("llama-lm", seed=3))},
                "student": {"name": "copy_layers", "layers": 1},
                "objectives": [{"name": "reverse_kl"}],
                "completions": {"by": "student", "max_new_tokens": NEW},
                "evaluation": {"own_samples": 9, "speculative": True},
                "report": {"baseline": True, "latency": False},
                **sections,
                "training": {**training, **sections.get("training", {})},
            }
        )

    return write


def by_hand(teacher: Any, student: Any, rows: list[tuple[list[int], list[int]]], width: int) -> dict[str, float]:
    """Return the figures of completions, one sequence at a time, in float64."""
    sums: dict[str, float] = dict.fromkeys(("reverse_kl", "forward_kl", "acceptance", "teacher_loss", "top_overlap"), 0)
    tokens = 0
    for prompt, written in rows:
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *written]])
            p, q = (
                one(input_ids=ids).logits[0, len(prompt) - 1 : -1, :width].double().softmax(-1).numpy()
                for one in (teacher, student)
            )
        tokens += len(written)
        sums["reverse_kl"] += (q * np.log(q / p)).sum()
        sums["forward_kl"] += (p * np.log(p / q)).sum()
        sums["acceptance"] += np.minimum(p, q).sum()
        sums["teacher_loss"] -= np.log(p[np.arange(len(written)), written]).sum()
        for row in range(len(written)):
            both = set(np.argsort(-p[row])[:16]) & set(np.argsort(-q[row])[:16])
            sums["top_overlap"] += len(both) / 16
    return {name: total / tokens for name, total in sums.items()}


def test_the_figures_of_own_samples(
    on_policy: Callable[..., Path], make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shift by one token, a prompt that counts, the models exchanged: each gives a figure that looks like one."""
    from transformers import AutoModelForCausalLM

    import hf_distill.run.own_samples as module

    kept: dict[int, Any] = {}
    write = module.OwnWriter.write

    def noted(self: Any, model: Any) -> Any:
        kept[len(kept)] = (self, write(self, model))
        return kept[len(kept) - 1][1]

    monkeypatch.setattr(module.OwnWriter, "write", noted)
    monkeypatch.setattr("hf_distill.run.fit.remove_checkpoints", lambda *_, **__: None)
    path = on_policy()
    report = run(path)
    tokenizer = open_tokenizer(str(tmp_path / "out"))
    own = report.own_samples
    assert (own.prompts, own.new_tokens, own.left_out, own.sparse) == (9, NEW, "", False)
    assert list(own.figures) == ["student", "baseline", "teacher"]
    teacher = AutoModelForCausalLM.from_pretrained(str(make_model("llama-lm", seed=3)))
    models = {"student": tmp_path / "out", "baseline": tmp_path / "out/_runs/baseline"}
    by_teacher, *others = [(one[0].prompts.ids, one[1]) for one in kept.values()]
    kept.clear()
    for (name, where), (prompts, written) in zip(models.items(), others, strict=True):
        model = AutoModelForCausalLM.from_pretrained(where)
        rows = [(list(prompt), list(one.ids)) for prompt, one in zip(prompts, written, strict=True)]
        expected = by_hand(teacher, model, rows, len(tokenizer))
        assert {key: own.figures[name][key] for key in expected} == pytest.approx(expected, rel=1e-4)
        lengths = [len(one.ids) for one in written]
        assert own.figures[name]["completion_length"] == np.mean(lengths)
        assert own.figures[name]["ended"] == np.mean([one.ended for one in written])
        theirs = [(list(prompt), list(one.ids)) for prompt, one in zip(*by_teacher, strict=True)]
        there = by_hand(teacher, model, theirs, len(tokenizer))
        assert own.figures[name]["draft_acceptance"] == pytest.approx(there["acceptance"], rel=1e-4)
        assert own.figures[name]["exposure_error"] == pytest.approx(
            expected["forward_kl"] / there["forward_kl"] - 1, rel=1e-3
        )
    difference = own.differences["reverse_kl"]
    assert difference.value == pytest.approx(
        own.figures["student"]["reverse_kl"] - own.figures["baseline"]["reverse_kl"]
    )
    assert difference.error > 0
    # The same draws: what a model writes does not change while it does not.
    assert [list(sample.texts) for sample in report.samples] == [
        ["teacher", "step 0", "step 2", "student", "baseline"]
    ] * 4
    assert all("samples" not in entry for entry in report.history["student"])
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "On their own samples" in page
    assert "What they write" in page
    assert type(report).load(tmp_path / "out").own_samples == own
    speed = report.speculation
    assert (speed.prompts, speed.new_tokens, speed.greedy.same, speed.sampled.same) == (8, NEW, 1.0, None)
    assert min(speed.greedy.alone, speed.greedy.assisted, speed.sampled.alone, speed.sampled.assisted) > 0
    assert "The student as a draft of the teacher" in page
    # After a resume, the texts from before are those of the student as it was then.
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    unfinish(tmp_path / "out")
    again = run(path)
    assert (again.samples, again.own_samples) == (report.samples, own)


def test_only_models_that_continue_texts_write(write_recipe: Any) -> None:
    """A classifier asked to write would fail after hours of training."""
    from hf_distill import load_recipe
    from hf_distill.run.dry_run import check

    for key, value in (("own_samples", 5), ("speculative", True)):
        with pytest.raises(UserError, match=f"evaluation.{key}: for models that continue texts"):
            check(load_recipe(write_recipe(evaluation={key: value})))
