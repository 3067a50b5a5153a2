"""Columns of a sentence-similarity data set: texts, translations, margins, scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.rows.similarity import MARGIN
from hf_distill.tasks.base import SaidLabels
from hf_distill.tasks.label_space import read_labels
from hf_distill.tasks.language import check_texts
from hf_distill.tasks.problem_type import Labelling

if TYPE_CHECKING:
    from datasets import Dataset

NAME = "sentence-similarity"
TEXTS = ("text", "text_pair", "negative")
# A second text that the student alone reads.
TRANSLATION = "translation"
ROLES = ("text_pair", "negative", "label")


def check_columns(splits: Mapping[str, Dataset]) -> None:
    """Refuse texts that are none, and scores and negatives without a pair."""
    for name, split in splits.items():
        present = [role for role in (*TEXTS, TRANSLATION) if role in split.column_names]
        check_texts({name: split}, present)
        if TRANSLATION in present and (other := [one for one in split.column_names if one in (*ROLES, MARGIN)]):
            raise UserError(
                f"the {name} split has translations, and besides {', '.join(other)}: a translation stands beside "
                "one text alone. Leave the others out.",
                key=f"columns.{other[0]}",
            )
        if MARGIN in split.column_names:
            _check_margins(split, name)
        for role, what in (("negative", "a text that does not fit"), ("label", "a score")):
            if role in split.column_names and "text_pair" not in split.column_names:
                raise UserError(
                    f"the {name} split has {what} and no second text that it belongs to. Say which column that is.",
                    key="columns.text_pair",
                )


def check_same(splits: Mapping[str, Dataset]) -> None:
    """Refuse a column of one split only that decides what is learned."""
    for role in (TRANSLATION, MARGIN):
        having = [name for name, split in splits.items() if role in split.column_names]
        if having and len(having) < len(splits):
            raise UserError(
                f"only the {having[0]} split has a {role}: the other would be compared with something else. Give it to "
                "both.",
                key=f"columns.{role}",
            )


def _check_margins(split: Dataset, name: str) -> None:
    import numpy as np
    import pyarrow.types as pt  # type: ignore[import-untyped]

    margins, key = column(split, MARGIN), f"columns.{MARGIN}"
    if "negative" not in split.column_names:
        raise UserError(
            f"the {name} split has margins and no negative that they belong to. Say which column that is.",
            key="columns.negative",
        )
    if not pt.is_floating(margins.type) and not pt.is_integer(margins.type):
        raise UserError(f"the margins of the {name} split are {margins.type}; wanted numbers.", key=key)
    values = np.array([np.nan if one is None else one for one in margins.to_pylist()], float)
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise UserError(
            f"row {bad[0]} (counted from 0) of the {name} split has no finite margin. Drop it, or fill it in.", key=key
        )


def read_scores(splits: Mapping[str, Dataset], names: SaidLabels, ends: list[float] | None) -> Labelling:
    """Read the scores; refuse those that a cosine could never reach."""
    import numpy as np

    having = {name: split for name, split in splits.items() if "label" in split.column_names}
    found = read_labels(having, problem="regression", names=names, teacher=None, student=None)
    if found.width > 1:
        raise UserError(f"a row has {found.width} scores; wanted one for each pair.", key="columns.label")
    low, high = ends or (-1.0, 1.0)
    for name in found.labelled:
        scores = np.asarray(found.encode(having[name]["label"][:]))
        least, most = np.nanmin(scores), np.nanmax(scores)
        if least < low or most > high:
            scale = f"task: {{name: {NAME}, score_range: [lowest, highest]}}"
            way_out = "Correct score_range." if ends else f"Say on which scale they are: {scale}."
            if "negative" in having[name].column_names:
                way_out += f" If they are margins of another model: data: {{columns: {{{MARGIN}: ...}}}}."
            raise UserError(
                f"scores of the {name} split go from {least:g} to {most:g}; wanted {low:g} to {high:g}. {way_out}",
                key="columns.label",
            )
    return found


@dataclass(frozen=True)
class Scores:
    """Scores on the scale of a cosine.

    Attributes:
        labelling: Tells a missing score.
        ends: Of the scale in the data; they become 0 and 1. None where it is a cosine's.
    """

    labelling: Labelling
    ends: list[float] | None

    @property
    def labelled(self) -> tuple[str, ...]:
        """Splits with at least one score."""
        return self.labelling.labelled

    def encode(self, values: list[Any]) -> list[float]:
        """Return the scores, NaN for none."""
        low, high = self.ends or (0.0, 1.0)
        return [(score - low) / (high - low) for score in self.labelling.encode(values)]
