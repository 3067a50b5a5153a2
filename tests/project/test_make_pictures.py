"""The script that makes the pictures: real numbers, nothing from the network, and a word where there is no browser."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import reports
from runs import REPO


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import make_pictures

    return make_pictures


def test_the_terminal_shows_all_that_a_run_prints(script: Any) -> None:
    """rich cuts lines at the width of the image: a picture without the end of the verdict would say something else."""
    report = reports.whole()
    image = script.terminal(report, "make quickstart", "out/report.html")
    # Where styles change a line is several elements, and its spaces do not break.
    shown = "".join("".join(ElementTree.fromstring(image).itertext()).split())
    for text in (*report.verdict(), "Full report: out/report.html", "85.2 %", "$ make quickstart"):
        assert "".join(text.split()) in shown
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", image), "an image on GitHub may load nothing"


def test_pages_and_pictures_show_one_run() -> None:
    """Times of one run beside the verdict of another would give one student two speeds: a reader can trust neither."""
    shown = "".join("".join(ElementTree.parse(REPO / "docs/pictures/terminal.svg").getroot().itertext()).split())
    page = (REPO / "docs/start/quickstart.md").read_text(encoding="utf-8")
    printed = page.partition("```text\n")[2].partition("```")[0]
    assert "latency, batch 64" in printed
    assert "".join(printed.split()) in shown
    speed = re.search(r"and \d\.\d times the\s+speed", printed)
    assert speed
    assert " ".join(speed[0].split()) in (REPO / "README.md").read_text(encoding="utf-8")


def test_a_report_is_photographed_and_no_browser_is_one_line(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback of Playwright, or an old picture beside new numbers, would be all that a maintainer sees."""
    pytest.importorskip("playwright")
    assert script.main([str(tmp_path)]) == 2
    assert "no report.json" in capsys.readouterr().err
    reports.whole().save(tmp_path / "run")
    found = script.main([str(tmp_path / "run"), "--into", str(tmp_path / "seen")]) == 0
    monkeypatch.setattr(script, "BROWSERS", ())
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    capsys.readouterr()
    assert script.main([str(tmp_path / "run"), "--into", str(tmp_path / "blind")]) == 2
    assert re.fullmatch(r".*no browser.*\n", capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "blind").iterdir()] == ["terminal.svg"]
    if not found:
        pytest.skip("no browser")
    for name, (width, height, scale) in script.SCREENSHOTS.items():
        size = struct.unpack(">II", (tmp_path / "seen" / name).read_bytes()[16:24])
        assert size == (width * scale, height * scale)
