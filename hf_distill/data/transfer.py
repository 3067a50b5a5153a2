"""`data.transfer`: texts without labels, beside the labelled ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from hf_distill.component import component

TRANSFER = "transfer"
"""Name of the split with the transfer rows, until `transfer_rows.append_transfer` adds them to `train`."""


@component
class Transfer:
    """Texts without labels, beside those of `data.path`: the student learns what the teacher says about them.

    Attributes:
        path: Hub id, local file or directory, pattern, `package:NAME/PATH`, or a list of files.
        name: Configuration of a Hub dataset. Default: none.
        revision: Git revision of a Hub dataset: branch, tag or commit. Default: the main branch.
        columns: Which column holds each of the task's roles. A column with labels is not read. Default: as in
            `data.columns`, else for each role the column of the same name.
        split: Split of the dataset to use, with a slice if wanted: `"train[:5000]"`.
    """

    path: str | Annotated[list[str], Field(min_length=1)]
    name: str | None = None
    revision: str | None = None
    columns: dict[str, str | Annotated[int, Strict()]] = Field(default_factory=dict)
    split: str = "train"
