"""Check and read the columns of a sentence-similarity data set: texts, translations, margins, scores."""

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
# Role of a second text that only the student reads.
TRANSLATION = "translation"
ROLES = ("text_pair", "negative", "label")


def check_columns(splits: Mapping[str, Dataset]) -> None:
    """Refuse columns that are not texts, and scores, negatives or margins without the texts that they need."""
    for name, split in splits.items():
        present = [role for role in (*TEXTS, TRANSLATION) if role in split.column_names]
        check_texts({name: split}, present)
        if TRANSLATION in present and (other := [one for one in split.column_names if one in (*ROLES, MARGIN)]):
            raise UserError(
                f"the {name} split has translations, but also {', '.join(other)}: a translation goes with a "
                "single text. Leave the others out.",
                key=f"columns.{other[0]}",
            )
        if MARGIN in split.column_names:
            _check_margins(split, name)
        for role, what in (("negative", "a negative"), ("label", "a score")):
            if role in split.column_names and "text_pair" not in split.column_names:
                raise UserError(
                    f"the {name} split has {what}, but no second text that it belongs to. Name its column.",
                    key="columns.text_pair",
                )


def check_same(splits: Mapping[str, Dataset]) -> None:
    """Refuse a translation or margin column that only one split has: the splits would measure different things."""
    for role in (TRANSLATION, MARGIN):
        having = [name for name, split in splits.items() if role in split.column_names]
        if having and len(having) < len(splits):
            raise UserError(
                f"only the {having[0]} split has a {role}, so the other split would measure something else. Add it to "
                "both.",
                key=f"columns.{role}",
            )


def _check_margins(split: Dataset, name: str) -> None:
    import numpy as np
    import pyarrow.types as pt  # type: ignore[import-untyped]

    margins, key = column(split, MARGIN), f"columns.{MARGIN}"
    if "negative" not in split.column_names:
        raise UserError(
            f"the {name} split has margins, but no negative that they belong to. Name its column.",
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
    """Return how scores are read; refuse scores outside the range of a cosine or of `score_range`."""
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
            way_out = "Correct score_range." if ends else f"Give their scale: {scale}."
            if "negative" in having[name].column_names:
                way_out += f" If they are margins of another model: data: {{columns: {{{MARGIN}: ...}}}}."
            raise UserError(
                f"scores of the {name} split go from {least:g} to {most:g}; wanted {low:g} to {high:g}. {way_out}",
                key="columns.label",
            )
    return found


@dataclass(frozen=True)
class Scores:
    """Converts scores to the scale of a cosine.

    Attributes:
        labelling: Reads scores, and finds missing ones.
        ends: Lowest and highest score in the data, which become 0 and 1; None if scores are cosines already.
    """

    labelling: Labelling
    ends: list[float] | None

    @property
    def labelled(self) -> tuple[str, ...]:
        """Splits with at least one score."""
        return self.labelling.labelled

    def encode(self, values: list[Any]) -> list[float]:
        """Return the rescaled scores; NaN for a missing one."""
        low, high = self.ends or (0.0, 1.0)
        return [(score - low) / (high - low) for score in self.labelling.encode(values)]
