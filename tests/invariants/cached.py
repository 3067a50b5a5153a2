"""Live and cached teachers side by side, for tests in one process and in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from invariants.cases import KINDS, Collator, NotingTrainer, arguments, make_models, make_rows, objectives, split

from hf_distill.cache.cache import Cache
from hf_distill.cache.format import Kept
from hf_distill.cache.replay import TrainingData
from hf_distill.cache.requirements import states_of
from hf_distill.models.layers import States
from hf_distill.objectives import Hidden, KLDivergence, Labels, Objective, Patient
from hf_distill.rows.inferred import infer_layout

SPARSE_KINDS = tuple(kind for kind in KINDS if kind.startswith(("masked", "causal", "sequence")))
SOFT: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3))
# Whole layers, and single vectors; without anything to learn, which is tested elsewhere.
FEATURES: dict[str, tuple[Objective, ...]] = {
    "token-classification": (Hidden(layers=((0, 1), (1, 2))),),
    "causal-lm": (Patient(layers=((1, 2),), token="last"), Hidden(layers=((1, 1),), loss="cosine")),
}
EXACT: Any = {"top": 1000, "temperature": 2.0, "precision": "float32", "hidden_precision": "float32"}


def parts(kind: str, **models: Any) -> tuple[Any, Any, TrainingData]:
    """Return student, teacher and data of a kind; the train split holds most of its examples twice."""
    student, teacher = make_models(kind, **{"dtype": torch.float64, **models})
    teacher.eval()
    rows = [*make_rows(kind), *make_rows(kind, 16)]
    data = TrainingData(
        datasets.Dataset.from_list(rows),
        datasets.Dataset.from_list(make_rows(kind, 13)),
        Collator(),
        infer_layout(student, teacher),
    )
    return student, teacher, data


def cache_of(teacher: Any, data: TrainingData, path: Path, **settings: Any) -> Cache:
    return Cache(data, teacher, Kept.of(teacher, data.layout, **{**EXACT, **settings}), {}, path)


def capture(teacher: Any, data: TrainingData, path: Path, **settings: Any) -> Cache:
    cache = cache_of(teacher, data, path, **settings)
    cache.fill(arguments(path.parent / "args", per_device_eval_batch_size=4))
    return cache


def directory_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def trainer(student: Any, teacher: Any, data: TrainingData, path: Path, terms: Any, **settings: Any) -> NotingTrainer:
    return NotingTrainer(
        student,
        arguments(path, **{"num_train_epochs": 3, **split(4), **settings}),
        teacher=teacher,
        objectives=terms,
        layout=data.layout,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
    )


def states_for(features: tuple[Objective, ...], student: Any, teacher: Any) -> tuple[States, ...]:
    return states_of(features, (student.config, teacher.config))


def terms_of(kind: str) -> tuple[Objective, ...]:
    return SOFT if kind in SPARSE_KINDS else objectives(kind)
