"""Text classification: one label, several labels, or a number, for one text or a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.label_names import IGNORED, activation_settings
from hf_distill.data.misfits import is_text, misfit
from hf_distill.data.two_tokenizers import PREFIX, PadBoth, side_by_side, teacher_view
from hf_distill.errors import UserError
from hf_distill.models.decoders import check_ends
from hf_distill.models.loading import Head
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.class_counts import ClassCounts, count_raw
from hf_distill.tasks.evaluator import LogitsEvaluator
from hf_distill.tasks.label_forms import as_lists
from hf_distill.tasks.label_space import read_labels
from hf_distill.tasks.problem_type import PROBLEM_TYPES, Labelling, Problem
from hf_distill.tasks.tokenising import tokenise, with_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@component
class TextClassification(Task):
    """Classify a text or a pair of texts, or predict a number for it.

    Teacher and student may have different tokenizers: they are compared by text, not by token.

    Attributes:
        problem: Kind of the labels. Default: read from the label column (text and integers are one label, lists are
            several, floats are regression).
    """

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": False}
    own_tokenizers: ClassVar[bool] = True
    several_labels: ClassVar[bool] = True
    groups_by_length: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    classifies_rows: ClassVar[bool] = True

    problem: Problem | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised texts, with labels in the order of the student's head."""
        from transformers import DataCollatorWithPadding

        from hf_distill.metrics.score import check, shown_kind
        from hf_distill.metrics.table import DEFAULTS
        from hf_distill.rows.examples import ExampleRows

        splits = as_lists(splits, setup.label_separator)
        _check_texts(splits)
        labelling = self._labelling(splits, setup)
        kind = shown_kind(labelling.kind, labelling.width)
        names = setup.metrics or list(DEFAULTS[kind])
        check(names, kind, max(labelling.width, 2) if kind == "classes" else labelling.width)
        pair = "text_pair" in splits["train"].column_names
        for tokenizer in filter(None, (setup.tokenizer, setup.teacher_tokenizer)):
            check_length(tokenizer, setup.max_length, pair)
        tokenised = {name: with_rows(split, _read(split, name, setup, labelling)) for name, split in splits.items()}
        _check_ends(tokenised, setup)
        prepared = Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class, _settings(labelling, setup, setup.tokenizer)),
            layout=ExampleRows(
                kind=labelling.kind,
                width=labelling.width,
                teacher_columns=labelling.teacher_columns,
                soft=labelling.soft and labelling.kind == "binary",
            ),
            collator=DataCollatorWithPadding(setup.tokenizer),
            evaluator=LogitsEvaluator(
                tuple(names) if "eval" in labelling.labelled else (), labelling.kind, labelling.names
            ),
            label_names=labelling.names,
            labelled="train" in labelling.labelled,
            transfer_rows=setup.transfer_rows,
        )
        if setup.teacher_tokenizer is None:
            return prepared
        theirs = replace(
            prepared,
            train=teacher_view(prepared.train),
            eval=teacher_view(prepared.eval),
            head=Head(self.auto_class, _settings(labelling, setup, setup.teacher_tokenizer)),
            collator=DataCollatorWithPadding(setup.teacher_tokenizer),
        )
        return replace(prepared, collator=PadBoth(prepared.collator, theirs.collator), for_teacher=theirs)

    def look(self, splits: Mapping[str, Dataset], setup: Setup) -> ClassCounts | None:
        """Return how often each class occurs in some rows; the labels are checked as `prepare` does."""
        splits = as_lists(splits, setup.label_separator)
        return count_raw(splits, self._labelling(splits, setup), self.label_role)

    def classes_of_rows(self, splits: Mapping[str, Dataset], setup: Setup) -> NDArray[Any] | None:
        """Return the class of each train row, or its labels; of soft labels the likeliest. None for numbers."""
        splits = as_lists(splits, setup.label_separator)
        _check_texts(splits)
        labelling = self._labelling(splits, setup)
        if labelling.kind == "values":
            return None
        train = splits["train"]
        if self.label_role not in train.column_names:
            return np.full(len(train), IGNORED)
        labels = np.array(labelling.encode(train[self.label_role][:]), dtype=float)
        unknown = np.isnan(labels)
        if labelling.kind == "binary":
            return np.where(unknown, np.nan, labels > 0.5)
        if labels.ndim == 2:
            return np.where(unknown.any(-1), IGNORED, labels.argmax(-1))
        return labels.astype(int)

    def _labelling(self, splits: Mapping[str, Dataset], setup: Setup) -> Labelling:
        return read_labels(
            {name: split for name, split in splits.items() if self.label_role in split.column_names},
            problem=self.problem,
            names=setup.label_names,
            teacher=setup.teacher,
            student=setup.student,
        )


def _check_texts(splits: Mapping[str, Dataset]) -> None:
    """Refuse columns without a text in every row, and a second text in only one split."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    having = [name for name, split in splits.items() if "text_pair" in split.column_names]
    if having and len(having) < len(splits):
        raise UserError(
            f"only the {having[0]} split has a second text; the models would read something else in the other split.",
            key="columns.text_pair",
        )
    for name, split in splits.items():
        for role in ("text", "text_pair") if having else ("text",):
            texts, key = column(split, role), f"columns.{role}"
            if len(texts) == texts.null_count:
                raise UserError(f"the {name} split has no {role} in any row.", key=key)
            if str(texts.type) not in ("string", "large_string"):
                raise misfit(texts, role, name, "text. Name another column, or convert it.", is_text)
            if texts.null_count:
                first = pc.index(pc.is_null(texts), True).as_py()
                raise UserError(
                    f"{texts.null_count} of {len(split)} texts of the {name} split are missing (None), the first in "
                    f"row {first}, counted from 0. Drop or fill these rows.",
                    key=key,
                )


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None, pair: bool = False) -> None:
    """Refuse a maximum length that leaves no room beside the special tokens.

    Raises:
        UserError: There is no room for text.
    """
    added = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length is not None and max_length <= added:
        raise UserError(
            f"{max_length} tokens leave no room for text: the tokenizer adds {added} of its own. Wanted more.",
            key="max_length",
        )


def _check_ends(tokenised: Mapping[str, Dataset], setup: Setup) -> None:
    """Refuse texts that contain the end-of-text token, for models that classify at its position."""
    for name, split in tokenised.items():
        for index, config in enumerate(setup.configs):
            of_teacher = index == 0 and setup.teacher_tokenizer is not None
            tokenizer = setup.teacher_tokenizer if of_teacher else setup.tokenizer
            check_ends(column(split, f"{PREFIX if of_teacher else ''}input_ids"), config, name, tokenizer)


def _read(split: Dataset, name: str, setup: Setup, labelling: Labelling) -> Dataset:
    """Return a split with the student's tokens and, if the teacher has its own tokenizer, the teacher's tokens."""
    student = _tokenise(split, name, setup.tokenizer, setup.max_length, labelling)
    if setup.teacher_tokenizer is None:
        return student
    return side_by_side(student, _tokenise(split, name, setup.teacher_tokenizer, setup.max_length, labelling))


def _tokenise(
    split: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, labelling: Labelling
) -> Dataset:
    """Return the model inputs, `labels` and `length` of a split; the next run reads them from the `datasets` cache."""
    import pyarrow.compute as pc

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(
            tokenizer(batch["text"], batch.get("text_pair"), truncation=max_length is not None, max_length=max_length)
        )
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        if "label" in batch:
            encoded["labels"] = labelling.encode(batch["label"])
        return encoded

    settings = (TextClassification.name, max_length, labelling.in_key())
    tokenised = tokenise(split, name, encode, tokenizer, *settings)
    empty = pc.index(column(tokenised, "length"), 0).as_py()
    if empty >= 0:
        # Some decoders add no special token; their prediction for an empty input would be arbitrary.
        raise UserError(
            f"row {empty} (counted from 0) of the {name} split is empty: the tokenizer gives no token for it. Drop it.",
            key="columns.text",
        )
    return tokenised


def _settings(labelling: Labelling, setup: Setup, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        **labelling.settings(),
        **(activation_settings(setup.teacher or setup.student) if labelling.width == 1 else {}),
        "problem_type": PROBLEM_TYPES[labelling.problem],
        # Decoder classifiers use it to find the last token, and RoBERTa to count positions.
        "pad_token_id": tokenizer.pad_token_id,
    }
