"""The cost of a whole training, from its logs: speed, the teacher's share of time, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from hf_distill.formatting import count
from hf_distill.report.text import percent

# Logged rates, in the order in which they are told.
MEDIANS = ("tokens_per_second", "writing_share", "teacher_share")

History = Sequence[Mapping[str, Any]]


def cost_of(history: History) -> dict[str, float]:
    """Return the medians of the logged rates and the largest memory; values that were not logged are left out.

    Medians ignore the first, slow steps, in which kernels are chosen and caches filled.

    >>> cost_of([{"loss": 1.0, "tokens_per_second": rate, "peak_memory": 90.0 + rate} for rate in (1, 5, 6)])
    {'tokens_per_second': 5, 'peak_memory': 96.0}
    """
    figures = {}
    found = {name: [log[name] for log in history if name in log] for name in (*MEDIANS, "peak_memory")}
    for name, values in found.items():
        if values:
            figures[name] = round(median(values) if name in MEDIANS else max(values), 3)
    return figures


def costs_of(histories: Mapping[str, History]) -> dict[str, dict[str, float]]:
    """Return name -> cost of every training."""
    costs = {name: cost_of(history) for name, history in histories.items()}
    return {name: cost for name, cost in costs.items() if cost}


def skipped_of(histories: Mapping[str, History]) -> dict[str, str]:
    """Return how many steps each training skipped (`on_nan: skip`); only trainings that skipped any.

    >>> skipped_of({"student": [{"loss": 1.0, "step": 60, "skipped_steps": 2}, {"step": 80}], "baseline": []})
    {'student': '2 of 80'}
    """
    found = {}
    for name, history in histories.items():
        if skipped := max((log.get("skipped_steps", 0) for log in history), default=0):
            found[name] = f"{skipped} of {max(log.get('step', 0) for log in history)}"
    return found


def describe_cost(cost: Mapping[str, float]) -> str:
    """Return a cost as a line of text.

    >>> describe_cost({"tokens_per_second": 5120.4, "teacher_share": 0.31, "peak_memory": 1210.2})
    '5.1 K tokens/s, the teacher takes 31.0 % of the time, memory 1,210 MiB at most'
    """
    parts: dict[str, Callable[[float], str]] = {
        "tokens_per_second": lambda value: f"{count(value)} tokens/s",
        "writing_share": lambda value: f"writing takes {percent(value)} of the time",
        "teacher_share": lambda value: f"the teacher takes {percent(value)} of the time",
        "peak_memory": lambda value: f"memory {value:,.0f} MiB at most",
    }
    return ", ".join(words(cost[name]) for name, words in parts.items() if name in cost)
