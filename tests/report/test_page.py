"""The page: alone on a plane, safe with other people's labels, the same every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from reports import model, regression, several_seeds, unlabelled, whole

from hf_distill.report import plots
from hf_distill.report.calibration import calibration, confusion
from hf_distill.report.curves import Curve, panels
from hf_distill.report.page import html
from hf_distill.report.report import Report
from hf_distill.report.svg import VARIABLES

EVIL = '<img src=x onerror="alert(1)">$a_{ & "quoted" \u65e5\u672c \x00'


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


REPORTS = {
    "whole": whole(),
    "seeds": several_seeds((0.83, 0.84, 0.82), (0.81, 0.82, 0.82)),
    "regression": regression(),
    "unlabelled": unlabelled(),
    "bare": whole(
        baseline=None, history={}, calibration={}, confusion=None, groups=(), for_whom=(), settings={}, recipe=""
    ),
    "evil": whole(names=(r"$\frac{$", EVIL), settings={EVIL: EVIL}, recipe=f"# {EVIL}".replace("\x00", "")),
}


@pytest.fixture(scope="module", params=REPORTS)
def page(request: pytest.FixtureRequest) -> str:
    return html(REPORTS[request.param])


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    """A page with a font or a script from a CDN is blank behind a firewall, and tells others who reads it."""
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "formaction"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            if name.endswith("href"):
                assert (value or "").startswith("#")
    assert not re.findall(r"@import|url\((?!#)", page)
    hosts = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert hosts <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_plots_are_drawn_and_well_formed(page: str) -> None:
    """A plot that fails is only logged, so that a run keeps its numbers: a test must see it."""
    assert "could not be drawn" not in page
    for svg in svgs(page):
        assert svg.get("viewBox")
        assert svg.get("width") is None, "a fixed width does not fit a phone"


def test_ids_are_unique(page: str) -> None:
    """Plots that share ids clip each other: curves vanish in all but the first."""
    ids = Counter(attributes["id"] for _, attributes in Page(page).tags if "id" in attributes)
    assert not [name for name, count in ids.items() if count > 1]
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {one or other for one, other in used} <= set(ids)


def test_plots_take_their_colours_from_the_page(page: str) -> None:
    """Black text in a plot cannot be read in dark mode."""
    drawn = "".join(re.findall("<svg.*?</svg>", page, flags=re.DOTALL))
    found = set(re.findall(r"(?:fill|stroke): ?(#\w+|var\(--\w+\)|\w+)", drawn))
    assert found <= {"none", *VARIABLES.values()}
    for text in re.findall(r"<text[^>]*>", page):
        assert "var(--ink)" in text


def test_the_same_report_gives_the_same_page() -> None:
    """A page that changes by itself shows up in every diff; matplotlib's ids and dates are random by default."""
    matplotlib.rcParams["xtick.labelsize"] = 17.0  # what the user has set for her own plots is hers
    try:
        first = html(whole())
        assert matplotlib.rcParams["xtick.labelsize"] == 17.0
    finally:
        matplotlib.rcdefaults()
    assert first == html(whole())


def test_labels_are_text() -> None:
    """A label from a data set on the Hub must not run in the reader's browser, nor crash the plots as a formula."""
    parsed = Page(html(REPORTS["evil"]))
    assert "img" not in {tag for tag, _ in parsed.tags}
    assert '<img src=x onerror="alert(1)">' in parsed.text


def test_the_page_says_what_the_table_and_the_verdict_say() -> None:
    """A page that rounds or words differently from the terminal is a second truth."""
    report = several_seeds((0.831, 0.84, 0.82), (0.819, 0.82, 0.82))
    parsed = Page(html(report))
    for line in report.verdict():
        assert line in parsed.text
    for cell in ("85.2 %", "83.1 %", "81.9 %", "20.0 ms", "+1.2 points", "2.0 M", "4.0 MB", "2.13.0", "12.34"):
        assert cell in parsed.texts
    assert "copy_layers" in parsed.text


def test_every_run_has_its_curves() -> None:
    """A run that is missing in the plot of its loss looks as if it had none."""
    found = {quantity.title: curves for quantity, curves in panels(whole()).items()}
    assert list(found) == ["objective/kl", "objective/labels", "eval accuracy", "eval loss, student"]
    assert {run for run, _ in found["objective/kl"]} == {"student", "baseline", "student seed 43"}
    assert found["objective/kl"]["student", True] == Curve([20, 39], [0.4, 0.4])
    assert found["objective/kl"]["baseline", False].values[:2] == [1.0, 0.5]


def test_a_plot_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Hours of training must not be lost to a figure."""

    def fail(figure: object, data: object) -> None:
        raise ZeroDivisionError("a plot")

    monkeypatch.setattr(plots, "draw_calibration", fail)
    text = html(whole())
    assert "This plot could not be drawn" in text
    assert len(svgs(text)) == len(svgs(html(whole(calibration={})))) > 3
    assert "ZeroDivisionError" in caplog.text


def test_odd_numbers() -> None:
    """Zeros, negative values, NaN and empty bins: all happen, none may crash."""
    history = {
        "student": [{"step": 1, "objective/kl": 0.1}, {"step": 2, "objective/kl": float("nan")}, {"train_loss": 1.0}]
    }
    report: Report = whole(
        teacher=model(1, None, accuracy=0.0, matthews=-0.3),
        student=model(1, None, accuracy=float("nan"), matthews=-0.5),
        history=history,
        calibration={"student": calibration(np.zeros((0, 2)), np.zeros(0, dtype=int))},
        confusion=confusion(np.zeros(0, dtype=int), np.zeros(0, dtype=int)),
    )
    text = html(report)
    assert "could not be drawn" not in text
    assert "nan" not in Page(text).text.lower().split()


def test_many_classes_and_metrics() -> None:
    """Forty classes, thirty metrics: a page, not a wall; and nothing is dropped without a word."""
    names = tuple(f"a rather long intent name {index}" for index in range(40))
    metrics = {f"metric_{index}": 0.5 for index in range(30)}
    teacher, student = (model(size, None, accuracy=0.8, **metrics) for size in (2, 1))
    report = whole(names, teacher=teacher, student=student)
    text = Page(html(report)).text
    assert "20 more are not shown" in text
    assert "more in the table" in text
    assert "The 32 others" in text  # none of 40 has enough rows to be compared
    assert "a rather long intent name 39" in text
    assert "metric_29" in text


def test_the_classes_at_both_ends() -> None:
    """Of 150 classes the ones that lost most matter, and those that gained; a table of all is read by nobody."""
    from hf_distill.report.page import BEST, WORST, _groups

    report = whole(tuple(f"c{index}" for index in range(60)), rows=3000)
    whom = report.for_whom[0]
    found = _groups(report, whom)
    order = [group.name for group in whom.groups]
    assert [line.name for line in found.worst] == order[:WORST]
    assert [line.name for line in found.best] == order[whom.compared - BEST : whom.compared]
    assert sorted([line.name for line in (*found.worst, *found.best, *found.others)]) == sorted(order)
    few = replace(whom, groups=whom.groups[:12])
    assert (len(_groups(report, few).worst), _groups(report, few).others) == (12, [])
    tiny = whole(tuple(f"c{index}" for index in range(40)), rows=400)  # none has enough rows to be compared
    found = _groups(tiny, tiny.for_whom[0])
    assert (len(found.worst), len(found.best), len(found.others)) == (WORST, 0, 32)


def test_the_pairs_that_are_confused_most() -> None:
    """A matrix of twenty classes in five point type hides the pair to look at."""
    from hf_distill.report.confused import confused

    teacher, student = np.array([0] * 9 + [1] * 5 + [2] * 6), np.array([0] * 5 + [3] * 4 + [1, 1, 2, 2, 2] + [2] * 6)
    found = confused(confusion(student, teacher, [f"c{index}" for index in range(30)]))
    assert found is not None
    assert found.rows == (("c0", "c3", "4", "44.4 %"), ("c1", "c2", "3", "60.0 %"))
    assert "10 more are not shown" in found.notes[-1]
    assert confused(confusion(student, teacher, list("abcd"))) is None
