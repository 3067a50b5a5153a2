"""The report of a run, with its sentences and files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.files.atomic import write_atomic
from hf_distill.report.files import REPORT, from_plain, to_plain
from hf_distill.report.model_card import card
from hf_distill.report.notebook import summary
from hf_distill.report.page import html
from hf_distill.report.results import Results
from hf_distill.report.verdict import verdict


@dataclass(frozen=True, kw_only=True)
class Report(Results):
    """The results of a run, with their verdict, and saved as files."""

    def verdict(self) -> list[str]:
        """Return one to four sentences: the student's quality, the teacher's effect, and what got worse."""
        return verdict(self)

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows for a report: its table and its verdict."""
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `report.json`: plain values, None for NaN and infinite numbers."""
        return to_plain(self)

    def save(self, directory: str | Path) -> Path:
        """Write `report.html`, `README.md` and, last, `report.json`; return the path of `report.html`.

        Each file is written atomically. An old `report.json` is deleted first, so that a directory with a
        `report.json` always holds a complete report.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "report.html": html(self),
            "README.md": card(self),
            REPORT: json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        }
        (directory / REPORT).unlink(missing_ok=True)
        for name, content in files.items():
            write_atomic(directory / name, content)
        return directory / "report.html"

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Load a report from its `report.json`, or from the directory that holds it."""
        path = Path(path)
        content = json.loads((path / REPORT if path.is_dir() else path).read_text(encoding="utf-8"))
        return from_plain(cls, content)
