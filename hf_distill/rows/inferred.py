"""Reading the row layout from two models, for those who bring models and no task."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_distill.data.label_names import activation, label_names, positions
from hf_distill.models.sentence_encoder import encoding_of
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.similarity import SimilarityRows
from hf_distill.rows.spans import SpanRows
from hf_distill.rows.targets import TargetRows
from hf_distill.rows.tokens import TokenRows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

# From these a model would compute a loss of its own.
LABELS = {"labels", "start_positions", "end_positions"}


def base_model(model: nn.Module) -> nn.Module:
    """Return the Transformers model inside wrappers, or the model itself.

    Wrappers are those of PEFT, `torch.compile`, `DataParallel`, DDP and FSDP, and a module of the user's own whose
    `forward` takes `**kwargs` and which holds one Transformers model.
    """
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def wrapper_of(model: nn.Module) -> str | None:
    """Return the class name of a wrapper other than PEFT's; None where there is none.

    What such a wrapper does around the model is not known, so the model cannot be taken apart.
    """
    while (get_base_model := getattr(model, "get_base_model", None)) is not None:
        model = get_base_model()
    return type(model).__name__ if _inside(model) is not None else None


def _inside(model: nn.Module) -> nn.Module | None:
    from torch import nn

    if (get_base_model := getattr(model, "get_base_model", None)) is not None:
        peft: nn.Module = get_base_model()
        return peft
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    for name in ("_orig_mod", "_fsdp_wrapped_module", *(("module",) if parallel else ())):
        if name in model._modules:
            return model._modules[name]
    if isinstance(model, PreTrainedModel) or not _takes_any(model):
        return None
    held = _models_in(model)
    return held[0] if len(held) == 1 else None


def _takes_any(model: nn.Module) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _models_in(model: nn.Module) -> list[nn.Module]:
    """Return the Transformers models that a module holds, without those inside another one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and not any(name.startswith(f"{one}.") for one in found):
            found[name] = module
    return list(found.values())


def taken_by(model: nn.Module) -> frozenset[str]:
    """Return the names of what a model's `forward` takes, without the labels.

    Raises:
        ValueError: Its `forward` takes `**kwargs` alone, and which model inside reads them is not known.
    """
    if (takes := getattr(model, "takes", None)) is not None:  # a cached teacher, which takes what was kept
        return frozenset(takes)
    names: set[str] = set()
    while True:
        parameters = inspect.signature(model.forward).parameters.values()
        names |= {one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
        inside = _inside(model)
        if inside is None:
            break
        model = inside
    if not names:
        held = len(_models_in(model))
        raise ValueError(
            f"{type(model).__name__}.forward takes **kwargs, and it holds {held} Transformers models: which inputs it "
            "reads is not known. Name them in its forward (input_ids, attention_mask, ...)."
        )
    return frozenset(names) - LABELS


def infer_layout(student: nn.Module, teacher: nn.Module | None, processing_class: Any = None) -> RowLayout:
    """Return which logits count, from the student's class and both configurations.

    Args:
        student: A sequence classifier, token classifier, question answerer, masked, causal or encoder-decoder language
            model (PEFT-wrapped or not).
        teacher: Model of the same kind.
        processing_class: If it is a tokenizer (or has one), it tells which columns of a vocabulary-sized head are
            tokens.

    Raises:
        ValueError: The class is none of these, or the two heads do not fit each other.
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
    """Return the teacher's column of each of the student's labels; None where names do not tell."""
    if teacher is None:
        return None
    if teacher.num_labels != student.num_labels:
        raise ValueError(f"the student's head has {student.num_labels} labels, the teacher's {teacher.num_labels}.")
    ours, theirs = label_names(student), label_names(teacher)
    return positions(ours, theirs, whose="the teacher") if ours and theirs else None


def _columns(student: PretrainedConfig, teacher: PretrainedConfig | None, processing_class: Any) -> dict[str, Any]:
    """Return `classes` and `left_out` of a layout: tokens past the end of the teacher's head are none of its tokens."""
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
