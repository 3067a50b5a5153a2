"""The origin of a recipe's keys: the file and the line of each, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """The origin of a recipe's keys.

    Attributes:
        file: Name of the file, as the user gave it.
        lines: Key path -> line, for every key of the file (`"objectives[1].weight"` -> 12).
        overrides: Key path -> the `key=value` of the command line that set it.
        hints: Key path of a list of objectives -> sentence to add to a mistake in its entries.
    """

    file: str
    lines: Mapping[str, int]
    overrides: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)

    def nearest(self, path: str) -> str:
        """Return `path` if the recipe has it, else the nearest key above it; `""` for the whole recipe."""
        while path and path not in self.lines and path not in self.overrides:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return path

    def locate(self, path: str) -> str:
        """Return `file:line: path`, or `override 'key=value': path` for a key from the command line."""
        at = self.nearest(path)
        place = f"override '{self.overrides[at]}'" if at in self.overrides else f"{self.file}:{self.lines.get(at, 1)}"
        return f"{place}: {path}" if path else place

    def hint(self, path: str) -> str:
        """Return the sentence to add to a mistake at `objectives[0].key` if the objective comes from a preset."""
        place, _, key = path.rpartition("].")
        return self.hints.get(place.rpartition("[")[0], "") if key else ""
