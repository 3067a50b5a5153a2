"""The pages in a real browser: nothing fails or leaves, it can be read by keyboard and ear, on a phone and on paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
# Pages in A4 that a report may have; names of hundreds of characters take more.
PRINTED = {"hostile": 4}

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")

# Contrast of every text with what is behind it (WCAG 2.2, 1.4.3), and the texts for which it is too low.
CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || node.closest('caption, .unseen, style')) continue;
    const style = getComputedStyle(node), drawn = node.closest('svg');
    const [a, b] = [light(parse(drawn ? style.fill : style.color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${text.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""

# What somebody who hears the page needs and does not find.
MISSING = """() => {
  const missing = [], every = selector => [...document.querySelectorAll(selector)];
  const own = node => (node.getAttribute('aria-label') || '').trim();
  const named = node => own(node) || document.getElementById(node.getAttribute('aria-labelledby'))?.textContent.trim();
  if (document.documentElement.lang !== 'en') missing.push('lang');
  if (!document.title.trim()) missing.push('title');
  if (every('main').length !== 1) missing.push('one main');
  if (every('h1').length !== 1) missing.push('one h1');
  let before = 0;
  for (const heading of every('h1, h2, h3, h4, h5, h6')) {
    const level = Number(heading.tagName[1]);
    if (level > before + 1) missing.push(`h${level} after h${before}: ${heading.textContent}`);
    if (!heading.textContent.trim()) missing.push(`empty h${level}`);
    before = level;
  }
  for (const table of every('table')) {
    if (!table.caption?.textContent.trim()) missing.push('caption');
    for (const cell of table.querySelectorAll('th')) {
      if (!cell.scope) missing.push(`scope of ${cell.textContent}`);
      if (!cell.textContent.trim()) missing.push('text of th');
    }
    for (const row of table.querySelectorAll('tbody tr')) if (!row.querySelector('th')) missing.push('th of a row');
  }
  for (const image of every('svg')) {
    if (image.getAttribute('role') !== 'img' || own(image).length < 20) missing.push('label of svg');
  }
  for (const part of every('section, [role=region], article')) if (!named(part)) missing.push('name of region');
  for (const dot of every('.dot')) if (dot.getAttribute('aria-hidden') !== 'true') missing.push('dot is read');
  const ids = every('[id]').map(node => node.id);
  if (new Set(ids).size !== ids.length) missing.push('unique ids');
  return missing;
}"""

# Texts and pictures that end beyond the page, or that a box cuts off.
CUT = """() => {
  const width = document.documentElement.clientWidth, cut = [];
  for (const node of document.querySelectorAll('main *')) {
    const style = getComputedStyle(node), box = node.getBoundingClientRect();
    if (!box.width || node.closest('svg *, caption, .unseen')) continue;
    const scrolled = node.closest('.scroll, pre');
    if (scrolled && getComputedStyle(scrolled).overflowX === 'auto') continue;
    if (box.right > width + 1) cut.push(`${node.tagName} ${node.textContent.trim().slice(0, 40)}: ${box.right}`);
    if (style.overflowX === 'hidden' && node.scrollWidth > node.clientWidth + 1) cut.push(`hidden in ${node.tagName}`);
  }
  return cut;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One process for all tests. It is a child that is spoken to over a pipe: the guard of sockets stays as it is."""
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every page, as a file."""
    directory = tmp_path_factory.mktemp("pages")
    written = {name: directory / f"{name}.html" for name in PAGES}
    for name, path in written.items():
        path.write_text(PAGES[name](), encoding="utf-8")
    return written


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, files: dict[str, Path]) -> Iterator[Open]:
    """Open a page; at the end, it must have said nothing in the console and asked for nothing but itself."""
    said: list[str] = []
    contexts = []

    def look(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True, java_script_enabled=True
        )
        contexts.append(context)
        page, address = context.new_page(), files[name].as_uri()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))

        def route(one: Any) -> None:
            if one.request.url == address:
                one.continue_()
            else:
                said.append(f"request: {one.request.url}")
                one.abort()

        context.route("**/*", route)
        page.goto(address)
        return page

    yield look
    for context in contexts:
        context.close()
    assert said == []


@pytest.mark.parametrize("name", PAGES)
def test_read_and_heard(name: str, open_page: Open) -> None:
    """A boss with a phone, a colleague with a screen reader: each would be the first to find the page broken."""
    for scheme in ("light", "dark"):
        page = open_page(name, 390, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page scrolls sideways"
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the opened page scrolls sideways"
        assert page.evaluate(CONTRAST) == []
        if scheme == "light":
            assert page.evaluate(MISSING) == []
            assert page.evaluate(CUT) == []


@pytest.mark.parametrize("name", PAGES)
def test_by_keyboard(name: str, open_page: Open) -> None:
    """What only a mouse can open is not there for everyone; a focus that cannot be seen is lost."""
    page = open_page(name)
    wanted = page.evaluate("document.querySelectorAll('summary, [tabindex=\"0\"]').length")
    reached, opened = 0, 0
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const one = document.activeElement, style = getComputedStyle(one);"
            " return [one.tagName, parseFloat(style.outlineWidth), style.outlineStyle, one.open] })()"
        )
        if found[0] == "BODY":
            break
        reached += 1
        assert found[1] >= 2, f"the focus of {found} cannot be seen"
        assert found[2] != "none", f"the focus of {found} cannot be seen"
        if found[0] == "SUMMARY":
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open") is True
            opened += 1
    assert reached == wanted > 0
    assert opened == page.evaluate("document.querySelectorAll('details').length")


# The table of a sweep is as wide as its recipe keys and their values.
@pytest.mark.parametrize("name", [name for name in PAGES if name != "sweep"])
def test_on_paper(name: str, open_page: Open, tmp_path: Path) -> None:
    """Printed for a meeting, a page of six sheets is not read, and one with a cut table is read wrongly."""
    page = open_page(name)
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    printed = (tmp_path / "page.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) <= PRINTED.get(name, 2)
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    assert page.evaluate(CUT) == []
    colour = page.evaluate("getComputedStyle(document.body).color")
    assert colour == "rgb(31, 35, 40)", "dark mode prints light text on white paper"
    # What is folded away is on paper too, but for long lists.
    folded = "[...document.querySelectorAll('.whole > :last-child')].map(one => one.getBoundingClientRect().height)"
    assert all(height > 5 for height in page.evaluate(folded))
