"""The contract of `hf_distill/tasks/evaluator.py`, held by the evaluator of every task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_distill.data.example_columns import inputs_of
from hf_distill.metrics.score import check_names
from hf_distill.models.loading import open_config, open_tokenizer
from hf_distill.tasks import TASKS, Prepared, Setup
from hf_distill.tasks.evaluator import LogitsEvaluator, Predictions

TEXTS = ["a great film", "a dull story", "the plot was moving", "the cast is bad and the film boring"] * 8
TITLES = ["great film", "dull story", "moving plot", "bad cast"] * 8
# Task -> kind of model, columns of the data.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fill-mask": ("bert-mlm", {"text": TEXTS}),
    "question-answering": (
        "bert-qa",
        {
            "question": ["what was it"] * 32,
            "context": TEXTS,
            "answers": [{"text": [text[-5:]], "answer_start": [len(text) - 5]} for text in TEXTS],
        },
    ),
    "sentence-similarity": ("bert-bare", {"text": TEXTS, "text_pair": TITLES, "label": [0.1, 0.2, 0.7, 0.9] * 8}),
    "summarization": ("t5", {"text": TEXTS, "summary": TITLES}),
    "text-classification": ("bert", {"text": TEXTS, "label": ["positive", "negative", "positive", "negative"] * 8}),
    "text-generation": ("llama-lm", {"text": TEXTS}),
    "token-classification": (
        "bert-tokens",
        {"tokens": list(map(str.split, TEXTS)), "tags": [["O"] * (len(one.split()) - 1) + ["B-X"] for one in TEXTS]},
    ),
    "translation": ("bart", {"source": TITLES, "target": [f"{text} with a clever plot" for text in TEXTS]}),
}  # fmt: skip


@pytest.fixture(params=TASKS)
def prepared(request: pytest.FixtureRequest, make_model: Any) -> Prepared:
    from datasets import Dataset

    kind, columns = CASES[request.param]
    path: Path = make_model(kind)
    setup = Setup(open_tokenizer(str(path)), configs=(open_config(str(path)),) * 2)
    data = Dataset.from_dict({**columns, "example_group": ["a", "b", "b", "c"] * 8})
    return TASKS[request.param]().prepare({"train": data, "eval": data}, setup)


def predicted(prepared: Prepared, right: float, seed: int) -> Predictions:
    """Return what a model predicts that is right with a share of the rows."""
    rng = np.random.default_rng(seed)
    evaluator: Any = prepared.evaluator
    examples = len(prepared.eval)
    losses = np.stack([rng.normal(9.0 - 3 * right, 0.5, examples), np.full(examples, 3.0)], -1)
    if not evaluator.needs_logits:
        known = getattr(getattr(evaluator, "generator", None), "references", [])
        return Predictions(losses=losses, texts=[text if rng.random() < right else "a film" for text in known])
    batch = prepared.collator([inputs_of(row) for row in prepared.eval])
    found: Any = prepared.layout.labels(batch)
    labels: Any = found.numpy()
    sure = rng.random(len(labels)) < right
    if getattr(evaluator, "kind", "") == "values":
        logits = np.where(sure, labels, rng.random(len(labels)))
    elif labels.ndim == 2 and labels.shape[1] == 2:  # start and end
        logits = rng.normal(size=(*batch["input_ids"].shape, 2))
        for row, ends in enumerate(labels):
            logits[row, ends, [0, 1]] += 9 * sure[row]
    else:
        width = len(prepared.label_names or ())
        truth = np.eye(width)[np.maximum(labels, 0)]
        logits = rng.normal(size=truth.shape) + 9 * truth * sure.reshape(-1, *[1] * labels.ndim)
    counted = (labels >= 0).reshape(examples, -1).sum(1)
    return Predictions(logits, labels, np.stack([losses[:, 0], counted], -1))


def test_every_task_has_a_whole_evaluator(prepared: Prepared) -> None:
    """A task without noise, chance or units: its report says nothing of them, nor for whom it got worse, and nobody
    knows whether that is meant."""
    evaluator = prepared.evaluator
    check_names(evaluator.names)
    student, baseline = predicted(prepared, 0.9, 1), predicted(prepared, 0.3, 2)
    metrics, other = evaluator.evaluate(student), evaluator.evaluate(baseline)
    assert set(metrics) == set(evaluator.names)
    assert all(math.isfinite(value) for value in metrics.values())
    assert evaluator.headline == evaluator.names[0]
    gain = metrics[evaluator.headline] - other[evaluator.headline]
    assert gain * (1 if evaluator.greater_is_better else -1) > 0
    error = evaluator.gain_error(student, baseline)
    assert error is not None
    assert 0 < error < abs(gain)
    assert evaluator.gain_error(student, student) == 0
    # Two runs on the same rows have the noise of their difference from what each of them stores.
    apart = np.subtract(evaluator.resampled(student), evaluator.resampled(baseline))
    assert np.std(apart, ddof=1) == pytest.approx(error)
    units = evaluator.units(student)
    assert units is not None
    assert evaluator.has_units
    assert prepared.groups is not None
    assert len(prepared.groups.eval) == len(units.counted)
    assert units.value() == pytest.approx(metrics[evaluator.headline])
    half = np.arange(len(units.counted)) % 2 == 0
    assert all(math.isfinite(units.part(some).value()) for some in (half, ~half))
    assert evaluator.chooses_classes == (evaluator.choices(student) is not None)
    chance = evaluator.chance(student)
    assert (chance is None) == evaluator.generates(evaluator.headline)
    if chance is not None:
        assert not chance.explains(metrics[evaluator.headline], greater_is_better=evaluator.greater_is_better)
    rows = evaluator.count(student)
    assert rows == (sum(map(len, CASES["token-classification"][1]["tags"])) if "span_f1" in metrics else 32)
    assert set(evaluator.in_training) == set(evaluator.names) - {"perplexity"}


@pytest.mark.parametrize(
    ("task", "settings", "setup", "changes"),
    [
        ("text-generation", {}, {"max_length": 4}, {"perplexity": ["tokens"]}),
        ("fill-mask", {"mask_share": 0.5}, {}, {"perplexity": ["tokens"]}),
        ("fill-mask", {"loss_on": "all"}, {}, {}),
        ("summarization", {"max_new_tokens": 7}, {}, {"rouge2": ["ways to generate"]}),
        ("summarization", {"num_beams": 3}, {}, {"rouge2": ["ways to generate"]}),
        ("summarization", {"max_target_length": 2}, {}, {"perplexity": ["tokens"]}),
        ("text-classification", {}, {"label_names": ["positive", "negative"]}, {"f1": ["classes"]}),
        ("text-classification", {}, {"max_length": 4}, {}),
    ],
)
def test_what_a_metric_depends_on_beside_the_rows(
    task: str, settings: dict[str, Any], setup: dict[str, Any], changes: dict[str, list[str]], make_model: Any
) -> None:
    """Two runs on the same rows whose metrics are of other tokens, texts or classes have a winner that is none."""
    from datasets import Dataset

    kind, columns = CASES[task]
    path, data = str(make_model(kind)), Dataset.from_dict(columns)

    def conditions(task_settings: dict[str, Any], **given: Any) -> Any:
        made = Setup(open_tokenizer(path), configs=(open_config(path),) * 2, **given)
        prepared = TASKS[task](**task_settings).prepare({"train": data, "eval": data}, made)
        return prepared.evaluator.conditions(prepared.eval)

    one, other = conditions({}), conditions(settings, **setup)
    assert one == conditions({})
    assert one.keys() == other.keys()
    found = {name: [what for what in one[name] if one[name][what] != other[name][what]] for name in one}
    assert {name: what for name, what in found.items() if what and name in (*changes, next(iter(one)))} == changes


def test_predictions_of_nan_are_no_predictions() -> None:
    """`argmax` takes NaN for class 0: the group of that class would seem to be the best of a broken model."""
    logits, labels = np.full((40, 2), np.nan), np.zeros(40, dtype=int)
    units = LogitsEvaluator(("accuracy",), "classes").units(Predictions(logits, labels))
    assert units is not None
    value: Any = units.value()
    assert math.isnan(value)
    assert "NaN" in value.reason
