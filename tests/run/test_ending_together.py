"""Several processes of a run end together: after a signal, and when one of them dies, stalls or fails.

The whole of it runs in `make campaign`; this is a sample.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from campaign.fleet import ACTS, Fleet, at, start

from hf_distill.errors import UserError

EVERY = [
    (place, event, rank)
    for place in ("training", "evaluation", "cache", "checkpoint")
    for event in ("SIGKILL", "SIGSTOP", "RuntimeError", "UserError")
    for rank in (0, 1)
    if (place, event) != ("cache", "UserError")  # raised in all (`parallel.together`)
] + [("start", "UserError", 0), ("start", "UserError", 1)]
SAMPLE = [("training", "SIGKILL", 1), ("checkpoint", "SIGSTOP", 0), ("start", "UserError", 0)]
SIGNALS = [(event, status, rank) for event, status in (("SIGTERM", 143), ("SIGUSR1", 85)) for rank in (0, 1)]


def sampled(every: list[Any], sample: list[Any]) -> list[Any]:
    """Mark as slow what is not in the sample."""
    return [pytest.param(*one, marks=() if one in sample else pytest.mark.slow) for one in every]


@pytest.fixture
def recipe(tmp_path: Path, make_model: Any, sentiment_csv: Any) -> Path:
    import transformers  # noqa: F401 - here, and not in every process

    import hf_distill.run.distill  # noqa: F401

    (tmp_path / "logs").mkdir()
    path = tmp_path / "recipe.yaml"
    pretrained = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=1))}
    text = {
        "task": "text-classification",
        "data": {
            "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
            "columns": {"text": "sentence"},
        },
        "teacher": {"name": "cached", "teacher": pretrained, "path": str(tmp_path / "cache")},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [{"name": "kl"}],
        "training": {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "num_train_epochs": 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "report": {"latency": False},
    }
    path.write_text(json.dumps(text))
    return path


def fail(kind: type[Exception]) -> None:
    raise kind("the disk of this process is broken")


EVENTS: dict[str, Callable[[], Any]] = {
    **ACTS,
    "RuntimeError": partial(fail, RuntimeError),
    "UserError": partial(fail, UserError),
}


def begin(recipe: Path, place: str, rank: int, act: Callable[[], Any], call: int = 2) -> Fleet:
    """Start a recipe in two processes, which are not patient with each other."""

    def disturb(here: int) -> None:
        from hf_distill.cache import cache
        from hf_distill.run import watch

        cache.SHARD_EXAMPLES = 16  # some for each
        watch.SILENCE, watch.GRACE = 4.0, 2.0
        at(place, rank, act, call)(here)

    return start([recipe], recipe.parent / "logs", disturb=disturb)


@pytest.mark.parametrize(("place", "event", "rank"), sampled(EVERY, SAMPLE))
def test_the_others_end_with_one_line(recipe: Path, place: str, event: str, rank: int) -> None:
    """Without it they wait for half an hour in an exchange that never ends, and then show a traceback of gloo."""
    fleet = begin(recipe, place, rank, EVENTS[event], call=1 if place == "start" else 2)
    statuses = fleet.wait(60, alone=[rank] if event == "SIGSTOP" else ())
    other = fleet.children[1 - rank]
    assert not fleet.stuck, fleet.said
    assert statuses[1 - rank] == (2 if event == "UserError" else 1), fleet.said
    words = {
        "SIGKILL": "has ended without a word",
        "SIGSTOP": "has not been heard of for 4 s",
        "RuntimeError": "has failed with RuntimeError: the disk",
        "UserError": "has stopped: the disk",
    }
    (line,) = [line for line in other.said.splitlines() if f"process {rank} (" in line]
    assert words[event] in line
    assert "he same command again" in line
    assert "Traceback" not in other.said


@pytest.mark.parametrize(("event", "status", "rank"), sampled(SIGNALS, [SIGNALS[1], SIGNALS[2]]))
def test_a_signal_to_one_process_stops_all_after_a_checkpoint(
    recipe: Path, event: str, status: int, rank: int, monkeypatch: Any
) -> None:
    """One that stops a step before the others leaves them waiting for it; none at all loses the work of hours."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    fleet = begin(recipe, "training", rank, EVENTS[event], call=4)
    assert fleet.wait(60) == [status, status], fleet.said
    assert "Traceback" not in fleet.said
    out = recipe.parent / "out"
    steps = [int(one.name.rpartition("-")[2]) for one in out.glob("checkpoint-*")]
    assert max(steps) in (4, 5), steps  # the step in which it came, or the next
    first = fleet.children[0].said
    assert f"Checkpoint: {out}/checkpoint-{max(steps)}" in first
    assert "scontrol requeue 4711" in first
    assert "Checkpoint: " not in fleet.children[1].said
    if rank:
        return
    again = start([recipe], recipe.parent / "logs")
    assert again.wait(120) == [0, 0], again.said


@pytest.mark.parametrize(
    ("place", "rank"), sampled([(place, rank) for place in ("cache", "evaluation") for rank in (0, 1)], [("cache", 1)])
)
def test_a_signal_elsewhere_ends_all(recipe: Path, place: str, rank: int) -> None:
    """The process that did not get it would wait for the other until the scheduler kills it."""
    fleet = begin(recipe, place, rank, EVENTS["SIGTERM"])
    assert fleet.wait(60) == [143, 143], fleet.said
    assert "Traceback" not in fleet.said
    assert "Run the same command again" in fleet.said


@pytest.mark.slow
def test_a_signal_to_all(recipe: Path) -> None:
    """A scheduler signals every process, and the launcher signals them once more."""
    import time

    fleet = begin(recipe, "training", 1, partial(time.sleep, 1.0), call=3)
    out = recipe.parent / "out"
    while not (out / "checkpoint-2" / "_files.json").exists():
        assert not any(child.has_ended for child in fleet.children), fleet.said
        time.sleep(0.01)
    for _ in range(2):
        fleet.send(signal.SIGTERM)
        time.sleep(0.1)
    assert fleet.wait(60) == [143, 143], fleet.said
    assert "Traceback" not in fleet.said
