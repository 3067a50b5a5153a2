"""Reading the row layout from two models, for those who bring models and no task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.models.auto import modeling_auto

from hf_distill.labels import label_names, positions
from hf_distill.rows import ExampleRows, RowLayout, TokenRows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def infer_layout(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> RowLayout:
    """Return which logits count, from the student's class and both configurations.

    Args:
        student: A sequence classifier, token classifier, masked or causal language model (PEFT-wrapped or not).
        teacher: Model of the same kind.
        tokenizer: Tells which columns of a vocabulary-sized head are tokens.

    Raises:
        ValueError: The class is none of these, or the two heads do not fit each other.
    """
    get_base_model = getattr(student, "get_base_model", None)
    name = type(get_base_model() if get_base_model else student).__name__
    if name in _classes("SEQUENCE_CLASSIFICATION"):
        return _example_rows(student.config, teacher.config if teacher else None)
    if name in _classes("TOKEN_CLASSIFICATION"):
        return TokenRows()
    causal = name in _classes("CAUSAL_LM")
    if causal or name in _classes("MASKED_LM"):
        return TokenRows(shift=causal, classes=_vocabulary(student, teacher, tokenizer))
    raise ValueError(
        f"cannot tell which logits of {name} count. Wanted: a sequence or token classifier, a masked or a causal language "
        "model. For another head pass `layout=` (a hf_distill.rows.RowLayout)."
    )


def _classes(kind: str) -> set[str]:
    names: set[str] = set()
    for value in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values():
        names.update([value] if isinstance(value, str) else value)
    return names


def _example_rows(student: PretrainedConfig, teacher: PretrainedConfig | None) -> ExampleRows:
    width: int = student.num_labels
    if width == 1 or student.problem_type == "regression":
        kind = "values"
    else:
        kind = "binary" if student.problem_type == "multi_label_classification" else "classes"
    columns = None
    if teacher is not None:
        if teacher.num_labels != width:
            raise ValueError(f"the student's head has {width} labels, the teacher's {teacher.num_labels}.")
        ours, theirs = label_names(student), label_names(teacher)
        if ours and theirs:
            columns = positions(ours, theirs, whose="the teacher")
    return ExampleRows(kind=kind, width=width, teacher_columns=columns)  # type: ignore[arg-type]


def _vocabulary(
    student: PreTrainedModel, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
) -> int | None:
    widths = {model.config.get_text_config().vocab_size for model in (student, teacher) if model is not None}
    if tokenizer is not None:
        return min(*widths, max(tokenizer.get_vocab().values()) + 1)
    if len(widths) > 1:
        raise ValueError(
            f"the heads have {' and '.join(map(str, sorted(widths)))} columns. Pass the tokenizer as `processing_class`, so "
            "that padding columns can be told from tokens."
        )
    return None
