"""What a run says while it runs; Transformers' own progress bars do the rest."""

from __future__ import annotations

from rich.console import Console

STAGES = {
    "teacher": "Teacher",
    "student": "Student: distilling",
    "baseline": "Baseline: the same student without the teacher",
    "report": "Report: judging and timing all models",
    "push": "Hub: pushing the student",
}


class Narrator:
    """Prints stages and remarks, on one process only.

    Args:
        enabled: Whether this process is the one.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._console = Console(quiet=not enabled)

    def stage(self, name: str) -> None:
        """Announce a stage: `"student"`, `"baseline seed 43"`, ..."""
        kind, _, seed = name.partition(" ")
        self._console.rule(STAGES.get(kind, kind) + (f" ({seed})" if seed else ""), align="left")

    def say(self, text: str) -> None:
        """Print a remark."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
