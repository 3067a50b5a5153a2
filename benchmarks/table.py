"""What runs add up to: medians, ratios, and whether all variants did the same thing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


class NotTheSame(AssertionError):
    """Two variants that are compared computed different things."""


def check(variants: Mapping[str, Any], runs: Runs) -> None:
    """Hold the variants of each group to the same loss and the same gradients.

    Raises:
        NotTheSame: The ratio of their times would compare different work.
    """
    first: dict[str, tuple[str, Mapping[str, float]]] = {}
    for name, outcomes in runs.items():
        variant = variants[name]
        for outcome in outcomes:
            if variant.group is None:
                continue
            other, wanted = first.setdefault(variant.group, (name, outcome["checks"]))
            if wanted.keys() != outcome["checks"].keys() or not wanted:
                raise NotTheSame(f"{name} and {other} report different things: {[*outcome['checks']]}, {[*wanted]}")
            for key, value in outcome["checks"].items():
                if not abs(value - wanted[key]) <= variant.tolerance * abs(wanted[key]):
                    raise NotTheSame(f"{key} of {name} is {value:.8g}, of {other} {wanted[key]:.8g}")


def summary(benchmark: str, module: Any, runs: Runs, settings: Any) -> dict[str, Any]:
    """Return medians of all variants, and their ratios."""
    base = runs.get(module.BASELINE)
    rows = {}
    for name, outcomes in runs.items():
        seconds = [outcome["cost"]["seconds"] for outcome in outcomes]
        row = {
            "title": module.VARIANTS[name].title,
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "peak_mib": _median([outcome["cost"]["peak_mib"] for outcome in outcomes]),
            "loss": outcomes[0]["checks"].get("loss"),
            "per": outcomes[0]["per"],
            "compiling": _median([outcome.get("compiling") for outcome in outcomes]),
            "counts": outcomes[0].get("counts", {}),
            "parts": {
                part: _median([outcome["parts"][part] for outcome in outcomes]) for part in outcomes[0].get("parts", {})
            },
        }
        if base is not None:
            row["times_faster"] = _ratio(_median([one["cost"]["seconds"] for one in base]), row["seconds"])
            row["times_less_memory"] = _ratio(_median([one["cost"]["peak_mib"] for one in base]), row["peak_mib"])
        rows[name] = row
    ratios = {
        title: {
            "time": _ratio(rows[slower]["seconds"], rows[faster]["seconds"]),
            "memory": _ratio(rows[slower]["peak_mib"], rows[faster]["peak_mib"]),
        }
        for title, slower, faster in module.RATIOS
        if slower in rows and faster in rows
    }
    return {"benchmark": benchmark, "settings": asdict(settings), "variants": rows, "ratios": ratios}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


HEADINGS = ("variant", "CPU s", "least to most", "times faster", "peak MiB", "times less", "loss")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["title"],
        _figure(row["seconds"], 3),
        f"{row['least']:.3f} to {row['most']:.3f}",
        _figure(row.get("times_faster")),
        _figure(row["peak_mib"], 0),
        _figure(row.get("times_less_memory"), 1),
        _figure(row["loss"], 5),
    )


def _points(name: str, points: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return headings and rows of what grows, one row a point and one column a variant."""
    names = list(points[0]["variants"])
    headings = [
        name,
        *(f"{one}, CPU s / MiB{' / forwards' * bool(points[0]['variants'][one]['counts'])}" for one in names),
    ]
    rows = [
        (
            str(point["settings"][name]),
            *(" / ".join(_point(point["variants"][one])) for one in names),
        )
        for point in points
    ]
    return headings, rows


def _point(row: Mapping[str, Any]) -> list[str]:
    return [_figure(row["seconds"], 3), _figure(row["peak_mib"], 0), *map(str, row["counts"].values())]


def _tables(found: Mapping[str, Any]) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    """Return title, headings and rows of every table: of all variants, or of each size that grows."""
    if "points" not in found:
        return [(found["benchmark"], HEADINGS, [_cells(row) for row in found["variants"].values()])]
    names = dict.fromkeys(point["series"] for point in found["points"])
    return [(name, *_points(name, [one for one in found["points"] if one["series"] == name])) for name in names]


def to_rich(found: Mapping[str, Any]) -> Group:
    """Return tables for the terminal."""
    tables = []
    for title, headings, rows in _tables(found):
        table = Table(title=title)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place == 0 else "right")
        for row in rows:
            table.add_row(*(cell.replace("**", "") for cell in row))
        tables.append(table)
    return Group(*tables)


def document(found: Mapping[str, Any]) -> str:
    """Return everything in Markdown."""
    lines = [f"# {found['benchmark']}"]
    if "settings" in found:
        sizes = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
        lines += ["", f"Per {next(iter(found['variants'].values()))['per']}: {sizes}."]
    for _, headings, rows in _tables(found):
        lines += ["", *_markdown(headings, rows)]
    for row in found.get("variants", {}).values():
        if row["compiling"] is not None:
            lines += ["", f"{row['title']}: {row['compiling']:.0f} s to compile, once, by the clock; not in its time."]
    parts = [
        (f"{part}: {row['title']}", f"{seconds:.4f}", f"{100 * seconds / row['seconds']:.2f}")
        for row in found.get("variants", {}).values()
        for part, seconds in row["parts"].items()
    ]
    if parts:
        lines += ["", *_markdown(("a part of it", "CPU s", "% of it"), parts)]
    if ratios := found.get("ratios"):
        cells = [(name, _figure(one["time"]), _figure(one["memory"], 1)) for name, one in ratios.items()]
        lines += ["", *_markdown(("ratio", "time", "memory"), cells)]
    lines += ["", f"Median of {found['rounds']} runs, each in its own process with one thread.", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    return "\n".join(lines) + "\n"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
