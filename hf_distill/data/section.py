"""The `data` section of a recipe: where the examples come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, field_validator

from hf_distill.component import component

# Split of a run -> its usual name in datasets on the Hub.
USUAL_SPLITS = {"train": "train", "eval": "validation"}


def _usual() -> dict[str, str | int | float]:
    return {**USUAL_SPLITS}


@component
class Data:
    """Where the examples come from.

    Attributes:
        path: Hub id, local file or directory, `package:NAME/PATH` (a file inside an installed Python package), or
            a mapping from split name to one or more files.
        name: Configuration of a Hub dataset (`sst2` of `nyu-mll/glue`).
        revision: Git revision of a Hub dataset.
        columns: Role -> column (`{text: sentence}`), or for labels the columns, one a class; a role left out is looked
            up under its own name. Of files without a header, its number from the left (`0`) or the right (`-1`).
        splits: `train` and `eval` -> split of the dataset, slicing included (`"train[:2000]"`); one that is left out is
            `train` or `validation`. A number for `eval` holds out that share of train (`0.1`), or so many rows (`500`).
        labels: Names of integer labels, in the order of the integers, where the dataset does not carry them; or, for
            some labels or all, as text, the name of their class, None where they stand for "no label".
        label_separator: What stands between the labels of a row that has several in one text (`joy,love`).
        max_length: Longest input in tokens; longer ones are truncated. The tokenizer's limit if left out.
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

    @field_validator("splits")
    @classmethod
    def _fill_in(cls, splits: dict[str, str | int | float]) -> dict[str, str | int | float]:
        """Return the splits with defaults added: naming one split leaves the other at its usual name."""
        return {**_usual(), **splits}
