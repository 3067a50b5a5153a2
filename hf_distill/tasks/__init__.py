"""The tasks: what an example is, which labels it has, how models are evaluated. `TASKS` lists them by pipeline tag."""

from __future__ import annotations

from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.fill_mask import FillMask
from hf_distill.tasks.question_answering import QuestionAnswering
from hf_distill.tasks.sentence_similarity import SentenceSimilarity
from hf_distill.tasks.sequence_to_sequence import Summarization, Translation
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_generation import TextGeneration
from hf_distill.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "fill-mask": FillMask,
    "question-answering": QuestionAnswering,
    "sentence-similarity": SentenceSimilarity,
    "summarization": Summarization,
    "text-classification": TextClassification,
    "text-generation": TextGeneration,
    "token-classification": TokenClassification,
    "translation": Translation,
}

__all__ = [
    "TASKS",
    "FillMask",
    "Prepared",
    "QuestionAnswering",
    "SentenceSimilarity",
    "Setup",
    "Summarization",
    "Task",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "Translation",
]
