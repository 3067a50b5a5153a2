"""The table of a student's exports, for terminal, page and model card."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_distill.formatting import counted
from hf_distill.report.exports import PYTORCH
from hf_distill.report.results import NORMAL_95
from hf_distill.report.results import NOTHING as ZERO
from hf_distill.report.text import NOTHING, metric_title, metric_value, milliseconds, number, percent, unsigned

if TYPE_CHECKING:
    from hf_distill.report.exports import Exported
    from hf_distill.report.results import Results
    from hf_distill.report.timing import Timing

# More than this share of a metric that is a share is worth a remark: a point.
POINT = 0.01


def table(report: Results) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the titles of the columns, one for each format with PyTorch first, and the rows: name and cells."""
    shown, metric = report.exports, _metric(report)
    rows: dict[str, list[str]] = {"size": [f"{one.bytes / 1e6:,.1f} MB" for one in shown]}
    if metric:
        rows[metric_title(metric)] = [metric_value(report, metric, one.metrics.get(metric)) for one in shown]
    if any(one.agreement is not None for one in shown):
        rows["same prediction as PyTorch"] = [percent(one.agreement) for one in shown]
    rows["largest difference"] = [number(one.difference) for one in shown]
    for timings in zip(*((_timings(one)) for one in shown), strict=True):
        if (first := timings[0]) is not None:
            rows[f"latency, batch {first.batch_size}"] = [
                NOTHING if t is None else milliseconds(t.median_ms) for t in timings
            ]
    if any(one.writing is not None for one in shown):
        texts = [one.writing for one in shown]
        rows["writes the same as PyTorch"] = [NOTHING if one is None else percent(one.same) for one in texts]
        speeds = [None if one is None else one.tokens_per_second for one in texts]
        if any(one is not None for one in speeds):
            rows["tokens a second"] = [NOTHING if one is None else f"{one:,.1f}" for one in speeds]
    if any(one.edge is not None for one in shown):
        alone = [one.edge for one in shown]
        rows["alone: a text"] = [NOTHING if one is None else milliseconds(one.text_ms) for one in alone]
        if any(one is not None and one.token_ms is not None for one in alone):
            rows["alone: a further token"] = [
                NOTHING if one is None or one.token_ms is None else milliseconds(one.token_ms) for one in alone
            ]
        rows["alone: loading"] = [NOTHING if one is None else milliseconds(one.load_ms) for one in alone]
        rows["alone: memory"] = [NOTHING if one is None else f"{one.peak_memory / 1e6:,.0f} MB" for one in alone]
    head = ("", *("PyTorch" if one.format == PYTORCH else one.format for one in shown))
    return head, tuple((name, *cells) for name, cells in rows.items())


def _timings(one: Exported) -> tuple[Timing | None, Timing | None]:
    return (None, None) if one.latency is None else (one.latency.single, one.latency.batch)


def _metric(report: Results) -> str:
    """Return the metric of the table: the headline, or the first that was measured; "" for none."""
    names = [name for one in report.exports for name in one.metrics]
    return report.metric if report.metric in names else next(iter(names), "")


def notes(report: Results) -> Iterator[str]:
    """Yield sentences below the table: how it was measured, and which format loses more than a point."""
    exports = report.exports
    timed = next((one.latency for one in exports if one.latency is not None), None)
    first = exports[0]
    how = (
        f"All formats on the same {counted(first.rows, 'eval row')}"
        if _metric(report)
        else f"All formats on {counted(first.rows, 'row')}"
    )
    if timed is not None:
        threads = counted(timed.threads, "CPU thread")
        how += f"; one forward pass with {threads}, taking turns"
    yield f"{how}."
    alone = next((one.edge for one in exports if one.edge is not None), None)
    if alone is not None:
        yield (
            f"Alone: a process with onnxruntime, tokenizers and numpy, {counted(alone.texts, 'text')} one by one, "
            "tokenising included, and its largest memory."
        )
    written = next((one.writing for one in exports if one.writing is not None), None)
    if written is not None:
        yield (
            f"Writing: {counted(written.tokens, 'token')} behind each of {counted(written.prompts, 'prompt')}, each "
            "the likeliest, one text at a time, with the cache."
        )
    yield from filter(None, (loss(report, one) for one in exports))
    yield from filter(None, dict.fromkeys(one.note for one in exports))


def loss(report: Results, one: Exported) -> str:
    """Return a sentence on an export that loses more than a point of the headline metric against PyTorch; else "".

    It says whether that is within the sampling error of the rows, which both predict.
    """
    if (less := lost(report, one)) is None:
        return ""
    what = f"{one.format} loses {unsigned(report, less)} of {metric_title(report.metric)} against PyTorch"
    rows = f"on {one.rows:,} rows"
    if one.error is None or one.error <= ZERO:
        return f"{what} {rows}; the sampling error of this difference is not known."
    noise = NORMAL_95 * one.error
    within = "within" if less <= noise else "more than"
    return f"{what} {rows} (± {unsigned(report, noise)}, 95 % interval): {within} the sampling error of these rows."


def lost(report: Results, one: Exported) -> float | None:
    """Return how much of the headline metric an export loses against PyTorch, if it is more than a point; else None."""
    metric = _metric(report)
    if not metric or metric != report.metric or not report.exports:
        return None
    theirs, ours = report.exports[0].metrics.get(metric), one.metrics.get(metric)
    if theirs is None or ours is None or not (math.isfinite(theirs) and math.isfinite(ours)):
        return None
    less = theirs - ours if report.greater_is_better else ours - theirs
    return less if less > POINT * (1 if abs(theirs) <= 1 else abs(theirs)) else None
