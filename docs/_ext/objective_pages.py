"""Objectives and presets: what each is, by its class."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from hf_distill.objectives import OBJECTIVES, PRESETS, Objective
from hf_distill.recipe.docs_tables import ARXIV
from hf_distill.recipe.json_schema import summary
from hf_distill.recipe.writer import objective_entries, to_yaml

COSTS = Path(__file__).parents[2] / "benchmarks" / "results" / "objectives.json"


def objectives() -> str:
    """Return a table of all objectives, and a section for each."""
    rows = [
        f"| [`{name}`](#{name}) | {summary(cls)} | {_reads(cls)} | {cls().unit} | {_cost(name)} |"
        for name, cls in OBJECTIVES.items()
    ]
    head = ["objective", "what it is", "what it needs of the teacher", "divided by", "time of a step, `kl` is 1"]
    table = [f"| {' | '.join(head)} |", "|---|---|---|---|---|", *rows, ""]
    return "\n".join([*table, *(_section(name, cls) for name, cls in OBJECTIVES.items())])


@cache
def _seconds() -> dict[str, float]:
    content: dict[str, dict[str, float]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return content["seconds"]


def _cost(name: str) -> str:
    return f"{_seconds()[name] / _seconds()['kl']:.2f}" if name in _seconds() else "not measured"


def _section(name: str, cls: type[Objective]) -> str:
    paper = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", cls.paper) or "none: the plain loss"
    facts = {
        "formula": cls.formula(),
        "paper": paper,
        "of the teacher": _reads(cls),
        "divided by": f"number of its unit, `{cls().unit}`, in the optimiser step",
        "however a step is split": _split(cls),
        "a step costs": f"{_cost(name)} times one with `kl`" if name in _seconds() else "not measured",
        "tasks": ", ".join(f"`{one}`" for one in cls.tasks) or "any whose rows it fits",
        "in Python": f"{{py:class}}`~hf_distill.objectives.{cls.__name__}`",
    }
    lines = [f"| {key} | {value} |" for key, value in facts.items() if value]
    return "\n".join([f"## `{name}`", "", summary(cls), "", "|  |  |", "|---|---|", *lines, ""])


def _reads(cls: type[Objective]) -> str:
    if not cls.needs_teacher:
        return "nothing"
    what = {"answers": "its vectors of texts" if cls.vectors else "its logits", "states": "its hidden states"}
    return what.get(cls.reads, "the model itself: not from a cache")


def _split(cls: type[Objective]) -> str:
    if cls.within_batch:
        return "differs: it compares examples of a micro-batch with each other"
    return "the same loss and gradient ([measured](../invariance.md))"


def presets() -> str:
    """Return a section for each preset: the objectives it stands for, as a recipe would write them."""
    written = {name: to_yaml({"objectives": objective_entries(entries)}) for name, entries in PRESETS.items()}
    return "\n".join(f"## `{name}`\n\n```yaml\n{text.rstrip()}\n```\n" for name, text in written.items())
