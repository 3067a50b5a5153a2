"""The command `hf-distill env`: prints what a report of a bug needs, as text or JSON."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill import parallel
from hf_distill.formatting import readable
from hf_distill.run.env import machine, packages, variables

_NAMES, _LINES = 20, 120  # characters


def main(words: Sequence[str]) -> int:
    """Print versions, devices, launcher and directories, and return the exit status: always 0.

    A package that cannot be imported is one line of what is printed.

    Args:
        words: Arguments behind `hf-distill env`.

    Raises:
        SystemExit: From argparse, for `--help` and wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog="hf-distill env",
        description="Print versions, devices, launcher and directories, to paste into a report of a bug. No secrets.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    arguments = parser.parse_args(words)
    if parallel.is_first_of_all():
        found = facts()
        print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines(found)))
    return 0


def facts() -> dict[str, Any]:
    """Return all there is to say, as plain values; texts are readable and without secrets, `~` is the home."""
    found = {
        "hf_distill": machine.package(),
        "python": machine.python(),
        "system": machine.system(),
        "torch": machine.pytorch(),
        "devices": machine.devices(),
        "driver": machine.driver(),
        "packages": packages.packages(),
        "extras": packages.extras(),
        "problems": list(packages.problems()),
        "launcher": variables.launcher(),
        "accelerate": variables.accelerate_config(),
        "directories": variables.directories(),
        "variables": variables.shown(),
    }
    home = str(Path.home())
    return {key: _clean(value, home) for key, value in found.items()}


def _clean(value: Any, home: str) -> Any:
    """Return a value in which every text is readable, and paths below the home begin with `~`."""
    if isinstance(value, Mapping):
        return {key: _clean(one, home) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one, home) for one in value]
    if not isinstance(value, str):
        return value
    indent = value[: len(value) - len(value.lstrip(" "))]
    text = indent + readable(value.strip(" "))
    return text if len(home) < 2 else text.replace(f"{home}/", "~/")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the text."""
    project = found["hf_distill"]
    commit = f", commit {project['commit']}" if project["commit"] else ""
    yield _line("hf_distill", f"{project['version']}{commit}, {project['directory']}")
    yield _line("Python", "{version} ({implementation}), {executable}".format(**found["python"]))
    system = dict(found["system"])
    yield _line("system", f"{system.pop('platform')}, " + _pairs(system))
    torch = dict(found["torch"])
    yield _line("torch", torch.get("error") or f"{torch.pop('version')}, {_pairs(torch)}")
    for device in found["devices"] or [{"device": "none but the CPU"}]:
        yield _line("device", ", ".join(map(str, device.values())))
    if found["driver"]:
        yield _line("NVIDIA driver", found["driver"])
    yield from _wrapped("packages", found["packages"])
    for name, these in found["extras"].items():
        if any(these.values()):
            yield from _wrapped(f"extra {name}", these)
    absent = [name for name, these in found["extras"].items() if not any(these.values())]
    yield _line("extras not there", ", ".join(absent) or "none")
    yield from (_line("problem", one) for one in found["problems"])
    yield _line("launcher", found["launcher"])
    yield _line("accelerate config", found["accelerate"]["file"] or "no default one")
    yield from (_line("", one) for one in found["accelerate"]["settings"] or [])
    for what, one in found["directories"].items():
        yield _line(what, f"{one['path']} ({one['room']})")
    for name, value in found["variables"].items():
        yield f"{name}={value}"


def _line(name: str, text: str) -> str:
    return f"{name:{_NAMES}}{text}"


def _wrapped(name: str, values: Mapping[str, str | None]) -> Iterator[str]:
    """Yield name and version of packages, in lines that fit into a page."""
    words = [f"{one} {version or 'MISSING'}" for one, version in values.items()]
    text = ", ".join(word.replace(" ", "\0") for word in words)  # no line ends within an entry
    for line in textwrap.wrap(text, _LINES - _NAMES, break_long_words=False, break_on_hyphens=False):
        yield _line(name, line.replace("\0", " "))
        name = ""


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
