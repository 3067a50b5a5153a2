"""What a check of the doctor says: `Finding`, and the error for a check that cannot run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warning", "mistake", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: What was looked at, such as `tokenizer`: the name under which findings are shown, and stable in `--json`.
        status: `ok`; `warning`: probably wrong; `mistake`: the run would fail, or its result would mean nothing;
            `skipped`: it could not be checked here.
        found: The figure or fact, also if all is well; of a check that was skipped, why.
        advice: What to do; empty if there is nothing to do.
        figures: Numbers for scripts, by names that end in their unit: `peak_bytes`, `step_seconds`. Only in `--json`.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    figures: Mapping[str, float] = field(default_factory=dict, compare=False)


class CannotCheck(Exception):
    """A check cannot run here; the message says why. It is shown as `skipped`."""
