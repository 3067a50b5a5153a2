"""What a student would learn: are the teacher's targets the same each time, and do they say more than its top class?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_distill.data import column
from hf_distill.models.patching import replaced
from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.doctor.sampling import chosen
from hf_distill.run.doctor.teaching import runs_here
from hf_distill.run.doctor.trial import tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_distill.objectives.base import Comparison
    from hf_distill.rows.base import Rows
    from hf_distill.run.doctor.opened import Opened
    from hf_distill.trainer import DistillationTrainer

NAME = "targets"
# Rows that are looked at; of language models, tokens.
ROWS, TOKENS = 256, 2_000
# A teacher is sure of a class from this probability on; and of nearly all rows from this share on.
SURE, NEARLY_ALL = 0.99, 0.95
# Share of the largest possible entropy from which its classes are as good as equally likely.
UNSURE = 0.98


def targets(opened: Opened) -> Iterator[Finding]:
    """Yield whether the teacher's targets repeat bit for bit, how sure they are, and how often the label is on top."""
    source = runs_here(opened)
    if opened.recipe.completions.by != "data":
        raise CannotCheck("the texts that the teacher scores are not written yet")
    trainer = opened.trainer
    batches = list(_batches(opened, trainer))
    trainer.model.train()  # as in a step; the teacher must not follow
    first, again = (_numbers(trainer.compare(batches[0])) for _ in range(2))
    if not first:
        raise CannotCheck("the objectives of the first stage compare nothing that the teacher says")
    if any((one.isnan() | one.isposinf()).any() for one in first):
        text = "the teacher's targets are NaN or infinite"
        yield Finding(NAME, "mistake", text, "Look for NaN in its weights, or load it in another precision (dtype).")
        return
    training = any(part.training for one in source.models.values() for part in one.modules())
    if training or not all(map(torch.equal, first, again)):
        yield Finding(
            NAME,
            "mistake",
            "two passes of the teacher over the same rows differ: it is not in eval mode, or its own code draws",
            "Its targets would be noise. Remove what draws from the model's forward.",
        )
    else:
        yield Finding(NAME, "ok", "the teacher is in eval mode: two passes over the same rows are equal bit for bit")
    trainer.model.eval()
    if opened.prepared.layout.has_classes:
        yield from _sure(opened, trainer, batches)


def _batches(opened: Opened, trainer: DistillationTrainer) -> Iterator[Mapping[str, Tensor]]:
    """Yield batches of random train rows; of language models few, as all logits of a batch are computed at once."""
    train = opened.prepared.train
    rows = chosen(len(train), ROWS)
    by_token = opened.recipe.task.head_kind == "tokens"
    if by_token:
        within = np.cumsum(column(train.select(rows), "length").to_numpy()) <= TOKENS
        rows = rows[: max(int(within.sum()), 1)]
    given = trainer.train_dataset.select(rows)  # type: ignore[union-attr]
    trainer.args.per_device_eval_batch_size = 1 if by_token else 32
    with replaced(trainer, "token_batches", None):  # these batches are small, and wanted padded
        yield from trainer.get_eval_dataloader(given)


@dataclass
class _Sums:
    """What was seen of the teacher's rows at a temperature: their number, entropies, and how many are sure."""

    rows: int = 0
    entropy: float = 0.0
    sure: int = 0
    labelled: int = 0
    right: int = 0
    classes: int = 0
    known: bool = field(default=True)

    def add(self, rows: Rows, temperature: float) -> None:
        """Count the rows of a batch."""
        softened = rows.at(temperature)
        if not isinstance(softened.teacher, Tensor):  # stored rows, or the mean of several: not all of it is there
            self.known = False
            return
        log_p = (softened.teacher / temperature).log_softmax(-1)
        self.rows += len(log_p)
        self.classes = log_p.shape[-1]
        self.entropy += float(-(log_p.exp() * log_p).sum())
        self.sure += int((log_p.amax(-1) > math.log(SURE)).sum())
        labels = softened.labels if softened.labels.ndim == 1 else softened.labels.argmax(-1)
        labelled = labels >= 0
        self.labelled += int(labelled.sum())
        self.right += int((softened.teacher.argmax(-1) == labels)[labelled].sum())


def _sure(opened: Opened, trainer: DistillationTrainer, batches: list[Mapping[str, Tensor]]) -> Iterator[Finding]:
    used = [one for objective in opened.recipe.plan[0].objectives for one in objective.needs().temperatures]
    temperature = used[0] if used else 1.0
    sums = _Sums()
    for batch in batches:
        sums.add(trainer.compare(batch).rows, temperature)
    if not sums.known or not sums.rows:
        return
    mean, most = sums.entropy / sums.rows, math.log(sums.classes)
    share = sums.sure / sums.rows
    said = (
        f"at temperature {temperature:g} the teacher's mean entropy is {mean:.2g} of at most {most:.2g}; its top class "
        f"has more than {SURE} in {share:.0%} of {sums.rows:,} targets of train"
    )
    if used and share > NEARLY_ALL:
        yield Finding(
            NAME,
            "warning",
            said,
            "Soft targets say hardly more than the class. Raise the temperature, fine-tune the teacher for fewer "
            "epochs, or compare hidden states.",
        )
    elif used and mean > UNSURE * most:
        yield Finding(
            NAME,
            "warning",
            said,
            "All classes are nearly equally likely, so the targets say nothing. Lower the temperature, or train the "
            "teacher longer.",
        )
    else:
        yield Finding(NAME, "ok", said)
    if sums.labelled:
        agrees = sums.right / sums.labelled
        yield Finding(NAME, "ok", f"its top class is the label in {agrees:.0%} of {sums.labelled:,} with a label")


def _numbers(comparison: Comparison) -> list[Tensor]:
    """Return what the teacher says of a batch: its rows, else the hidden states that an objective asks for."""
    rows = comparison.rows.teacher
    if rows is not None:
        return [rows if isinstance(rows, Tensor) else rows.numbers]
    return [*tensors_of(dict(comparison.teacher or {}))]
