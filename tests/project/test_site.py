"""The site that `make docs` built, in a browser: no page scrolls sideways or asks for anything, versions to choose.

Skipped where there is no site or no browser.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "docs"
PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="there is no site: make docs"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        places = [one for one in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(one).exists()]
        try:
            made = playwright.chromium.launch(executable_path=next(iter(places), None), args=arguments)
        except api.Error as error:
            pytest.skip(f"no browser: {error}")
        yield made
        made.close()


def test_no_page_scrolls_sideways_or_asks_for_anything_from_elsewhere(browser: Any) -> None:
    """On a phone a wide table would move all text out of sight; a font from elsewhere tells others who reads what."""
    page = browser.new_page(viewport=PHONE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: asked.append(message.text) if message.type == "error" else None)
    wide = []
    pages = [one for one in sorted(SITE.rglob("*.html")) if "_static" not in one.parts]
    for path in pages:
        page.goto(path.as_uri(), wait_until="load")
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            wide.append(path.relative_to(SITE).as_posix())
    assert len(pages) > 40
    assert wide == []
    assert [one for one in asked if not one.startswith(("file:", "data:"))] == []


def test_search_finds_a_page_without_a_server(browser: Any) -> None:
    """A search that needs a server finds nothing in a downloaded site, and says nothing."""
    page = browser.new_page()
    page.goto(f"{(SITE / 'search.html').as_uri()}?q=relational")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    assert page.locator("ul.search li").count() > 1


def test_a_reader_can_choose_among_published_versions(browser: Any, tmp_path: Path) -> None:
    """A link to a choice that does not appear, or that leads nowhere, keeps readers in the documents of yesterday."""
    spec = spec_from_file_location("publish", ROOT / "docs" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    old = tmp_path / "old" / "_static"
    old.mkdir(parents=True)
    (old / "documentation_options.js").write_text("VERSION: '0.0.1',")
    (old.parent / "index.html").write_text("<title>old</title>")
    module.publish(old.parent, tmp_path / "public")
    newest, *_ = module.publish(SITE, tmp_path / "public")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_url(f"**/{newest}/")
        page.goto(f"http://127.0.0.1:{server.server_port}/{newest}/loss.html")
        choice = page.locator(".versions select")
        choice.wait_for(state="visible", timeout=20_000)
        assert choice.locator("option").all_inner_texts() == [newest, "0.0.1"]
        choice.select_option("0.0.1")
        page.wait_for_url("**/0.0.1/")  # which has no page about the loss
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
