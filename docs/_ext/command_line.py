"""The command line: `hf-distill --help`, and that of every command which has words of its own."""

from __future__ import annotations

import contextlib
import io
import os

from hf_distill import cli


def markdown() -> str:
    """Return a section for the program and for each of its commands; the same help stands there once."""
    helps: dict[str, list[str]] = {}
    for words in ((), *((command,) for command in (*cli.COMMANDS, *cli.OWN_WORDS))):
        helps.setdefault(_help(words), []).append(" ".join(("hf-distill", *words)))
    return "\n".join(f"## {_title(names)}\n\n```text\n{text}\n```\n" for text, names in helps.items())


def _title(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _help(words: tuple[str, ...]) -> str:
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return said.getvalue().rstrip()
