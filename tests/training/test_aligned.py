"""A teacher with tokens of its own: it is compared where a batch says so, and nowhere else.

Splits of a step, two processes, resumes and the formulas themselves are in `invariants`, kind `causal-lm-own-tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants.cases import STEP, Collator, Record, largest_difference, make_rows, make_trainer, split, train
from torch import Tensor

from hf_distill.cache.format import Kept
from hf_distill.cache.recorder import Recorder
from hf_distill.errors import UserError
from hf_distill.models.target_rows import SparseRows
from hf_distill.objectives import Attention, KLDivergence, Labels, Objective
from hf_distill.rows.padding import PadOneSide
from hf_distill.rows.tokens import TokenRows

KIND = "causal-lm-own-tokens"
TERMS: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3))
# `Attention` needs the whole batch, without it logits are computed in chunks.
WHOLE: tuple[Objective, ...] = (*TERMS, Attention(weight=1e-30))


@dataclass(frozen=True)
class LeftCollator(Collator):
    """Pads on the left, the teacher's tokens to another width, as a collator of one's own may."""

    def pad(self, rows: list[list[int]], value: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[value] * (width - len(row)) + row for row in rows])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        if "aligned_at" in batch:
            first = (batch["teacher_attention_mask"] == 0).sum(-1, keepdim=True)
            batch["aligned_at"] = torch.where(batch["aligned_at"] < 0, -1, batch["aligned_at"] + first)
        return batch


def one_step(folder: Path, rows: list[dict[str, Any]], terms: Sequence[Objective] = TERMS, **settings: Any) -> Record:
    trainer = make_trainer(
        "causal-lm", folder, rows=rows, terms=terms, max_steps=1, train_sampling_strategy="sequential", **settings
    )
    return train(trainer)


def assert_same(found: Record, wanted: Record) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=1e-6)
    assert largest_difference(found, wanted) < 1e-6


@pytest.mark.parametrize("terms", [TERMS, WHOLE], ids=["chunked", "whole"])
def test_the_same_tokens_at_the_same_places_change_nothing(
    terms: Sequence[Objective], tmp_path: Path, pieces: Any
) -> None:
    """Off by one, a teacher's distribution of the next token would be learned for this one."""
    pieces(40, 6, 3)
    plain = make_rows("causal-lm")
    every = [{**row, "aligned_at": [-1, *range(len(row["input_ids"]) - 1)]} for row in plain]
    own = [{**row, "teacher_input_ids": row["input_ids"]} for row in every]
    wanted = one_step(tmp_path, plain, terms, **split(4))
    assert_same(one_step(tmp_path, every, terms, **split(4)), wanted)
    if terms is TERMS:  # maps of attention are refused for other tokens
        assert_same(one_step(tmp_path, own, terms, **split(4)), wanted)


@pytest.mark.parametrize(
    "settings", [{"padding_free": True}, {"collator": LeftCollator()}], ids=["padding-free", "left"]
)
def test_padding_changes_nothing(settings: dict[str, Any], tmp_path: Path, pieces: Any) -> None:
    """Positions that do not move with the padding of either model point at another token of the teacher."""
    rows = make_rows(KIND)
    whole = one_step(tmp_path, rows, **split(8))
    pieces(40, 6, 3)
    assert_same(one_step(tmp_path, rows, **split(8), **settings), whole)


def test_positions_follow_the_teacher_s_padding() -> None:
    """A model that is padded on the left, beside one that is not: the tokens move, the numbers of their places too."""
    batch = Collator()(make_rows(KIND, 4))
    kept = batch["aligned_at"] >= 0
    tokens = batch["teacher_input_ids"].gather(1, batch["aligned_at"].clamp(min=0))[kept]
    for left, own in ((False, True), (True, False), (True, True)):
        moved: Mapping[str, Any] = PadOneSide(lambda _: batch, TokenRows(shift=True), left=left, teacher_left=own)([])
        there = moved["aligned_at"] >= 0
        places = moved["aligned_at"].clamp(min=0)
        assert torch.equal(moved["teacher_input_ids"].gather(1, places)[there], tokens)
        assert torch.equal(moved["labels"][there], batch["labels"][kept])


def test_rows_without_a_teacher_have_no_weight_in_any_way(tmp_path: Path) -> None:
    """A teacher's NaN at a place that is not compared, or its count, would be in the loss of the others."""
    rows = make_rows(KIND)[:STEP]
    nowhere = [{**row, "aligned_at": [-1] * len(row["input_ids"])} for row in rows]
    record = one_step(tmp_path, nowhere, **split(4))
    labels = one_step(tmp_path, rows, (Labels(weight=0.3),), **split(4))
    assert_same(record, labels)
    assert {"objective/kl", "agreement"}.isdisjoint(record.logs[0])


def test_own_tokens_without_places_are_refused() -> None:
    """Row by row the teacher's next token would be compared with that of another text."""
    batch = Collator()(make_rows(KIND, 4))
    del batch["aligned_at"]
    with pytest.raises(UserError, match="aligned_at"):
        TokenRows(shift=True).units(batch)


# ---- Stored ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
def test_what_is_stored_is_what_is_compared(chunked: bool, tmp_path: Path) -> None:
    """A cache with a row for every label, read for the compared ones, gives each the teacher of another token."""
    trainer = make_trainer("causal-lm", tmp_path, rows=make_rows(KIND), terms=TERMS)
    batch = Collator()(make_rows(KIND, 4))
    live = trainer._compare(trainer.model.eval(), batch, trainer._heads if chunked else None).rows
    kept = Kept(top=40, temperature=2.0, classes=40, precision="float32")
    recorder = Recorder(trainer.source, trainer.layout, kept, bf16=False)
    if not chunked:
        recorder.heads = []
    columns = recorder(batch)
    counts = trainer.layout.units(batch)["row"].long().tolist()
    assert [len(one) for one in columns["remaining"]] == [4 * one for one in counts]
    parts = [torch.frombuffer(bytearray(one), dtype=torch.float32) for one in columns["log_probabilities"] if one]
    taught: Any = live.compared.teacher
    wanted = SparseRows.of(taught, 40, 2.0).log_probabilities.float()
    torch.testing.assert_close(torch.cat(parts).reshape(-1, 40), wanted, rtol=1e-5, atol=1e-5)


def test_stored_rows_are_spread_over_all() -> None:
    """Stored rows stand beside all of the student's where logits are chunked: a step off, each teaches another."""
    probabilities = torch.tensor([[0.5, 0.3], [0.6, 0.3]])
    stored = SparseRows(torch.tensor([[3, 1], [2, 0]]), probabilities.log(), torch.tensor([0.2, 0.1]).log())
    spread = stored.for_rows(4, torch.tensor([False, True, False, True]))
    assert spread.indices[[1, 3]].tolist() == stored.indices.tolist()
    assert torch.equal(spread.remaining[[1, 3]], stored.remaining)
    assert torch.isfinite(spread.log_probabilities).all()
    assert len(stored[:0].for_rows(2, torch.tensor([False, False]))) == 2
    with pytest.raises(ValueError, match="3 rows"):
        stored.for_rows(3)
