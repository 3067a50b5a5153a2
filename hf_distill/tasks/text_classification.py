"""Text classification: one label, several labels, or a number, for one text or a pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill import __version__
from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.errors import UserError
from hf_distill.files import fingerprint
from hf_distill.models import Head
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.class_labels import Labelling, read_labels
from hf_distill.tasks.problem import PROBLEM_TYPES, Problem

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@component
class TextClassification(Task):
    """Sequence classification and regression, of one text or of a pair.

    Attributes:
        problem: `single_label`, `multi_label` or `regression`. Read from the label column if left out: text and
            integers are one label, lists are several, floats are regression (see `class_labels.read_labels`).
    """

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": False}

    problem: Problem | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """See `Task.prepare`."""
        from transformers import DataCollatorWithPadding

        from hf_distill.metrics import DEFAULTS, check, score
        from hf_distill.rows import ExampleRows

        tokenizer, max_length = setup.tokenizer, setup.max_length
        _check_texts(splits)
        labelling = read_labels(
            {name: split for name, split in splits.items() if "label" in split.column_names},
            problem=self.problem,
            names=setup.label_names,
            teacher=setup.teacher,
            student=setup.student,
        )
        names = setup.metrics or list(DEFAULTS[labelling.kind])
        check(names, labelling.kind, labelling.width)
        pair = "text_pair" in splits["train"].column_names
        check_length(tokenizer, max_length, pair)
        tokenised = {name: _tokenise(split, name, tokenizer, max_length, labelling) for name, split in splits.items()}
        return Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class, _settings(labelling, tokenizer)),
            layout=ExampleRows(kind=labelling.kind, width=labelling.width, teacher_columns=labelling.teacher_columns),
            collator=DataCollatorWithPadding(tokenizer),
            metrics=partial(score, names, kind=labelling.kind),
            metric_names=tuple(names) if "eval" in labelling.labelled else (),
            label_names=labelling.names,
            labelled="train" in labelling.labelled,
        )


def _check_texts(splits: Mapping[str, Dataset]) -> None:
    """Refuse columns that do not hold a text in every row, and a pair in one split only."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    having = [name for name, split in splits.items() if "text_pair" in split.column_names]
    if having and len(having) < len(splits):
        raise UserError(
            f"only the {having[0]} split has a second text; the models would see something else in the other.",
            key="columns.text_pair",
        )
    for name, split in splits.items():
        for role in ("text", "text_pair") if having else ("text",):
            texts, key = column(split, role), f"columns.{role}"
            if len(texts) == texts.null_count:
                raise UserError(f"the {name} split has no {role} in any row.", key=key)
            if str(texts.type) not in ("string", "large_string"):
                raise UserError(
                    f"the column of the role '{role}' holds {texts.type} in the {name} split; wanted text. "
                    "Name another column, or convert it.",
                    key=key,
                )
            if texts.null_count:
                first = pc.index(pc.is_null(texts), True).as_py()
                raise UserError(
                    f"{texts.null_count} of {len(split)} texts of the {name} split are missing (None), the first in "
                    f"row {first}, counted from 0. Drop or fill these rows.",
                    key=key,
                )


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None, pair: bool = False) -> None:
    """Refuse a length that the tokens of the tokenizer's own fill.

    Raises:
        UserError: It is.
    """
    added = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length is not None and max_length <= added:
        raise UserError(
            f"{max_length} tokens leave no room for text: the tokenizer adds {added} of its own. Wanted more.",
            key="max_length",
        )


def _tokenise(
    split: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, labelling: Labelling
) -> Dataset:
    """Return the model inputs, `labels` and `length` of a split; found again in the cache on the next run."""
    import pyarrow.compute as pc

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(
            tokenizer(batch["text"], batch.get("text_pair"), truncation=max_length is not None, max_length=max_length)
        )
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        if "label" in batch:
            encoded["labels"] = labelling.encode(batch["label"])
        return encoded

    tokenised = split.map(
        encode,
        batched=True,
        remove_columns=split.column_names,
        desc=f"Tokenising {name}",
        new_fingerprint=_cache_key(split, tokenizer, max_length, labelling),
    )
    empty = pc.index(column(tokenised, "length"), 0).as_py()
    if empty >= 0:
        # Some decoders add no token of their own; what such a model answers to nothing is arbitrary.
        raise UserError(
            f"row {empty} (counted from 0) of the {name} split is empty: the tokenizer gives no token for it. Drop it.",
            key="columns.text",
        )
    return tokenised


def _cache_key(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, labelling: Labelling
) -> str | None:
    """Return what the tokens depend on, so that the next run finds them; None leaves it to `datasets`.

    `datasets` hashes a pickle of the function, whose bytes also depend on which equal strings are one object in this
    process.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    for key in ("truncation", "padding"):  # of the last call
        state.pop(key, None)
    return fingerprint(__version__, split._fingerprint, state, type(tokenizer).__name__, max_length, repr(labelling))


def _settings(labelling: Labelling, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        **labelling.settings(),
        "problem_type": PROBLEM_TYPES[labelling.problem],
        # Decoder classifiers find the last token by it.
        "pad_token_id": tokenizer.pad_token_id,
    }
