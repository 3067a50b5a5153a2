"""Data as a task prepares it: columns in, batches out, and the line it is refused with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hf_distill.errors import UserError


def dataset(**columns: Sequence[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def refused(work: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, str]:
    """Return key and text of the one line that something is refused with."""
    with pytest.raises(UserError) as caught:
        work(*args, **kwargs)
    (line,) = caught.value.mistakes
    assert "\n" not in line
    return caught.value.key, line


def batch(prepared: Any, split: str = "train") -> dict[str, Any]:
    """Return a whole split as one batch, collated."""
    rows = [{key: value for key, value in row.items() if key != "length"} for row in getattr(prepared, split)]
    return dict(prepared.collator(rows))
