"""Prints the headings of a run's stages, and remarks; progress bars come from elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from hf_distill.formatting import readable, readable_lines

STAGES = {
    "teacher": "Teacher",
    "completions": "Completions: written before the training",
    "student": "Student: distilling",
    "baseline": "Baseline: the same student without the teacher",
    "report": "Report: evaluating all models",
    "push": "Hub: pushing the student",
}


class Narrator:
    """Prints stages and remarks, in one process only.

    Args:
        enabled: Whether this process prints.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._console = Console(quiet=not enabled)

    def stage(self, name: str, of: int = 1) -> None:
        """Announce a stage: `"student"`, `"baseline seed 43"`, `"student seed 43 stage 1"`, ...

        Args:
            name: The stage that begins.
            of: Number of stages of training, if the name contains `stage`.
        """
        kind, *rest = name.split()
        details = dict(zip(rest[::2], rest[1::2], strict=False))
        title = STAGES.get(kind, kind)
        if "stage" in details:
            title = f"{title.partition(':')[0]}: stage {details['stage']} of {of}"
        self.heading(title + (f" (seed {details['seed']})" if "seed" in details else ""))

    def heading(self, title: str) -> None:
        """Print a heading."""
        self._console.rule(escape(readable(title)), align="left")

    def say(self, text: str) -> None:
        """Print a remark."""
        self._console.print(readable_lines(text), markup=False, highlight=False, soft_wrap=True)
