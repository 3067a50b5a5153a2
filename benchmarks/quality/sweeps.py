"""How the gain depends on temperature, weights, labelled rows and the student's size: sweeps on the 20 classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.studies import ROOT, flow

RECIPE = "recipes/topics.yaml"
PICTURES = ROOT / "docs" / "pictures"
SHARED = (
    "--seeds",
    "2",
    "training.max_steps=150",
    "report.latency=false",
    "teacher.teacher.training={max_steps: 200, learning_rate: 2.0e-4, warmup_steps: 0.1}",
)


def _weighed(temperature: float, share: float) -> list[dict[str, Any]]:
    kl = {"name": "kl", "temperature": temperature}
    return [kl] if share == 1.0 else [{**kl, "weight": share}, {"name": "labels", "weight": round(1.0 - share, 2)}]


_LOSSES = [_weighed(1.0, 0.5), _weighed(2.0, 0.5), _weighed(4.0, 0.5)]
_LOSSES += [_weighed(1.0, 1.0), _weighed(2.0, 1.0), _weighed(4.0, 1.0), _weighed(2.0, 0.2)]
_ROWS = 'data.splits.train=["train[:300]","train[:1000]","train[:3000]"]'
SWEEPS = {
    "objectives": (f"objectives={flow(_LOSSES)}",),
    "labels": (_ROWS,),
    "labels_and_texts": (
        _ROWS,
        "report.baseline=false",
        f"objectives={flow([_weighed(2.0, 1.0)])}",
        "data.transfer={path: data/corpora/topics/train.csv}",
    ),
    "size": ("student.layers=[1,2,4]",),
}


def words(name: str) -> list[str]:
    """Return the words of the command; the directory of its runs is added."""
    return ["hf-distill", "sweep", RECIPE, *SWEEPS[name], *SHARED]


def summary(name: str, directory: Path) -> dict[str, Any]:
    """Return what the table needs of a finished sweep, and copy its plot to the pictures of the documents.

    Args:
        name: One of `SWEEPS`.
        directory: Of the sweep.
    """
    found = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
    kept = ("values", "student", "seeds", "teacher", "baseline", "gain", "gain_noise", "parameters")
    page = (directory / "sweep.html").read_text(encoding="utf-8")
    if (drawn := re.search(r"<svg .*?</svg>", page, re.DOTALL)) is not None:
        (PICTURES / f"sweep_{name}.svg").write_text(_alone(drawn[0]) + "\n", encoding="utf-8")
    settings = [{key: one.get(key) for key in kept} for one in found["settings"] if one["state"] == "finished"]
    return {"metric": found["metric"], "settings": settings}


def _alone(svg: str) -> str:
    """Return a plot of a page, which has the colours of the page, as a picture on white."""
    from hf_distill.report.svg import COLOURS, INK

    colours = {**COLOURS, "ink": INK}
    svg = re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: colours.get(found[1], "#d0d7de"), svg)
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1)


def lines(name: str, measured: Mapping[str, Any]) -> list[str]:
    """Return the table of a sweep, in the order in which its settings were given, and its plot."""
    from hf_distill.report.sweep.text import shown

    rows = ["| setting | teacher | labels alone | student | gain |", "|---|---|---|---|---|"]
    for one in sorted(measured["settings"], key=_order):
        title = shown(next(iter(one["values"].values())))
        width = f" ± {100 * one['gain_noise']:.1f}" if one["gain_noise"] else ""
        gain = f"{100 * one['gain']:+.1f}{width}" if one["gain"] is not None else ""
        alone = f"{100 * one['baseline']:.1f}" if one["baseline"] is not None else ""
        each = ", ".join(f"{100 * seed:.1f}" for seed in one["seeds"])
        rows.append(
            f"| {title} | {100 * one['teacher']:.1f} | {alone} | {100 * one['student']:.1f} ({each}) | {gain} |"
        )
    return [*rows, "", f"![{measured['metric']} of each setting](pictures/sweep_{name}.svg)"]


def _order(setting: Mapping[str, Any]) -> Any:
    """Return what sorts settings: the number in its value, where it is one; else the best first."""
    value = next(iter(setting["values"].values()))
    number = re.search(r"\d+", value) if isinstance(value, str) else None
    if number is not None:
        return int(number[0])
    return value if isinstance(value, int | float) else -setting["student"]
