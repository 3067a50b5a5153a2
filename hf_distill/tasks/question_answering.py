"""Extractive question answering: find the span of a context that answers a question, as in SQuAD."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.misfits import misfit
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.models.tokenizers import Reading
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.evaluator import SpanEvaluator
from hf_distill.tasks.language import check_texts
from hf_distill.tasks.tokenising import tokenise
from hf_distill.tasks.windows import PadWindows, Windows, answers_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hf_distill.metrics.answers import Questions

logger = logging.getLogger(__name__)

# Columns that locate a window in the data; models do not read them.
_PLACE = ("row", "starts", "ends", "nothing", "lost")


@component
class QuestionAnswering(Task):
    """Find the answer to a question in a context.

    A context that is too long becomes several examples: windows that overlap. Start and end of the answer are each a
    choice among the tokens of the context, in all objectives. Metrics are over questions, however many windows they
    have.

    Attributes:
        stride: Overlap of neighbouring windows, in tokens.
        no_answer: Whether a question may have no answer in its context (SQuAD 2.0). If true, windows without the answer
            point to the first token; if false, they have no label. Default: whether the data has such questions.
        longest_answer: Maximum length of an answer in evaluation, in tokens.
    """

    name: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    roles: ClassVar[Mapping[str, bool]] = {"question": True, "context": True, "answers": False}
    label_role: ClassVar[str] = "answers"
    groups_by_length: ClassVar[bool] = True

    stride: Annotated[int, Field(ge=0)] = 128
    no_answer: bool | None = None
    longest_answer: Annotated[int, Field(ge=1)] = 30

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the contexts cut into windows, with start and end of the answer as labels."""
        from hf_distill.metrics.answers import SPAN_METRICS
        from hf_distill.metrics.score import check
        from hf_distill.rows.spans import SpanRows

        if setup.label_names:
            raise UserError("names are for classes, and an answer is a span of text. Leave them out.", key="labels")
        _check_tokenizer(setup.tokenizer)
        check_texts(splits, ["question", "context"])
        known = {name: _count_answers(split, name) for name, split in splits.items()}
        no_answer = any(empty for _, empty in known.values()) if self.no_answer is None else self.no_answer
        names = tuple(setup.metrics or SPAN_METRICS[no_answer])
        check(names, "spans", 2)
        windows = {
            name: _cut(split, Windows(setup.tokenizer, name, setup.max_length, self.stride, no_answer))
            for name, split in splits.items()
        }
        eval_windows = by_length(windows["eval"])
        questions = self._questions(splits["eval"], eval_windows, names)
        return Prepared(
            train=windows["train"].remove_columns(list(_PLACE)),
            eval=eval_windows.remove_columns(list(_PLACE)),
            head=Head(self.auto_class, {"num_labels": 2}),
            layout=SpanRows(),
            collator=PadWindows(setup.tokenizer),
            evaluator=SpanEvaluator(names if known["eval"][0] else (), questions),
            label_names=None,
            labelled=known["train"][0] > 0,
            transfer_rows=_windows_after(windows["train"], len(splits["train"]) - setup.transfer_rows),
            reading=self._reading(no_answer),
        )

    def _reading(self, no_answer: bool) -> Reading:
        told = {"max_answer_len": self.longest_answer, "handle_impossible_answer": no_answer}
        return Reading(cuts="only_second", stride=self.stride, settings={self.name: told})

    def _questions(self, raw: Dataset, windows: Dataset, names: tuple[str, ...]) -> Questions:
        import numpy as np

        from hf_distill.metrics.answers import Questions

        values = column(raw, "answers").to_pylist() if "answers" in raw.column_names else [None] * len(raw)
        answers = [None if (known := answers_of(value)) is None else known[0] for value in values]
        place = {name: column(windows, name).to_pylist() for name in ("row", "nothing")}
        lists = {
            name: [np.asarray(one) for one in column(windows, name).to_numpy()]
            for name in ("starts", "ends", "context_mask")
        }
        allowed = [mask.astype(bool) for mask in lists["context_mask"]]
        for mask, nothing in zip(allowed, place["nothing"], strict=True):
            if nothing >= 0:
                mask[nothing] = False
        return Questions(
            names=names,
            contexts=column(raw, "context").to_pylist(),
            answers=[None if one is None else [text for text in one if text is not None] for one in answers],
            row=place["row"],
            starts=lists["starts"],
            ends=lists["ends"],
            allowed=allowed,
            nothing=place["nothing"],
            longest=self.longest_answer,
        )


# ---- What the columns hold -------------------------------------------------------------------------------------------


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not give the position of a token in the text (it is not a fast tokenizer)"
            ", so answers cannot be found among the tokens. Name a model with a tokenizer.json: tokenizer: ...",
            key="columns.context",
        )


def _is_answers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("text", "answer_start"))


def _count_answers(split: Dataset, name: str) -> tuple[int, int]:
    """Return the number of rows with a known answer, and how many of these have the answer "no answer".

    Raises:
        UserError: The column is not in SQuAD's format.
    """
    if "answers" not in split.column_names:
        return 0, 0
    answers = column(split, "answers")
    if not _is_squad_type(answers.type):
        wanted = (
            "SQuAD's format, {text: [...], answer_start: [...]}: all correct answers and where each starts in the "
            "context, in characters. A CSV file cannot hold it; JSON and Parquet can."
        )
        raise misfit(answers, "answers", name, wanted, lambda value: value is None or _is_answers(value))
    known = [found for value in answers.to_pylist() if (found := answers_of(value)) is not None]
    return len(known), sum(not texts for texts, _ in known)


def _is_squad_type(kind: Any) -> bool:
    """Whether an Arrow type is a struct of two lists, a list of structs, or null (no row has an answer)."""
    import pyarrow as pa  # type: ignore[import-untyped]

    def is_list(one: Any) -> bool:
        return bool(pa.types.is_list(one) or pa.types.is_large_list(one))

    inner = kind.value_type if is_list(kind) else kind
    if not pa.types.is_struct(inner):
        return bool(pa.types.is_null(inner))
    fields = {field.name: field.type for field in inner}
    if not {"text", "answer_start"} <= fields.keys():
        return False
    text, start = fields["text"], fields["answer_start"]
    if not is_list(kind):
        if not all(is_list(one) or pa.types.is_null(one) for one in (text, start)):
            return False
        text, start = (one.value_type if is_list(one) else one for one in (text, start))
    texts = pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_null(text)
    return bool(texts and (pa.types.is_integer(start) or pa.types.is_null(start)))


# ---- Tokens ----------------------------------------------------------------------------------------------------------


def _windows_after(windows: Dataset, row: int) -> int:
    """Return the number of windows of the questions from a row on."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    found: int = pc.sum(pc.greater_equal(column(windows, "row"), row)).as_py() or 0
    return found


def _cut(split: Dataset, windows: Windows) -> Dataset:
    """Return the windows of a split; the next run reads them from the cache of `datasets`."""
    import numpy as np
    import pyarrow.compute as pc

    numbered = split.add_column("row", np.arange(len(split)))
    settings = (QuestionAnswering.name, windows.split, windows.max_length, windows.stride, windows.no_answer)
    cut = tokenise(numbered, windows.split, windows.encode, windows.tokenizer, *settings)
    if lost := pc.sum(column(cut, "lost")).as_py():
        logger.warning(
            "%s of %s questions of the %s split have an answer that no window of %s tokens holds completely: they "
            "have no label",
            *(f"{lost:,}", f"{len(split):,}", windows.split, windows.max_length),
        )
    return cut
