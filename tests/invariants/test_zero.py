"""DeepSpeed ZeRO-2 and ZeRO-3 compute what one process computes, for every kind of model and of objective."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from invariants.cases import make_trainer, split
from invariants.projected import Hooked, Projected
from invariants.worker import NoNotes, grouped

from hf_distill.objectives import Attention, Hidden, KLDivergence, Labels, Span

WIDER: dict[str, Any] = {"teacher_width": 24}
KINDS = (
    *("classification", "token-classification", "masked-lm", "question-answering", "sentence-similarity"),
    *("causal-lm", "causal-lm-gpt2", "causal-lm-own-tokens", "sequence-to-sequence", "sequence-to-sequence-t5"),
)
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "projections, recomputed": (
        "classification",
        {"terms": [Hidden(projection="always"), Projected()], "gradient_checkpointing": True, **WIDER},
    ),
    "hooks": ("causal-lm", {"terms": [Projected(), Hooked(weight=0.1)]}),
    "attention": ("classification", {"terms": [Attention(), Labels()]}),
    "spans": ("causal-lm", {"terms": [Span(), Labels()]}),
    "head, recomputed and clipped": ("causal-lm", {"gradient_checkpointing": True, "max_grad_norm": 0.1}),
    "groups": (
        "classification",
        {
            "rows": grouped("classification"),
            "terms": [KLDivergence(group_weights="worst_group"), Labels(group_weights="inverse_frequency")],
        },
    ),
}


def trained(directory: Path, processes: int) -> dict[str, list[dict[str, float]]]:
    """Return what each step of each training has logged, and its evaluation at the end."""
    found = {}
    for name, (kind, settings) in CASES.items():
        steps: dict[str, Any] = {"num_train_epochs": 1, "dtype": torch.float32, **split(2, processes)}
        trainer = make_trainer(kind, directory, **steps, **settings)
        trainer.record.gradients = NoNotes()
        trainer.train()
        found[name] = [_figures(one) for one in (*trainer.record.logs, trainer.evaluate())]
    return found


def _figures(logs: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in logs.items() if "objective/" in key or "loss" in key or key == "grad_norm"}


@pytest.mark.parametrize("engine", engines.ZERO)
def test_like_one_process(engine: str, tmp_path: Path) -> None:
    """A head that is read while it is divided, a gradient that does not reach it, or one averaged twice, trains another
    student, and nothing says so."""
    (one,) = engines.run("one", partial(trained, tmp_path, 1), tmp_path / "one")
    found, _ = engines.run(engine, partial(trained, tmp_path, 2), tmp_path / "two")
    for name in CASES:
        for mine, theirs in zip(found[name], one[name], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-5, abs=1e-7), name
