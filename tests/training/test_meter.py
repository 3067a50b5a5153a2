"""What a training says its steps cost. The clock is one that models and data move on, so that every second is known."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from invariants.cases import KINDS, Collator, NotingTrainer, make_rows, make_trainer, split
from torch import Tensor
from transformers import TrainerCallback

from hf_distill.objectives import Labels
from hf_distill.training import meter
from hf_distill.training.meter import Meter, peak_memory

CPU = torch.device("cpu")
MIB = 2**20


class Clock:
    """Stands still but for what is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def takes(self, seconds: float) -> Any:
        """Return a hook that takes its time."""

        def hook(*_: Any, **__: Any) -> None:
            self.now += seconds

        return hook


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that stopwatches read."""
    clock = Clock()
    monkeypatch.setattr("hf_distill.training.meter.time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class SlowCollator(Collator):
    """Takes ten seconds for a batch."""

    clock: Clock

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.clock.now += 10
        return super().__call__(rows)


def timed(clock: Clock, directory: Path, **settings: Any) -> NotingTrainer:
    """Return a trainer whose steps take 2 s for each micro-batch, 0.5 of them the teacher's, and 1 s in between.

    Data, evaluation and saving take far longer.
    """
    collator = SlowCollator()
    object.__setattr__(collator, "clock", clock)
    trainer = make_trainer("classification", directory, collator=collator, **settings)
    trainer.model.register_forward_pre_hook(clock.takes(1.5))
    if trainer.teacher is not None:
        trainer.teacher.register_forward_pre_hook(clock.takes(0.5))
    optimising = TrainerCallback()
    optimising.on_pre_optimizer_step = clock.takes(1.0)  # type: ignore[method-assign]
    trainer.add_callback(optimising)
    return trainer


def logs(trainer: NotingTrainer) -> list[dict[str, Any]]:
    return [log for log in trainer.state.log_history if "loss" in log]


# --- time and tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_rates_are_those_of_the_steps_alone(every: int, clock: Clock, tmp_path: Path) -> None:
    """Time of evaluations, of waiting for data and of saving, counted in or taken from the wrong side, makes a rate
    that changes with how often one logs; without the optimiser it is that of no step."""
    trainer = timed(
        clock, tmp_path, num_train_epochs=2, logging_steps=every, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, **split(4),
    )  # fmt: skip
    trainer.train()
    tokens, seconds = trainer.record.tokens, 2 * 2.0 + 1.0
    assert len(tokens) == 6
    for place, log in enumerate(logs(trainer)):
        here = tokens[every * place : every * (place + 1)]
        assert log["tokens_per_second"] == round(sum(here) / (every * seconds), 1)
        assert log["teacher_share"] == pytest.approx(2 * 0.5 / seconds)
        assert log["peak_memory"] > 1
    assert not any(name.startswith("eval_t") for log in trainer.state.log_history for name in log)


def test_a_resumed_training_counts_its_own_steps(clock: Clock, tmp_path: Path) -> None:
    """The time of loading and of skipping what was seen, or tokens of before, would show as a burst or a gap."""
    settings: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, **split(4)}
    whole = timed(clock, tmp_path, **settings)
    whole.train()
    rest = timed(clock, tmp_path, **settings)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    names = ("step", "tokens_per_second", "teacher_share")
    assert [[log[name] for name in names] for log in logs(rest)] == [
        [log[name] for name in names] for log in logs(whole)
    ]
    assert rest.record.tokens == whole.record.tokens[4:]


def test_another_training_starts_from_nothing(clock: Clock, tmp_path: Path) -> None:
    """What was left unlogged would be added to the first log of the next training of the same trainer."""
    trainer = timed(clock, tmp_path, max_steps=2, logging_steps=3, learning_rate=0.0, **split(8))
    trainer.train()
    trainer.args.logging_steps = 1
    trainer.train()
    first = logs(trainer)[0]
    assert first["tokens_per_second"] == round(trainer.record.tokens[2] / 3.0, 1)


def by_hand(kind: str) -> int:
    """Return how many tokens there are in the examples of a kind: of all texts, and of the decoder's."""
    rows = make_rows(kind)
    texts = [
        text for row in rows for text in (row["input_ids"] if kind == "sentence-similarity" else [row["input_ids"]])
    ]
    written = [token for row in rows if "decoder_input_ids" in row for token in row["labels"] if token != -100]
    return sum(map(len, texts)) + len(written)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_that_the_student_reads(kind: str, tmp_path: Path) -> None:
    """Counted with padding, the same work would seem faster the worse it is batched; counted by label, a prompt would
    cost nothing. That it is the same number on any split: `invariants/`."""
    trainer = make_trainer(kind, tmp_path, num_train_epochs=1, **split(4))
    trainer.train()
    assert sum(trainer.record.tokens) == by_hand(kind)


class WithoutMask(Collator):
    """Leaves out the attention mask, so that padding is read like any other token."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: value for name, value in super().__call__(rows).items() if name != "attention_mask"}


def test_without_a_mask_every_position_is_read(tmp_path: Path) -> None:
    """Then the models see no padding either."""
    trainer = make_trainer("classification", tmp_path, collator=WithoutMask(), num_train_epochs=1, **split(8))
    sizes: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    trainer.train()
    assert trainer.record.tokens == sizes


def test_tokens_of_a_teacher_with_a_tokenizer_of_its_own_do_not_count(tmp_path: Path) -> None:
    """Its tokens are in the batch as well, and more or fewer of them say nothing of the student's speed."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = Collator()(rows)
        theirs = {f"teacher_{name}": batch[name].repeat(1, 2) for name in ("input_ids", "attention_mask")}
        return {**theirs, **batch}

    trainer = make_trainer("classification", tmp_path, collator=collate, num_train_epochs=1, **split(4))  # type: ignore[arg-type]
    trainer.train()
    assert sum(trainer.record.tokens) == by_hand("classification")


def test_no_teacher_has_no_share(tmp_path: Path) -> None:
    """A share of 0 would be that of a teacher that costs nothing."""
    trainer = make_trainer("classification", tmp_path, terms=[Labels()], max_steps=1)
    trainer.teacher = None
    trainer.train()
    (log,) = logs(trainer)
    assert "teacher_share" not in log
    assert log["tokens_per_second"] > 0


# --- several processes, and what is not known -------------------------------------------------------------------------


def test_of_several_processes_the_slowest_and_the_largest_count(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes as long as its slowest process, and runs out of memory on its fullest; the tokens are those of
    all already."""
    monkeypatch.setattr(meter, "peak_memory", lambda _: 100.0)
    one = Meter(CPU)
    one.on_step_begin(*[Any] * 3)  # type: ignore[arg-type]
    clock.now += 2
    one.on_step_end(*[Any] * 3)  # type: ignore[arg-type]
    one.count(torch.tensor(60.0))
    figures = one.read(lambda own: torch.cat((own, own * 2, own)))
    assert figures == {"tokens_per_second": 15.0, "peak_memory": 200.0}


def test_what_is_not_known_is_left_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 0 tokens where no token can be counted (other inputs than texts), or a memory of 0, is no figure."""
    monkeypatch.setattr(meter, "peak_memory", lambda _: None)
    one = Meter(CPU)
    one.on_step_begin(*[Any] * 3)  # type: ignore[arg-type]
    clock.now += 2
    one.on_step_end(*[Any] * 3)  # type: ignore[arg-type]
    one.count(torch.tensor(0.0))
    assert one.read(lambda own: own) == {}


def test_many_tokens_are_counted_exactly(clock: Clock) -> None:
    """In float32 the 17-millionth token is the last one that adds anything."""
    one = Meter(CPU)
    for _ in range(3):
        one.count(torch.tensor(2.0**24))
    one.count(torch.tensor(1.0))
    one._steps._seconds = 1.0
    assert one.read(lambda own: own)["tokens_per_second"] == 3 * 2**24 + 1


# --- memory -----------------------------------------------------------------------------------------------------------


def test_peak_memory_is_the_highest_there_was() -> None:
    """The present memory of a process says nothing of how near it came to its limit."""
    before = peak_memory(CPU)
    assert before is not None
    resident = psutil.Process().memory_info().rss / MIB
    assert before >= 0.9 * resident
    block = torch.ones(int(before + 64 - resident) * MIB // 4)  # touched, every page
    del block
    after = peak_memory(CPU)
    assert after is not None
    assert after > before + 16  # not 64: the kernel counts in batches of pages


def test_where_the_system_tells_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """macOS counts in bytes what Linux counts in KiB: a thousandth, or a thousand times, of the memory."""
    pytest.importorskip("resource")
    monkeypatch.setattr(meter, "_STATUS", tmp_path / "none")
    used = SimpleNamespace(ru_maxrss=512 * MIB)
    monkeypatch.setattr("resource.getrusage", lambda _: used)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory(CPU) == 512
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert peak_memory(CPU) == 512 * 1024
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) is None


def test_a_device_counts_what_is_allocated_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's memory is not what a GPU runs out of."""
    asked = []

    def allocated(device: torch.device) -> int:
        asked.append(device)
        return 3 * MIB

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated)
    device = torch.device("cuda", 1)
    assert peak_memory(device) == 3
    assert asked == [device]
    meta = peak_memory(torch.device("meta"))  # a device that counts nothing
    assert meta == peak_memory(CPU)
