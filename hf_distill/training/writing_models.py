"""Which models can write completions while the student trains."""

from __future__ import annotations

from hf_distill.completions.mixture import Mixture
from hf_distill.completions.section import Completions
from hf_distill.errors import UserError
from hf_distill.models.target_model import ROW, TargetSource
from hf_distill.rows.base import RowLayout

ONE_LIVE_MODEL = (
    "by: mixture draws every token from student and teacher together, so it needs one live teacher with the student's "
    "tokenizer. Take teacher: pretrained with such a model, or by: student."
)

STORED = (
    "new texts are written while the student trains, and the teacher has targets for the texts of the data alone. Take "
    "a teacher that runs (without cached), or let the student write before the training (hf-distill generate RECIPE "
    "--by student --into DIR), and learn from DIR (data.path=DIR data.columns={} completions.by=data)."
)


def beside(completions: Completions, source: TargetSource | None, layout: RowLayout) -> Mixture | None:
    """Return the teacher as the second model that writes, for `by: mixture`; None for anything else.

    Args:
        completions: The section of the recipe.
        source: The teacher.
        layout: Which logits count.

    Raises:
        UserError: The teacher cannot write, or not the same tokens.
    """
    if completions.by != "mixture":
        return None
    model = None if source is None or source.gives().own_tokens else source.writing
    if model is None:
        raise UserError(ONE_LIVE_MODEL, key="by")
    if getattr(layout, "left_out", ()) or getattr(layout, "teacher_columns", None):
        raise UserError(
            "by: mixture draws every token from student and teacher together, and some token ids mean something else "
            "to the teacher. Take a teacher with the same vocabulary, or by: student.",
            key="by",
        )
    return Mixture(model, completions.teacher_share)


def check_any_text(source: TargetSource | None) -> None:
    """Refuse targets that are stored for the rows of the data, where other texts are written in their place.

    Args:
        source: The teacher.

    Raises:
        UserError: They are stored.
    """
    if source is not None and ROW in source.takes:
        raise UserError(STORED, key="by")


def check_whole(is_divided: bool, zero_stage: int | None) -> None:
    """Refuse a student of which no process holds all weights: it could not write a token by itself.

    Args:
        is_divided: Whether FSDP shards the weights.
        zero_stage: ZeRO stage of DeepSpeed; None without DeepSpeed.

    Raises:
        UserError: Its weights are sharded.
    """
    if is_divided or zero_stage == 3:
        how = "FSDP" if is_divided else "ZeRO stage 3"
        raise UserError(
            f"{how} shards the weights of the student, which then cannot write completions. Take DDP or ZeRO "
            "stage 1 or 2, or write completions before the training: hf-distill generate.",
            key="by",
        )
