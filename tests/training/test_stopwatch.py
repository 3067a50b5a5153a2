"""Time on a device: what was measured, without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from hf_distill.training.meter import MOST_EVENTS, Stopwatch

CPU = torch.device("cpu")


class FakeEvent:
    """Reads a clock that every record moves on by a second; counts who waited for it."""

    now = 0
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1

    def record(self) -> None:
        type(self).now += 1
        self.at = type(self).now

    def synchronize(self) -> None:
        type(self).waits += 1

    def elapsed_time(self, end: Any) -> float:
        return 1000.0 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose events are fake."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now", 0)
    monkeypatch.setattr(FakeEvent, "waits", 0)
    return torch.device("cuda", 0)


def test_time_on_a_cpu() -> None:
    """Only what is inside counts, and only once."""
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.running():
            time.sleep(0.02)
        time.sleep(0.02)
    assert 0.04 <= watch.drain() < 0.06 + 0.5
    assert watch.drain() == 0


def test_time_on_an_accelerator(gpu: torch.device) -> None:
    """The host's clock would measure how long it takes to queue the work, and waiting for it would slow the run."""
    watch = Stopwatch(gpu)
    for _ in range(3):
        with watch.running():
            FakeEvent.now += 4
    assert FakeEvent.waits == 0
    assert watch.drain() == 15.0
    assert watch.drain() == 0


def test_events_do_not_pile_up(gpu: torch.device) -> None:
    """A run of a million steps that never logs would hold two million events."""
    watch = Stopwatch(gpu)
    for _ in range(MOST_EVENTS + 20):
        with watch.running():
            pass
    assert len(watch._pending) == MOST_EVENTS
    assert FakeEvent.waits == 20
    assert watch.drain() == MOST_EVENTS + 20
