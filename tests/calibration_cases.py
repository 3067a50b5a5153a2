"""A model of each task, and rows on which it is measured, as a run prepares them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from hf_distill.models.calibration import CalibrationRows
from hf_distill.models.loading import Head, load_model, open_config, open_tokenizer
from hf_distill.tasks import TASKS, Setup

TEXTS = ["a great film", "dull", "the plot is moving and the cast is charming", "bad !"]
FOR = {
    "text-classification": {"text": TEXTS, "label": ["positive", "negative"] * 2},
    "token-classification": {"tokens": [text.split() for text in TEXTS], "tags": [[0] * len(t.split()) for t in TEXTS]},
    "question-answering": {
        "id": list("abcd"),
        "question": ["is it ?"] * 4,
        "context": TEXTS,
        "answers": [{"text": [text[:3]], "answer_start": [0]} for text in TEXTS],
    },
    "fill-mask": {"text": TEXTS},
    "text-generation": {"text": TEXTS},
    "summarization": {"text": TEXTS, "summary": ["great film", "dull", "moving", "bad"]},
    "sentence-similarity": {"text": TEXTS, "text_pair": TEXTS[::-1]},
}
SETTINGS: dict[str, Any] = {"question-answering": {"stride": 4}}
# Task, and kind of model.
CASES = [
    ("text-classification", "bert"),
    ("text-classification", "gpt2"),
    ("token-classification", "bert-tokens"),
    ("question-answering", "bert-qa"),
    ("fill-mask", "bert-mlm"),
    ("text-generation", "llama-lm"),
    ("summarization", "t5"),
    ("summarization", "bart"),
    ("sentence-similarity", "bert-bare"),
]


def measured_task(task: str, kind: str, make_model: Any) -> tuple[PreTrainedModel, Head, CalibrationRows]:
    """Return a model of a kind with the task's head, that head, and four rows."""
    path = make_model(kind)
    tokenizer = open_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config, data = open_config(str(path)), Dataset.from_dict(FOR[task])
    head = config if task.endswith("classification") else None
    prepared = TASKS[task](**SETTINGS.get(task, {})).prepare(
        {"train": data, "eval": data},
        Setup(tokenizer=tokenizer, teacher=head, student=head, configs=(config,), max_length=32),
    )
    teacher, _ = load_model(str(path), prepared.head)
    rows = CalibrationRows(prepared.train, prepared.collator, 2, prepared.labelled, prepared.layout)
    return teacher, prepared.head, rows
