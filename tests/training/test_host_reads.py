"""A training step does not wait for the device: what is read from it, and how often, beyond the one documented read.

`docs/performance.md` names that read: how many rows (or positions) of a batch count.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch
from invariants.cases import KINDS, make_trainer, split
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import hf_distill
from hf_distill.component import component
from hf_distill.objectives import (
    Attention,
    Comparison,
    Embeddings,
    Hidden,
    InputGradient,
    KLDivergence,
    Labels,
    MarginMSE,
    Objective,
    Relational,
    Relations,
    SimilarityMatrix,
)

PACKAGE = Path(hf_distill.__file__).parent
# Of the collator, before a batch is sent to a device.
COLLATING = {PACKAGE / "training" / "padding_free" / "bins.py", PACKAGE / "rows" / "padding.py"}
# Their result has a size or a value that only the device knows.
READS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    *("equal", "allclose", "is_nonzero"),
)
# In Python; on a CPU tensor `tolist` and `numpy` are no operation that could be seen.
METHODS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")
# Compared on a CPU only, behind a question for the kind of device.
ON_A_CPU = "allclose in _gradient_of_the_loss"
PASSED_THROUGH = ("__torch_function__", "noted")
MICRO_BATCHES = 6
# Whether all was finite: after the first step and at the end, however long a training is.
FINITE = {"item in _first_fault": 2}


class HostReads(TorchDispatchMode):
    """Counts the reads that this package makes, by operation and function; also those in the backward pass.

    What Transformers, accelerate and torch read by themselves is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in READS or (name.startswith("index") and any(map(_is_mask, args[1:2]))):
            self.note(name, sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def note(self, name: str, frame: FrameType | None) -> None:
        # A function mode stands between torch and whoever called it.
        while frame and ("site-packages/torch/" in frame.f_code.co_filename or frame.f_code.co_name in PASSED_THROUGH):
            frame = frame.f_back
        assert frame is not None
        place = Path(frame.f_code.co_filename)
        if place in COLLATING:
            return
        if PACKAGE in place.parents or frame.f_code.co_name == "backward":
            self.found[f"{name} in {frame.f_code.co_name}"] += 1


def _is_mask(indices: Any) -> bool:
    """Whether one of them is a mask, which makes indexing ask how many of its entries are true."""
    return isinstance(indices, list | tuple) and any(
        isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices
    )


def reads(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what is read from the device while `run` runs."""
    watch = HostReads()
    with monkeypatch.context() as patch, watch:
        for name in METHODS:
            patch.setattr(Tensor, name, _noting(watch, name))
        run()
    return watch.found


def _noting(watch: HostReads, name: str) -> Callable[..., Any]:
    real = getattr(Tensor, name)

    def noted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        watch.note(name, sys._getframe(1))
        with _disable_current_modes():  # which would see the operation inside, and count it twice
            return real(self, *args, **kwargs)

    return noted


def trained(
    kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch, terms: Sequence[Objective] | None = None
) -> Counter[str]:
    settings = {"num_train_epochs": 1, "logging_steps": 100, "max_grad_norm": 1.0, **split(4)}
    trainer = make_trainer(kind, directory, terms=terms, **settings)
    return reads(trainer.train, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_asks_at_most_once_how_many_rows_there_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One `.item()` for a progress bar, or picking by a mask what could be picked by a known index, stops the queue of
    a GPU in every step: a tenth of the throughput, unseen on a CPU."""
    terms = None if kind in ("regression", "sentence-similarity") else [KLDivergence(), Labels()]
    found = trained(kind, tmp_path, monkeypatch, terms)
    by_example = ("classification", "multi-label", "regression", "sentence-similarity")
    where = "select" if kind == "question-answering" else "places"
    wanted = {} if kind in by_example else {f"nonzero in {where}": MICRO_BATCHES}
    if kind not in (*by_example, "question-answering", "token-classification"):
        wanted[ON_A_CPU] = MICRO_BATCHES
    assert {**found, ON_A_CPU: 0} == {**wanted, **FINITE, ON_A_CPU: 0}


@pytest.mark.parametrize(
    ("kind", "term", "asks"),
    [
        ("classification", Hidden(), 1),
        ("classification", Embeddings(), 1),
        ("classification", Attention(), 1),
        ("classification", Relations(), 1),
        ("classification", Relational(), 0),
        ("classification", InputGradient(), 0),
        ("sentence-similarity", SimilarityMatrix(), 0),
        ("sentence-similarity", MarginMSE(), 0),
    ],
    ids=lambda one: one.name if isinstance(one, Objective) else None,
)
def test_a_term_asks_at_most_once_which_positions_count(
    kind: str, term: Objective, asks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve layers of two models that each select by the same mask would wait 24 times for the same number."""
    found = trained(kind, tmp_path, monkeypatch, [term])
    assert found == FINITE | ({"nonzero in places": MICRO_BATCHES} if asks else {})


def test_what_is_not_finite_is_asked_for_no_more_often_in_a_longer_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is looked at in every step makes the host wait for the device in every step."""
    for epochs in (1, 4):
        trainer = make_trainer("classification", tmp_path, num_train_epochs=epochs, logging_steps=100, **split(4))
        assert reads(trainer.train, monkeypatch) == FINITE
    # A step cannot be left out before it is known whether it is to be: `on_nan: skip` asks.
    trainer = make_trainer("classification", tmp_path, max_steps=5, logging_steps=100, on_nan="skip", **split(4))
    assert reads(trainer.train, monkeypatch) == {"item in _first_fault": 5}


def test_an_evaluation_reads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of an evaluation are fetched at its end, not batch by batch."""
    trainer = make_trainer("classification", tmp_path, max_steps=1, **split(4))
    trainer.train()
    found = reads(trainer.evaluate, monkeypatch)
    assert found["cpu in _rows"] == 1
    # What else there is, is read from what is on the host by then.
    assert {name.rpartition(" ")[2] for name in found} == {"_rows", "figures", "fault_of"}


@component
class Reads(Objective):
    """Does what no objective should."""

    name: ClassVar[str] = "reads"
    unit: ClassVar[Any] = "example"
    how: str = "item"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        losses = comparison.rows.student.square().sum(-1)
        if self.how == "item":
            return losses * losses.detach().max().item()
        if self.how == "if":
            return losses * (2 if losses.detach().max() > 0 else 1)
        if self.how == "tolist":
            return losses * sum(losses.tolist())
        return losses[losses > 0]  # all of them


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ("item", ["item in per_example"]),
        ("if", ["__bool__ in per_example"]),
        ("tolist", ["tolist in per_example"]),
        ("mask", ["index in per_example", "index_put in backward"]),
    ],
)
def test_reads_are_seen(how: str, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that sees nothing passes every test above."""
    # The objective is outside the package, whose functions alone are watched.
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", Path(__file__).parent)
    found = trained("classification", tmp_path, monkeypatch, [Reads(how=how)])
    assert {name: found[name] for name in seen} == dict.fromkeys(seen, MICRO_BATCHES)
