"""A long recipe on one, two and sharded processes, ended at random moments: the same command again ends the same.

Its teacher is fine-tuned and cached, it has two stages, a baseline and two seeds. A sample runs with the other tests.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign.fleet import PLACES, Fleet, at, send_this, start
from campaign.trials import (
    OTHER,
    RESTARTED,
    RIGHT,
    SAME,
    STUCK,
    TRACEBACK,
    Table,
    at_file_operation,
    cut_power,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and signals of POSIX")
# Trials of a kind on an engine; `make campaign` says how many.
TRIALS = int(os.environ.get("CAMPAIGN", "0"))
COUNTS = {"one": 1, "ddp": 2, "fsdp2": 2, "fsdp2-shards": 2}
OTHER_REPORT = "OTHER REPORT"
WRONG_STATUS = "WRONG STATUS"
TABLE = Table()
# In a report, what a clock or a meter says, and where it lies.
MEASURED = ("seconds", "runtime", "per_second", "latency", "throughput", "speedup", "teacher_share", "memory", "cost")


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """Print the table after the last trial."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    print(f"\n\n{TABLE}\n")


def figures(found: Any) -> Any:
    """Return a report, or a part of it, without what is measured and where it lies."""
    if isinstance(found, dict):
        kept = {key: value for key, value in found.items() if not any(word in key for word in MEASURED)}
        return {key: figures(value) for key, value in kept.items() if key != "recipe"}
    return [*map(figures, found)] if isinstance(found, list) else found


@dataclass(frozen=True)
class Long:
    """The recipe on an engine.

    Attributes:
        place: Directory of recipe, output, cache and logs.
        engine: A name of `engines.ENGINES`.
        wanted: Weights and figures of the run that nothing disturbed.
    """

    place: Path
    engine: str
    wanted: tuple[bytes, Any] = (b"", None)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        """What the run writes: its output and its cache."""
        return self.place / "files"

    @property
    def out(self) -> Path:
        return self.files / "out"

    def start(self, *words: str, **how: Any) -> Fleet:
        recipe, logs = self.place / "recipe.yaml", self.place / "logs"
        return start([recipe, *words], logs, count=COUNTS[self.engine], engine=self.engine, **how)

    def result(self) -> tuple[bytes, Any]:
        return (self.out / "model.safetensors").read_bytes(), figures(
            json.loads((self.out / "report.json").read_text())
        )

    def judged(self) -> str:
        weights, report = self.result()
        if weights != self.wanted[0]:
            return OTHER
        return SAME if report == self.wanted[1] else OTHER_REPORT

    def again(self) -> str:
        """Give the command again, undisturbed, with `--restart` where it says so; return what became of it."""
        for words, right in (((), SAME), (("--restart",), RESTARTED)):
            fleet = self.start(*words)
            statuses = fleet.wait()
            if fleet.stuck:
                return STUCK
            if not any(statuses):
                found = self.judged()
                return right if found == SAME else found
            if "Traceback" in fleet.said or set(statuses) != {2}:
                break
        return TRACEBACK


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_model: Any, sentiment_csv: Any) -> Callable[[Path, str], Long]:
    """Return a function that writes the recipe, for an engine; each engine has run it once, undisturbed."""
    import transformers  # noqa: F401 - here, and not in every process

    import hf_distill.run.distill  # noqa: F401

    model, whole = make_model("bert-bare", layers=2), {}
    training = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "disable_tqdm": True, "num_train_epochs": 1}
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "use_cpu": True, "logging_steps": 2}

    def write(place: Path, engine: str) -> Long:
        (place / "logs").mkdir(parents=True)
        teacher = {"name": "finetuned", "model": str(model)}
        recipe = {
            "task": "text-classification",
            "data": {
                "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
                "columns": {"text": "sentence"},
            },
            "teacher": {"name": "cached", "teacher": teacher, "path": str(place / "files" / "cache")},
            "student": {"name": "copy_layers", "layers": 1},
            "stages": [{"objectives": [{"name": "kl"}]}, {"objectives": [{"name": "kl"}, {"name": "labels"}]}],
            "training": {**training, **steps, "output_dir": str(place / "files" / "out")},
            "report": {"latency": False, "baseline": True, "seeds": 2},
        }
        (place / "recipe.yaml").write_text(json.dumps(recipe))
        return Long(place, engine)

    def made(place: Path, engine: str) -> Long:
        if engine not in whole:
            first = write(tmp_path_factory.mktemp(engine), engine)
            counted, began = first.place / "counted", time.monotonic()
            noting = partial(_at_operation, first, 0, 0, counted=counted)
            fleet = first.start(disturb=noting)
            assert not any(fleet.wait()), fleet.said
            first.sizes.update(operations=counted.stat().st_size, seconds=int(time.monotonic() - began))
            whole[engine] = replace(first, wanted=first.result())
        return replace(write(place, engine), wanted=whole[engine].wanted, sizes=whole[engine].sizes)

    return made


def _at_operation(long: Long, rank: int, number: int, here: int, act: Any = None, **how: Any) -> None:
    if here == rank:
        at_file_operation(long.files, number, act, **how)
    elif "synced" in how:
        at_file_operation(long.files, 10**9, act, **how)


# ---- How a run is ended ----------------------------------------------------------------------------------------------


def _ended(fleet: Fleet, wanted: set[int | None], alone: tuple[int, ...] = ()) -> str:
    """Wait for the end of a disturbed run; return what is wrong with it, or nothing."""
    statuses = fleet.wait(alone=alone)
    if fleet.stuck:
        return STUCK
    left = {status for status in statuses if status is not None} - {-signal.SIGKILL, -signal.SIGSTOP}
    survivors = [child.said for child in fleet.children if child.status != -signal.SIGKILL]
    if any("Traceback" in said for said in survivors):
        return TRACEBACK
    return "" if left <= wanted else f"{WRONG_STATUS} {statuses}"


def kill_one(long: Long, draw: random.Random) -> str:
    """SIGKILL to one process at a random time; the others end by themselves."""
    fleet = long.start()
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    draw.choice(fleet.children).send(signal.SIGKILL)
    return _ended(fleet, {0, 1})


def kill_all(long: Long, draw: random.Random) -> str:
    """SIGKILL to all processes at a random time."""
    fleet = long.start()
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    fleet.send(signal.SIGKILL)
    return _ended(fleet, {0})


def kill_launcher(long: Long, draw: random.Random) -> str:
    """SIGKILL to the launcher at a random time: the processes save a checkpoint, or end at once."""
    fleet = long.start(launched=True)
    assert fleet.launcher is not None
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    fleet.launcher.send(signal.SIGKILL)
    return _ended(fleet, {0, 1, 143})


def stop_one(long: Long, draw: random.Random) -> str:
    """SIGSTOP to one process at a random time; the others give it up."""

    def patience(_: int) -> None:
        from hf_distill.run import watch

        watch.SILENCE = 4.0

    fleet = long.start(disturb=patience)
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    rank = draw.randrange(len(fleet.children))
    fleet.children[rank].send(signal.SIGSTOP)
    if len(fleet.children) == 1:
        fleet.kill()
    return _ended(fleet, {0, 1}, (rank,))


def signal_one(long: Long, draw: random.Random) -> str:
    """SIGTERM or SIGUSR1 to one process at a random time: all save a checkpoint, or end at once."""
    fleet = long.start()
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    number, status = draw.choice(((signal.SIGTERM, 143), (signal.SIGUSR1, 85)))
    draw.choice(fleet.children).send(number)
    return _ended(fleet, {0, status})


def signal_all(long: Long, draw: random.Random) -> str:
    """SIGTERM to the launcher and to all processes."""
    fleet = long.start(launched=True)
    time.sleep(draw.uniform(0.2, 0.9 * long.sizes["seconds"]))
    fleet.send(signal.SIGTERM)
    return _ended(fleet, {0, 143})


def kill_at_a_place(long: Long, draw: random.Random) -> str:
    """SIGKILL to one process in a step, an evaluation, the cache, a checkpoint, the report, or between stages."""
    place, rank = draw.choice([*PLACES]), draw.randrange(COUNTS[long.engine])
    act = partial(send_this, signal.SIGKILL)
    return _ended(long.start(disturb=at(place, rank, act, draw.randint(1, 6))), {0, 1})


def kill_at_a_file(long: Long, draw: random.Random) -> str:
    """SIGKILL to the first process right before or after it changes a file."""
    number = draw.randint(1, long.sizes["operations"])
    return _ended(long.start(disturb=partial(_at_operation, long, 0, number, act=partial(send_this, 9))), {0, 1})


def cut_the_power(long: Long, draw: random.Random) -> str:
    """SIGKILL to all, as the first process changes a file; what was not forced to disk is then empty."""
    number, synced = draw.randint(1, long.sizes["operations"]), long.place / "synced"
    pids = long.place / "pids"
    pids.unlink(missing_ok=True)

    def end() -> None:
        for pid in map(int, pids.read_text().split()):
            os.kill(pid, signal.SIGKILL) if pid != os.getpid() else None
        send_this(signal.SIGKILL)

    def disturb(here: int) -> None:
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        _at_operation(long, 0, number, here, end, synced=synced)

    wrong = _ended(long.start(disturb=disturb), {0})
    cut_power(long.files, synced)
    return wrong


KINDS: dict[str, Callable[[Long, random.Random], str]] = {
    "SIGKILL to one process": kill_one,
    "SIGKILL to all": kill_all,
    "SIGKILL to the launcher": kill_launcher,
    "SIGSTOP of one process": stop_one,
    "SIGTERM or SIGUSR1 to one": signal_one,
    "SIGTERM to all and the launcher": signal_all,
    "SIGKILL at a place": kill_at_a_place,
    "SIGKILL at a file operation": kill_at_a_file,
    "power cut (model)": cut_the_power,
}
SAMPLE = (("ddp", "power cut (model)"),)
ALONE = ("SIGKILL to the launcher", "SIGSTOP of one process")  # kinds that mean nothing for one process


@pytest.mark.parametrize("engine", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_a_random_moment(base: Callable[[Path, str], Long], tmp_path: Path, engine: str, kind: str) -> None:
    """A week of work is lost, or ends with other weights than it would have had, and nobody notices."""
    if not TRIALS and (engine, kind) not in SAMPLE:
        pytest.skip("in make campaign")
    if engine == "one" and kind in ALONE:
        pytest.skip("there is one process")
    draw, wrong = random.Random(f"{engine} {kind}"), []
    for trial in range(max(1, TRIALS // 6)):
        long = base(tmp_path / str(trial), engine)
        outcome = ""
        for _ in range(draw.randint(1, 2)):
            outcome = outcome or KINDS[kind](long, draw)
        outcome = outcome or long.again()
        TABLE.add(f"{kind}, {engine}", outcome, str(long.place))
        wrong += [] if outcome in RIGHT else [f"{long.place}: {outcome}"]
    assert wrong == []
