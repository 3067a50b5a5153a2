"""What reading a cache or moving an average costs, and how often a teacher is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

PART = "reading the cache"
MOVING = "moving the average"


class Reading:
    """Stands where `replay.Targets` stands, and notes the processor seconds of every batch that is read.

    Args:
        targets: What reads.

    Attributes:
        seconds: Of each batch, in the order in which they were read.
    """

    def __init__(self, targets: Any) -> None:
        self.targets = targets
        self.seconds: list[float] = []

    def batch(self, *args: Any) -> Any:
        """See `replay.Targets.batch`."""
        before = time.process_time()
        found = self.targets.batch(*args)
        self.seconds.append(time.process_time() - before)
        return found


def timed(trainer: Any) -> Callable[[slice], dict[str, float]]:
    """Time what a trainer reads from a cache, or how it moves an average of the student's weights, in this process.

    Returns:
        What gives the seconds of some of the batches as `Outcome.parts`: none where there is neither.
    """
    from hf_distill.cache.replay import AddTargets

    source = getattr(trainer, "source", None)
    if source is not None and source.follows_student:
        move, moved = source.after_step, []

        def after_step(*args: Any) -> None:
            before = time.process_time()
            move(*args)
            moved.append(time.process_time() - before)

        source.after_step = after_step
        return lambda steps: {MOVING: sum(moved[steps])}
    collator = trainer.data_collator
    if not isinstance(collator, AddTargets):
        return lambda _: {}
    reading: Any = Reading(collator.targets)
    trainer.data_collator = replace(collator, targets=reading)
    return lambda batches: {PART: sum(reading.seconds[batches])}


@contextmanager
def counting(teacher: Any) -> Iterator[list[int]]:
    """Count the examples that go through a model: batches with a mask, not the few tokens that try out its head."""
    seen: list[int] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if "attention_mask" in inputs:
            seen.append(len(inputs["input_ids"]))

    hook = teacher.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
