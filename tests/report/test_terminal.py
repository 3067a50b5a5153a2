"""The table in the terminal: whole on any terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from reports import model, regression, unlabelled, whole
from rich.console import Console

from hf_distill.report.report import Report
from hf_distill.report.terminal import show


def printed(report: Report, width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show(report, Console(file=file, width=width), page="out/report.html")
    file.flush()
    return raw.getvalue().decode(encoding)


def test_what_is_printed() -> None:
    """The last lines of a run are all that many people read."""
    text = printed(whole())
    lines = [line.split() for line in text.splitlines()]
    assert ["accuracy", "85.2", "%", "83.1", "%", "81.9", "%"] in lines
    assert ["latency,", "batch", "1", "20.0", "ms", "10.0", "ms", "10.0", "ms"] in lines
    assert ["agreement", "with", "teacher", "-", "93.0", "%", "90.0", "%"] in lines
    assert text.endswith("Full report: out/report.html\n")
    assert "\x1b" not in text


def test_who_the_teacher_is(tmp_path: Path) -> None:
    """ "teacher" above a column of numbers does not say that it is the mean of two peers, saved somewhere."""
    who = "The teacher here is the mean of 2 peers."
    report = whole(settings={"teacher_column": who})
    report.save(tmp_path)
    for text in (printed(report), *((tmp_path / name).read_text("utf-8") for name in ("report.html", "README.md"))):
        assert who in text


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_narrow_terminals_lose_nothing(width: int) -> None:
    """Rich cuts cells with an ellipsis by default: `85.…` in a log cannot be read again."""
    text = printed(whole(), width)
    assert "…" not in text
    squeezed = "".join(text.split())
    for line in whole().verdict():
        assert "".join(line.split()) in squeezed


def test_a_terminal_without_unicode() -> None:
    """`LC_ALL=C` on a cluster must not end a finished run with a UnicodeEncodeError."""
    assert "+/- 0.6 points" in printed(whole(), encoding="ascii")


def test_names_are_not_markup() -> None:
    """A metric called `f1[macro]` would be printed as `f1`, one called `[/b]` would raise."""
    report = whole(student=replace(whole().student, metrics={"accuracy": 0.8, "f1[macro]": 0.5, "[/b]": 0.5}))
    text = printed(report)
    assert "f1[macro]" in text
    assert "[/b]" in text


@pytest.mark.parametrize(
    "report", [regression(), unlabelled(), whole(baseline=None), whole(student=model(1, None, accuracy=0.8))]
)
def test_missing_parts(report: Report) -> None:
    """What was not measured has no row, and no `None`."""
    text = printed(report)
    assert "None" not in text
    assert "nan" not in text
