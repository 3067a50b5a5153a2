"""Infer the task from a model or from the columns of a data set, for `DistillationTrainer` without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.data.label_names import label_names
from hf_distill.errors import UserError
from hf_distill.metrics.score import check, marks_spans, shown_kind
from hf_distill.metrics.table import DEFAULTS, PLAIN_TAGS
from hf_distill.models.inspection import base_model
from hf_distill.models.outline import is_of
from hf_distill.models.sentence_encoder import encoding_of
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.rows.tokens import TokenRows
from hf_distill.tasks import TASKS, SentenceSimilarity, Task
from hf_distill.tasks.evaluator import Evaluator, LogitsEvaluator, LossEvaluator

if TYPE_CHECKING:
    from torch import nn

    from hf_distill.rows.base import RowLayout


def tasks_of(model: nn.Module) -> list[Task]:
    """Return the tasks that fit a model's head, with their default settings; empty if none does.

    Args:
        model: The model, with or without a PEFT wrapper.
    """
    inside = base_model(model)
    if encoding_of(inside) is not None:
        return [SentenceSimilarity()]
    own = type(inside).__name__
    # "AutoModel" fits every class; sentence encoders were found above by their wrapper.
    return [task() for task in TASKS.values() if task.auto_class != "AutoModel" and is_of(own, task.auto_class)]


def reader_of(columns: Sequence[str], tasks: Sequence[Task], name: str) -> Task:
    """Return the task that can read a data set with these columns.

    Args:
        columns: Columns of the data set.
        tasks: Tasks that fit the student's head; at least one.
        name: Name of the data set in messages.

    Raises:
        UserError: No task can read the columns.
    """

    def known(task: Task) -> set[str]:
        found = set(task.roles) & set(columns)
        return found if all(role in found for role, needed in task.roles.items() if needed) else set()

    best = max(tasks, key=lambda task: len(known(task)))
    if known(best):
        return best
    wanted = "; or ".join(f"{', '.join(task.roles)} ({task.name})" for task in tasks)
    raise UserError(
        f"{name} has the columns {', '.join(columns)}, and the student cannot read them. Wanted, to be tokenised: "
        f"{wanted}. Rename them ({name}.rename_column('{columns[0]}', '{next(iter(tasks[0].roles))}')), or tokenise it."
    )


def evaluator_of(layout: RowLayout, config: Any, metrics: Sequence[str] = ()) -> Evaluator:
    """Return the evaluator for a tokenised eval split whose texts are not known.

    Args:
        layout: Which logits count.
        config: Configuration of the student, with class names and the size of the vocabulary.
        metrics: Names of the metrics, the headline metric first; empty for the task's default.

    Raises:
        UserError: The evaluation needs the texts, or a metric does not fit such predictions.
    """
    names = label_names(config)
    if isinstance(layout, TokenRows) and not layout.has_named_classes:
        classes = layout.classes or config.get_text_config().vocab_size
        return LossEvaluator(_metrics("tokens", classes, metrics), classes)
    if isinstance(layout, ExampleRows):
        kind = shown_kind(layout.kind, layout.width)
        width = max(layout.width, 2) if kind == "classes" else layout.width
        return LogitsEvaluator(_metrics(kind, width, metrics, names), layout.kind, names)
    if isinstance(layout, SimilarityRows):
        return LogitsEvaluator(_metrics("values", 1, metrics or ("spearman", "pearson")), "values")
    if isinstance(layout, TokenRows):
        usual = DEFAULTS["tags"] if marks_spans(names) else PLAIN_TAGS
        return LogitsEvaluator(_metrics("tags", config.num_labels, metrics or usual, names), "tags", names)
    raise UserError(
        f"what is predicted cannot be evaluated from the tokens alone ({type(layout).__name__}). Give the trainer data "
        "sets with columns of text."
    )


def _metrics(kind: Any, width: int, wanted: Sequence[str], names: Any = None) -> tuple[str, ...]:
    found = tuple(wanted) or DEFAULTS[kind]
    check(found, kind, width, names)
    return found
