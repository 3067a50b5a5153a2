"""Teachers whose layers are split over two processes (tensor parallelism), each of which trains on rows of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import engines
import pytest
import torch
import transformers
from invariants import cases
from invariants.cases import largest_difference, make_trainer, split, train

from hf_distill import evaluate_distillation
from hf_distill.objectives import Hidden, InputGradient, KLDivergence, Labels, Objective

TERMS: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3), Hidden(weight=0.2))
SETTINGS: dict[str, Any] = {"num_train_epochs": 1, "train_sampling_strategy": "random"}


def with_teacher(teacher: Any, output: Path, **settings: Any) -> Any:
    student, _ = cases.make_models("causal-lm")
    with mock.patch.object(cases, "make_models", return_value=(student, teacher)):
        return make_trainer("causal-lm", output, **{"terms": TERMS, **SETTINGS, **settings})


def halves(directory: Path) -> Any:
    """Return a teacher of which this process has a half."""
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(tp_size=2)
    teacher = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float64, distributed_config=config)
    weight: Any = next(teacher.parameters())
    assert weight.to_local().numel() < weight.numel()
    return teacher.eval()


def test_two_processes_share_a_teacher(tmp_path: Path) -> None:
    """Run on other rows in each process, a split teacher gives sums of two halves that do not belong together: numbers
    that look like logits."""
    config = cases.make_models("causal-lm")[1].config
    config.num_key_value_heads = 2
    torch.manual_seed(5)
    teacher = transformers.LlamaForCausalLM(config).to(torch.float64).eval()
    teacher.save_pretrained(tmp_path / "teacher")

    def work() -> Any:
        trainer = with_teacher(halves(tmp_path / "teacher"), tmp_path / "out", **split(4, processes=2))
        record, refused = train(trainer), ""
        metrics = trainer.evaluate()
        wrong = (
            lambda: with_teacher(trainer.teacher, tmp_path, terms=[InputGradient()]),
            lambda: evaluate_distillation(trainer),
        )
        for one in wrong:
            try:
                one()
            except ValueError as error:
                refused += str(error)
        return record, metrics, refused

    (record, metrics, refused), _ = engines.run("ddp", work, tmp_path / "results")
    one = with_teacher(teacher, tmp_path / "one", **split(8))
    assert largest_difference(train(one), record) < 1e-9
    assert one.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-9)
    assert refused.count("split over processes") == 2
