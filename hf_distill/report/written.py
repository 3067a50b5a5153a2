"""Tables below the main one: the student's exports, and what language models wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.formatting import counted
from hf_distill.report import export_text
from hf_distill.report.own_samples import SHARES, TITLES, OwnSamples
from hf_distill.report.text import NOTHING, number, percent
from hf_distill.report.text import TITLES as MODELS

if TYPE_CHECKING:
    from hf_distill.report.results import Results
    from hf_distill.report.speculation import Speculation


SAMPLES_NOTE = "The same prompts each time, with the same draws, at temperature 1. Long texts are cut."


@dataclass(frozen=True)
class Section:
    """A table with a heading. Its cells may be foreign text.

    Attributes:
        title: Heading.
        head: Titles of the columns, that of the names of the rows first.
        rows: Name of a row and its cells.
        notes: Sentences below it.
        texts: Whether the cells are texts, which take several lines.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: bool = False


def sections(report: Results, *, samples: int | None = None) -> list[Section]:
    """Return the tables below the main one: exports, and what models wrote; none if there is nothing of either.

    Args:
        report: The report.
        samples: How many prompts to show texts of; None for all.
    """
    found = [exports_section(report)] if report.exports else []
    if report.own_samples is not None:
        found.append(_figures(report.own_samples))
    if report.speculation is not None:
        found.append(_speculation(report.speculation))
    if report.benchmarks:
        found.append(_benchmarks(report))
    shown = report.samples[:samples]
    if shown:
        rows = tuple(row for sample in shown for row in (("prompt", sample.prompt), *sample.texts.items()))
        found.append(Section("What they write", ("", "text"), rows, (SAMPLES_NOTE,), texts=True))
    return found


def exports_section(report: Results) -> Section:
    """Return the table of a student's exports."""
    head, rows = export_text.table(report)
    return Section("The student in other formats", head, rows, tuple(export_text.notes(report)))


@dataclass(frozen=True)
class SideBySide:
    """What was written after one prompt, to be shown side by side.

    Attributes:
        prompt: The prompt.
        final: Key of a colour, title and text of each model.
        during: Title and text of the student at some steps of its training.
    """

    prompt: str
    final: tuple[tuple[str, str, str], ...]
    during: tuple[tuple[str, str], ...]


def side_by_side(report: Results) -> list[SideBySide]:
    """Return what models wrote after each prompt: teacher, student and baseline, then the student in training."""
    return [
        SideBySide(
            sample.prompt,
            tuple((model, MODELS[model], sample.texts[model]) for model in MODELS if model in sample.texts),
            tuple((who, text) for who, text in sample.texts.items() if who not in MODELS),
        )
        for sample in report.samples
    ]


def _figures(own: OwnSamples) -> Section:
    models = [model for model in MODELS if model in own.figures]
    paired = {name: one for name, one in own.differences.items() if name not in _COUNTED}
    names = [name for name in TITLES if any(name in own.figures[model] for model in models)]

    def row(name: str) -> Iterator[str]:
        yield TITLES[name]
        for model in models:
            value, error = own.figures[model].get(name), own.errors.get(model, {}).get(name)
            yield _value(name, value) + ("" if error is None or value is None else f" ± {_plain(name, error)}")
        if own.differences:
            difference = paired.get(name)
            yield "" if difference is None else _signed(name, difference.value, difference.error)

    head = ("", *(MODELS[model] for model in models), *(("difference",) if own.differences else ()))
    return Section("On their own samples", head, tuple(tuple(row(name)) for name in names), tuple(_notes(own)))


# Figures whose difference between two models says nothing of quality.
_COUNTED = frozenset(("completion_length_p95",))


def _speculation(measured: Speculation) -> Section:
    ways = {"the likeliest token each time": measured.greedy, "drawn at temperature 1": measured.sampled}
    rows = tuple(
        (
            name,
            number(one.alone),
            number(one.assisted),
            f"{one.speedup:.2f}×",
            NOTHING if one.same is None else percent(one.same),
        )
        for name, one in ways.items()
    )
    note = (
        "Speculative decoding with Transformers' assistant_model, one text at a time, "
        f"{counted(measured.prompts, 'prompt')}, up to {counted(measured.new_tokens, 'token')}."
    )
    if measured.greedy.same != 1:
        note += " Greedy texts differ where two tokens are equally likely but for rounding."
    head = ("tokens a second", "teacher alone", "with the student as draft", "speedup", "same text")
    return Section("The student as a draft of the teacher", head, rows, (note,))


def _benchmarks(report: Results) -> Section:
    models = [model for model in MODELS if model in report.benchmarks]
    names = dict.fromkeys(name for model in models for name in report.benchmarks[model])
    rows = tuple((name, *(number(report.benchmarks[model].get(name)) for model in models)) for name in names)
    return Section("Benchmarks", ("", *(MODELS[model] for model in models)), rows, ("By the lm-evaluation-harness.",))


def _value(name: str, value: float | None) -> str:
    return percent(value) if name in SHARES else number(value)


def _plain(name: str, value: float) -> str:
    return f"{value * 100:.1f}" if name in SHARES else f"{value:.2g}"


def _signed(name: str, value: float, error: float | None) -> str:
    sign, size = "+" if value >= 0 else "-", _plain(name, abs(value)) if name in SHARES else f"{abs(value):.3g}"
    return f"{sign}{size}" + ("" if error is None else f" ± {_plain(name, error)}")


def _notes(own: OwnSamples) -> Iterator[str]:
    yield (
        f"Each model wrote its own completions after the same {own.prompts:,} prompts of the eval split, of up to "
        f"{own.new_tokens:,} tokens, drawn at temperature 1. ± is the standard error over prompts"
        + (", of a difference (student minus baseline) in pairs." if own.differences else ".")
    )
    if own.left_out:
        yield f"No comparison with the teacher: {own.left_out}."
    if own.sparse:
        yield "The teacher gives its likeliest tokens alone: divergences are lower bounds, acceptance an upper bound."
    for number_, seed in enumerate(own.seeds, 2):
        values = {model: figures["reverse_kl"] for model, figures in seed.items() if "reverse_kl" in figures}
        if values:
            yield (
                f"Reverse KL of seed number {number_}: "
                + ", ".join(f"{model} {number(value)}" for model, value in values.items())
                + "."
            )
