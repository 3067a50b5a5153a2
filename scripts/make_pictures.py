"""Make the pictures of the README and the site from a finished run: its terminal output, and its report in a browser.

    python scripts/make_pictures.py [outputs/quickstart] [--into docs/pictures]

writes `terminal.svg`, what the run prints at its end; `report.png`, the top of its page 1,280 pixels wide; and
`report-phone.png`, the same on a phone. All are drawn anew from the run's `report.json`, as today's code shows it. The
browser is that of Playwright, or a Chromium or Chrome on the `PATH`; without one only `terminal.svg` is written, and a
line says so.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic
from hf_distill.report.page import html
from hf_distill.report.report import Report
from hf_distill.report.terminal import show

COLUMNS = 100
# File -> width and height of the window, and pixels for each of its points.
SCREENSHOTS = {"report.png": (1280, 1000, 1), "report-phone.png": (390, 844, 2)}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A sandbox needs rights that containers lack; the page is our own.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
# Its own dark window, readable on a light page and on a dark one: background, text, black to white, the bright ones.
THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        *((72, 79, 88), (255, 123, 114), (126, 231, 135), (210, 153, 34)),
        *((121, 192, 255), (210, 168, 255), (86, 211, 220), (230, 237, 243)),
    ],
)
# As rich's own, but with fonts that are there: an image on GitHub may load none.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="A run's last lines">
  <style>
    .{unique_id}-matrix {{
      font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
      font-size: {char_height}px;
      line-height: {line_height}px;
    }}
    .{unique_id}-title {{ font: bold 18px sans-serif; }}
    {styles}
  </style>
  <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
  </g>
</svg>
"""


class Terminal(Console):
    """A terminal of fixed width that remembers what is printed, and breaks long lines as a real one does."""

    def __init__(self) -> None:
        super().__init__(
            file=io.StringIO(),
            record=True,
            width=COLUMNS,
            force_terminal=True,
            color_system="truecolor",
            legacy_windows=False,
        )

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print with line breaks between words, which `soft_wrap` leaves to the terminal."""
        super().print(*objects, **{**settings, "soft_wrap": False})


def terminal(report: Report, command: str, page: str) -> str:
    """Return what a run prints at its end, as an SVG image.

    Args:
        report: The run's report.
        command: The command that is shown above it.
        page: Path of the page that is shown below it.
    """
    console = Terminal()
    console.print(f"[green]$[/green] [bold]{command}[/bold]", highlight=False)
    show(report, console, page)
    return console.export_svg(title="hf_distill", theme=THEME, code_format=SVG, unique_id="terminal")


def screenshots(report: Report, into: Path) -> None:
    """Write the files of `SCREENSHOTS`: the top of the report's page.

    Raises:
        UserError: There is no browser.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        raise UserError("no pictures of the report: they need Playwright (pip install playwright).") from None
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page = Path(scratch, "report.html")
        page.write_text(html(report), encoding="utf-8")
        try:
            browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        except Error:
            raise UserError(
                "no pictures of the report: no browser found (install Chromium, or run `playwright install chromium`)."
            ) from None
        for name, (width, height, scale) in SCREENSHOTS.items():
            window = browser.new_context(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                offline=True,
                color_scheme="light",
            ).new_page()
            window.goto(page.as_uri())
            window.screenshot(path=into / name)
            print(f"{into / name}: {(into / name).stat().st_size / 1000:.0f} kB", flush=True)
        browser.close()


def make(run: Path, into: Path, command: str) -> None:
    """Write all pictures of a finished run into a directory.

    Raises:
        UserError: The run has no report, or there is no browser.
    """
    if not (run / "report.json").is_file():
        raise UserError(
            f"{run} has no report.json: wanted the directory of a finished run, such as that of `make quickstart`."
        )
    report = Report.load(run)
    into.mkdir(parents=True, exist_ok=True)
    write_atomic(into / "terminal.svg", terminal(report, command, f"{run.as_posix()}/report.html"))
    print(into / "terminal.svg", flush=True)
    screenshots(report, into)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and make the pictures; return the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description="Make the pictures of a finished run.")
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("outputs/quickstart"), help="its directory (%(default)s)"
    )
    parser.add_argument("--into", type=Path, default=Path("docs/pictures"), help="where to write (%(default)s)")
    parser.add_argument("--command", default="make quickstart", help="the command that is shown (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        make(given.run, given.into, given.command)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
