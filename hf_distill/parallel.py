"""What one process finds out for all of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hf_distill.errors import UserError

Answer = TypeVar("Answer")


def asked_once(find_out: Callable[[], Answer]) -> Answer:
    """Have the first process find something out; all go on with its answer, or raise its mistake.

    Files may change between two looks, questions cost time, and a lone error would leave the others waiting. Where a
    run has several processes, all must call this, after building `TrainingArguments`, which settle how they talk.

    Raises:
        UserError: That of the first process, on all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return find_out()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            told = [find_out()]
        except UserError as error:
            told = [error]
    broadcast_object_list(told)
    if isinstance(told[0], UserError):
        raise told[0]
    answer: Answer = told[0]
    return answer
