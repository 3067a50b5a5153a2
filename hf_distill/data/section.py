"""The `data` section of a recipe: where the examples come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SkipValidation, Strict, field_validator

from hf_distill.component import component
from hf_distill.data.augmentation import Augmentation
from hf_distill.data.pseudo_labels import PseudoLabels
from hf_distill.data.selecting import Select
from hf_distill.data.transfer import Transfer

# Split of a run -> its usual name in datasets on the Hub.
USUAL_SPLITS = {"train": "train", "eval": "validation"}


def _usual() -> dict[str, str | int | float]:
    return {**USUAL_SPLITS}


@component
class Data:
    """Where the examples come from.

    Attributes:
        path: Hub id, local file or directory, `package:NAME/PATH` (inside an installed Python package), or a mapping
            from split to one or more files.
        name: Configuration of a Hub dataset, such as `sst2` of `nyu-mll/glue`. Default: none.
        revision: Git revision of a Hub dataset: branch, tag or commit. Default: the main branch.
        columns: Which column holds each of the task's roles, such as `{text: sentence}`. For labels with one column per
            class, list the columns: `{label: [joy, anger]}`. For files without a header, give column numbers: `{text:
            1, label: 0}`; `-1` is the last. Every task also takes `group`, which the report compares, and `weight`, how
            much a row counts in the loss. Default: for each role, the column of the same name.
        splits: Splits of the dataset to use as `train` and `eval`, with slices as in `datasets`: `"train[:2000]"`. The
            first rows of a file that is sorted by label have one class. A number for `eval` holds out part of train:
            `0.1` is a tenth, `500` is 500 rows. One that is left out keeps its default.
        labels: Names of integer labels, in the order of the integers, if the dataset has none. Or a mapping from a
            label, as text, to the name of its class: `{neg: NEGATIVE, "-": null}`. Rows whose label maps to null have
            no label. Text labels that are left out keep their names. Default: read from the data and the models.
        label_separator: Separator of the labels, for rows with several labels in one text: `","` for `joy,love`.
            Default: none.
        max_length: Maximum input length in tokens; longer inputs are truncated (`question-answering`, `fill-mask`:
            split). Default: the longest that both models take.
        transfer: Texts without labels from another place: `{path: texts.txt}`. The teacher labels them, and the student
            learns from them as from the rows of train. Default: none.
        select: Which of the train rows without a label the teacher is asked about, if not about all: `{by: margin,
            share: 0.3}`. Default: all.
        augment: How further train rows, without a label, are made of the texts: `tinybert`. Default: none are made.
        pseudo_labels: How sure the teacher must be of a train row without a label, so that the student learns from it:
            `{threshold: 0.9, soft: false}`. Default: the student learns from all.
    """

    path: str | dict[str, str | list[str]]
    name: str | None = None
    revision: str | None = None
    columns: dict[str, str | Annotated[int, Strict()] | Annotated[list[str], Field(min_length=2)]] = Field(
        default_factory=dict
    )
    splits: dict[str, str | Annotated[int, Strict()] | Annotated[float, Strict()]] = Field(default_factory=_usual)
    labels: list[str] | dict[str, str | None] | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(gt=0)] | None = None
    transfer: Transfer | None = None
    select: Select | None = None
    augment: SkipValidation[Augmentation | None] = None
    pseudo_labels: PseudoLabels | None = None

    @field_validator("splits")
    @classmethod
    def _fill_in(cls, splits: dict[str, str | int | float]) -> dict[str, str | int | float]:
        """Return the splits with defaults added: naming one split leaves the other at its usual name."""
        return {**_usual(), **splits}
