"""What must be the same in two reports for their students to be compared on the headline metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_distill.report.results import Results

# Grounds whose value says nothing to a reader.
FINGERPRINTS = ("eval rows", "tokens", "references", "classes")
# What makes a ground differ, and what could be done.
HINTS = {
    "tokens": "a perplexity is one of tokens, whose tokenizer, cut (data.max_length) or packing is not the same here; "
    "bits per byte would compare",
    "numbers of evaluated rows": "texts that are cut at data.max_length, or evaluation.generate_rows",
    "classes": "the metric depends on which class is the second one, and on their number",
}
# Metrics that cannot be compared without knowing this, which reports of an earlier version do not have.
NEEDED = {"perplexity": ("tokens",)}


def grounds(report: Results) -> dict[str, str]:
    """Return what must be the same, in words -> its value; empty where a report does not know it."""
    rows = "none" if report.eval_rows is None else f"{report.eval_rows:,}"
    return {
        "tasks": report.task,
        "headline metrics": report.metric,
        "eval rows": report.rows_fingerprint,
        "numbers of evaluated rows": rows,
        **conditions(report, report.metric),
    }


def conditions(report: Results, metric: str) -> dict[str, str]:
    """Return what a metric depends on beside the eval rows; an empty text for what a report does not know."""
    return {**dict.fromkeys(NEEDED.get(metric, ()), ""), **report.conditions.get(metric, {})}


def first_difference(found: Sequence[Mapping[str, str]]) -> str:
    """Return the first of some reports' grounds that is not the same in all, or not known in one; empty for none.

    >>> first_difference([{"tasks": "a", "tokens": "1"}, {"tasks": "a", "tokens": "2"}])
    'tokens'
    """
    names = dict.fromkeys(name for one in found for name in one)
    return next((name for name in names if len({one.get(name, "") for one in found}) > 1 or not found[0].get(name)), "")


def hint(ground: str) -> str:
    """Return why a ground may differ, for the end of a clause; empty if there is nothing to say."""
    return f"; {HINTS[ground]}" if ground in HINTS else ""
