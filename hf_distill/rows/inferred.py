"""Find the row layout from the student's class, for users of the trainer who name no task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.auto import modeling_auto

from hf_distill.data.label_names import activation, label_names, positions
from hf_distill.models.inspection import base_model
from hf_distill.models.sentence_encoder import encoding_of
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.rows.spans import SpanRows
from hf_distill.rows.tokens import TargetRows, TokenRows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


def infer_layout(student: nn.Module, teacher: nn.Module | None, processing_class: Any = None) -> RowLayout:
    """Return the layout for the student's class, from both models' configurations.

    Args:
        student: A sequence classifier, token classifier, question answerer, masked, causal or encoder-decoder language
            model (PEFT-wrapped or not).
        teacher: Model of the same kind.
        processing_class: A tokenizer, or a processor that has one; its size tells which columns of a head over a
            vocabulary are tokens.

    Raises:
        ValueError: The class is not one of these, or the two heads do not fit each other.
    """
    student = base_model(student)
    if encoding_of(student) is not None:
        return SimilarityRows()
    name = type(student).__name__
    config: Any = getattr(student, "config", None)
    theirs: Any = None if teacher is None else getattr(base_model(teacher), "config", None)
    if config is not None and config.is_encoder_decoder and name in _classes("SEQ_TO_SEQ_CAUSAL_LM"):
        return TargetRows(**_columns(config, theirs, processing_class))
    if config is not None and name in _classes("SEQUENCE_CLASSIFICATION"):
        return _example_rows(config, theirs)
    if config is not None and not config.is_encoder_decoder:
        if name in _classes("TOKEN_CLASSIFICATION"):
            return _label_rows(config, theirs)
        if name in _classes("QUESTION_ANSWERING"):
            return SpanRows()
        causal = name in _classes("CAUSAL_LM")
        if causal or name in _classes("MASKED_LM"):
            return TokenRows(shift=causal, **_columns(config, theirs, processing_class))
    raise ValueError(
        f"cannot tell which logits of {name} count. Wanted: a sequence classifier, a token classifier or a question "
        "answerer without decoder, or a masked, causal or encoder-decoder language model. For another head pass "
        "`layout=` (a hf_distill.rows.base.RowLayout)."
    )


def _classes(kind: str) -> set[str]:
    names: set[str] = set()
    for value in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values():
        names.update([value] if isinstance(value, str) else value)
    return names


def _example_rows(student: PretrainedConfig, teacher: PretrainedConfig | None) -> ExampleRows:
    width = int(student.num_labels or 0)
    columns = _teacher_columns(student, teacher)
    yes_or_no = width == 1 and student.problem_type is None and "Sigmoid" in (activation(student), activation(teacher))
    kind = "binary" if yes_or_no or student.problem_type == "multi_label_classification" else "classes"
    if kind == "classes" and (width == 1 or student.problem_type == "regression"):
        return ExampleRows(kind="values", width=width, teacher_columns=columns)
    return ExampleRows(kind=kind, width=width, teacher_columns=columns)  # type: ignore[arg-type]


def _label_rows(student: PretrainedConfig, teacher: PretrainedConfig | None) -> TokenRows:
    columns = _teacher_columns(student, teacher)
    return TokenRows(teacher_columns=None if columns is None or columns == tuple(sorted(columns)) else columns)


def _teacher_columns(student: PretrainedConfig, teacher: PretrainedConfig | None) -> tuple[int, ...] | None:
    """Return the teacher's column for each of the student's labels; None if the models have no label names."""
    if teacher is None:
        return None
    if teacher.num_labels != student.num_labels:
        raise ValueError(f"the student's head has {student.num_labels} labels, the teacher's {teacher.num_labels}.")
    ours, theirs = label_names(student), label_names(teacher)
    return positions(ours, theirs, whose="the teacher") if ours and theirs else None


def _columns(student: PretrainedConfig, teacher: PretrainedConfig | None, processing_class: Any) -> dict[str, Any]:
    """Return `classes` and `left_out` of a layout; tokens that the teacher's head does not have are left out."""
    both = vocabulary(student, teacher, processing_class)
    own = vocabulary(student, None, processing_class)
    if both is None or own is None:
        return {"classes": both}
    return {"classes": own, "left_out": tuple(range(both, own))}


def vocabulary(student: PretrainedConfig, teacher: PretrainedConfig | None, processing_class: Any) -> int | None:
    """Return how many columns of the heads are tokens; None for all."""
    widths: set[int] = {config.get_text_config().vocab_size for config in (student, teacher) if config is not None}
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if hasattr(tokenizer, "get_vocab"):
        last: int = max(tokenizer.get_vocab().values())
        return min(*widths, last + 1)
    if len(widths) > 1:
        raise ValueError(
            f"the heads have {' and '.join(map(str, sorted(widths)))} columns. Pass the tokenizer as "
            "`processing_class`, so that padding columns can be told from tokens."
        )
    return None
