"""Text classification: one label, several labels, or a number, for one text or a pair."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models import Head
from hf_distill.tasks.base import Prepared, Task
from hf_distill.tasks.class_labels import Labelling, read_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.objectives.base import Objective

Problem = Literal["single_label", "multi_label", "regression"]
_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@component
class TextClassification(Task):
    """Sequence classification and regression.

    Attributes:
        problem: Read from the label column if left out: text or integers are one label, lists are several, floats
            are regression.
    """

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": False}

    problem: Problem | None = None

    def prepare(
        self,
        splits: Mapping[str, Dataset],
        *,
        tokenizer: PreTrainedTokenizerBase,
        teacher: PretrainedConfig | None,
        student: PretrainedConfig | None,
        max_length: int | None,
        label_names: list[str] | None,
        metrics: list[str],
    ) -> Prepared:
        """See `Task.prepare`."""
        from transformers import DataCollatorWithPadding

        from hf_distill.metrics import DEFAULTS, check, score
        from hf_distill.rows import ExampleRows

        for name, split in splits.items():
            for role in ("text", "text_pair"):
                if role in split.column_names:
                    _check_text(split, name, role)
        labelling = read_labels(
            {name: split for name, split in splits.items() if "label" in split.column_names},
            problem=self.problem,
            names=label_names,
            teacher=teacher,
            student=student,
        )
        kind, width = labelling.kind, labelling.width
        judged = labelling.has_labels("eval")
        names = metrics or list(DEFAULTS[kind])
        check(names, kind, width)
        tokenised = {name: _tokenise(split, tokenizer, max_length, labelling) for name, split in splits.items()}
        return Prepared(
            train=tokenised["train"],
            eval=tokenised["eval"].sort("length"),
            head=Head(self.auto_class, _settings(labelling, tokenizer)),
            layout=ExampleRows(kind=kind, width=width, teacher_columns=labelling.teacher_columns),
            collator=DataCollatorWithPadding(tokenizer),
            metrics=partial(score, names, kind=kind),
            metric_names=tuple(names) if judged else (),
            label_names=labelling.names,
            labelled=labelling.has_labels("train"),
        )

    def check(self, objectives: tuple[Objective, ...], prepared: Prepared) -> None:
        """Refuse a softmax over one predicted value: it is constant, and its loss silently zero.

        Raises:
            UserError: An objective does not fit.
        """
        from hf_distill.objectives.base import RowObjective

        for index, objective in enumerate(objectives):
            key = f"objectives[{index}]"
            fits = not isinstance(objective, RowObjective) or objective.takes_values
            if not prepared.layout.has_classes and not fits:
                raise UserError(
                    f"'{objective.name}' compares distributions over classes, but this is regression. "
                    "Use logits_mse for the teacher's values and labels for the true ones.",
                    key=key,
                )
            if objective.unit == "label" and not prepared.labelled:
                raise UserError(
                    f"'{objective.name}' needs labels, but the train split has none. Leave it out: the teacher's "
                    "targets need no labels.",
                    key=key,
                )


def _check_text(split: Dataset, name: str, role: str) -> None:
    """Refuse a text column that does not hold text in every row."""
    dtype = getattr(split.features[role], "dtype", "a list")
    if dtype not in ("string", "large_string"):
        raise UserError(
            f"the column of the role '{role}' holds {dtype} in the {name} split; wanted text.", key=f"columns.{role}"
        )
    missing = [row for row, value in enumerate(split[role]) if value is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(split)} texts of the {name} split are missing (None), the first in row {missing[0]}, "
            "counted from 0. Drop or fill these rows.",
            key=f"columns.{role}",
        )


def _tokenise(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, labelling: Labelling
) -> Dataset:
    """Return the model inputs, `labels` and `length` of a split."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(
            tokenizer(batch["text"], batch.get("text_pair"), truncation=max_length is not None, max_length=max_length)
        )
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        if "label" in batch:
            encoded["labels"] = labelling.encode(batch["label"])
        return encoded

    return split.map(encode, batched=True, remove_columns=split.column_names, desc="Tokenising")


def _settings(labelling: Labelling, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "num_labels": labelling.width,
        "problem_type": _PROBLEM_TYPES[labelling.problem],
        # Decoder classifiers find the last token by it.
        "pad_token_id": tokenizer.pad_token_id,
    }
    if labelling.names is not None:
        settings["id2label"] = dict(enumerate(labelling.names))
        settings["label2id"] = {name: index for index, name in enumerate(labelling.names)}
    return settings
