"""What a training cost as a whole, from its logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from hf_distill.report.text import count, percent

History = Sequence[Mapping[str, Any]]


def cost_of(history: History) -> dict[str, float]:
    """Return the medians of the rates that were logged, and the largest memory; nothing of what was not logged.

    Medians, so that the first steps, in which kernels are chosen and caches filled, do not count.

    >>> cost_of([{"loss": 1.0, "tokens_per_second": rate, "peak_memory": 90.0 + rate} for rate in (1, 5, 6)])
    {'tokens_per_second': 5, 'peak_memory': 96.0}
    """
    figures = {}
    for name, summary in (("tokens_per_second", median), ("teacher_share", median), ("peak_memory", max)):
        if values := [log[name] for log in history if name in log]:
            figures[name] = round(summary(values), 3)
    return figures


def costs_of(histories: Mapping[str, History]) -> dict[str, dict[str, float]]:
    """Return the cost of every training, by name."""
    costs = {name: cost_of(history) for name, history in histories.items()}
    return {name: cost for name, cost in costs.items() if cost}


def skipped_of(histories: Mapping[str, History]) -> dict[str, str]:
    """Return how many steps of each training were left out (`on_nan: skip`), of those in which any was.

    >>> skipped_of({"student": [{"loss": 1.0, "step": 60, "skipped_steps": 2}, {"step": 80}], "baseline": []})
    {'student': '2 of 80'}
    """
    found = {}
    for name, history in histories.items():
        if skipped := max((log.get("skipped_steps", 0) for log in history), default=0):
            found[name] = f"{skipped} of {max(log.get('step', 0) for log in history)}"
    return found


def in_words(cost: Mapping[str, float]) -> str:
    """Return a cost as a line of text.

    >>> in_words({"tokens_per_second": 5120.4, "teacher_share": 0.31, "peak_memory": 1210.2})
    '5.1 K tokens/s, the teacher takes 31.0 % of the time, memory 1,210 MiB at most'
    """
    parts: dict[str, Callable[[float], str]] = {
        "tokens_per_second": lambda value: f"{count(value)} tokens/s",
        "teacher_share": lambda value: f"the teacher takes {percent(value)} of the time",
        "peak_memory": lambda value: f"memory {value:,.0f} MiB at most",
    }
    return ", ".join(words(cost[name]) for name, words in parts.items() if name in cost)
