"""Columns of labels, and how they are read: for the tests of tasks with classes."""

from __future__ import annotations

from functools import partial
from typing import Any

from prepared import refused

from hf_distill.tasks.label_space import read_labels
from hf_distill.tasks.problem_type import Labelling


def head(*names: str, width: int | None = None, problem: str | None = None) -> Any:
    """Return the configuration of a model with a trained head."""
    from transformers import BertConfig

    settings: dict[str, Any] = {"id2label": dict(enumerate(names))} if names else {"num_labels": width}
    return BertConfig(**settings, problem_type=problem)


def splits(train: Any, eval: Any = None, feature: Any = None) -> dict[str, Any]:
    """Return datasets with a `label` column."""
    from datasets import Dataset, Features

    features = Features({"label": feature}) if feature is not None else None
    given = {"train": train, "eval": eval}
    return {
        name: Dataset.from_dict({"label": labels}, features=features)
        for name, labels in given.items()
        if labels is not None
    }


def read(
    train: Any, eval: Any = None, *, feature: Any = None, problem: Any = None, names: Any = None, teacher: Any = None,
    student: Any = None,
) -> Labelling:  # fmt: skip
    return read_labels(
        splits(train, eval, feature) if train is not None or eval is not None else {},
        problem=problem,
        names=names,
        teacher=teacher,
        student=student,
    )


mistake = partial(refused, read)


def class_label(*names: str) -> Any:
    from datasets import ClassLabel

    return ClassLabel(names=list(names))


def equal(one: list[Any], other: list[Any]) -> bool:
    """Compare with NaN equal to NaN."""
    return repr(one) == repr(other)
